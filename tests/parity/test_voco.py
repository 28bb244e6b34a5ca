"""VoCo's fast, batched code against a literal restatement of its equations: values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.data.augmentation import CropChanges, Draws, draw_crop_changes
from medssl_cli.data.views import draw_offsets, make_views
from medssl_cli.methods import voco
from medssl_cli.methods.voco import overlap, terms
from medssl_cli.nn.backbones import Backbone
from tests.parity import voco_literal as literal

GRIDS = [(2, 2, 1), (3, 3, 1), (3, 1, 2), (2, 2, 2)]
BATCH, RANDOM, DIM = 3, 2, 4


def projections(num_bases: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randn(BATCH, count, DIM, generator=generator, dtype=torch.float64).requires_grad_()
        for count in (RANDOM, num_bases)
    )


def targets_for(grid: tuple[int, int, int], seed: int) -> Tensor:
    size = (6, 4, 5)
    starts = tuple((cells - 1) * extent + 1 for cells, extent in zip(grid, size, strict=True))
    offsets = draw_offsets((BATCH, RANDOM), starts, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    return overlap.overlap_fractions(offsets, grid, size)


@pytest.mark.parametrize("grid", GRIDS)
def test_overlap_fractions_count_voxels(grid: tuple[int, int, int]) -> None:
    size = (6, 4, 5)
    starts = [range((cells - 1) * extent + 1) for cells, extent in zip(grid, size, strict=True)]
    offsets = torch.cartesian_prod(*(torch.arange(len(axis)) for axis in starts))

    fractions = overlap.overlap_fractions(offsets, grid, size)

    expected = [literal.labels(offset, list(grid), list(size)) for offset in offsets.tolist()]
    torch.testing.assert_close(fractions, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(5))
def test_v2_total_and_gradients(grid: tuple[int, int, int], seed: int) -> None:
    num_bases = grid[0] * grid[1] * grid[2]
    student, teacher = projections(num_bases, seed), projections(num_bases, seed + 100)
    targets = targets_for(grid, seed)

    total = torch.stack(list(terms.v2_terms(student, teacher, targets).values())).sum()
    expected = literal.v2_total(student, teacher, targets)

    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(total, student), torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(5))
def test_paper_total_and_gradients(grid: tuple[int, int, int], seed: int) -> None:
    student = projections(grid[0] * grid[1] * grid[2], seed)
    targets = targets_for(grid, seed)

    total = torch.stack(list(terms.paper_terms(student, targets).values())).sum()
    expected = literal.paper_total(student, targets)

    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(total, student), torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(5))
def test_v1_total_and_gradients(grid: tuple[int, int, int], seed: int) -> None:
    num_bases = grid[0] * grid[1] * grid[2]
    student, teacher = projections(num_bases, seed), projections(num_bases, seed + 100)
    targets = targets_for(grid, seed)

    total = torch.stack(list(terms.v1_terms(student, teacher, targets).values())).sum()
    expected = literal.v1_total(student, teacher, targets)

    compare(total, expected, student)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["squared", "absolute"])
@pytest.mark.parametrize("slope", [0.0, 0.1, 1.0])
def test_fixed_total_and_gradients(grid: tuple[int, int, int], seed: int, kind: str, slope: float) -> None:
    num_bases = grid[0] * grid[1] * grid[2]
    student, teacher = projections(num_bases, seed), projections(num_bases, seed + 100)
    targets = targets_for(grid, seed)

    parts = terms.v2_terms(
        student,
        teacher,
        targets,
        negative_slope=slope,
        has_all_pairs=True,
        regulariser=kind,  # type: ignore[arg-type]
    )
    expected = literal.fixed_total(student, teacher, targets, slope=slope, kind=kind)

    compare(torch.stack(list(parts.values())).sum(), expected, student)


def compare(total: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


class TinyBackbone(Backbone):
    def __init__(self) -> None:
        super().__init__(channels=(5,), strides=(2,), embedding_levels=(0,))
        self.conv = nn.Conv3d(1, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x).tanh()]


STEPS: list[dict[str, Any]] = [
    {"objective": "paper"},
    {"objective": "v1"},
    {"objective": "v1", "network_size": (2, 4, 4), "resize": "crops"},
    {"objective": "v2"},
    {"objective": "fixed"},
    {"objective": "fixed", "corrections": {"regulariser": "absolute", "negative_slope": 1.0}},
]


@pytest.mark.parametrize("settings", STEPS)
@pytest.mark.parametrize(("grid", "size"), [((3, 3, 1), (4, 4, 4)), ((2, 3, 2), (4, 6, 2))])
def test_a_whole_step_from_canvas_to_backbone_gradient(
    settings: dict[str, Any], grid: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    corrections = settings.get("corrections", {}) | {"float32_loss": False}
    exact = {"corrections": corrections} if settings["objective"] == "fixed" else {}
    options = voco.Options(base_grid=grid, projector_dim=6, num_random_crops=3, sync_norm=False, **settings | exact)
    method = voco.Method(TinyBackbone(), options, size).double()
    images = torch.rand(2, 1, *method.views().size, dtype=torch.float64)
    method.before_step(0.0)

    views = make_views(method.views(), images, Draws(torch.Generator().manual_seed(7)))
    total = method.loss(views, progress=0.0).total
    expected = literal_step(method, images, torch.Generator().manual_seed(7))

    # Two dropped crops have cosine 1, where -log(1 - l + 1e-6) magnifies rounding a million times.
    torch.testing.assert_close(total, expected, rtol=1e-7, atol=1e-7)
    trained = [p for p in method.parameters() if p.requires_grad]
    for ours, theirs in zip(torch.autograd.grad(total, trained), torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def literal_step(method: voco.Method, canvas: Tensor, generator: torch.Generator) -> Tensor:
    """The same draws, then everything crop by crop: random crops of all volumes, then their base crops."""
    options, grid, size = method.options, list(method.options.base_grid), list(method.cell_size)
    batch, num_random = len(canvas), options.num_random_crops
    last = 1 if options.objective in ("paper", "fixed") else 0
    starts = [max(1, (cells - 1) * extent + last) for cells, extent in zip(grid, size, strict=True)]
    offsets = draw_offsets((batch, num_random), (starts[0], starts[1], starts[2]), generator).tolist()
    corners = [
        [i * size[0], j * size[1], k * size[2]] for i in range(grid[0]) for j in range(grid[1]) for k in range(grid[2])
    ]
    places = [(b, o) for b in range(batch) for o in offsets[b]] + [(b, o) for b in range(batch) for o in corners]
    law = CropChanges(options.flip_prob, options.rot90_prob, options.shift_prob, options.shift)
    changes = draw_crop_changes(len(places), law, generator)
    assert changes.is_flipped is not None
    assert changes.quarter_turns is not None
    assert changes.shift is not None
    rows, teacher_rows = [], []
    for n, (b, (x, y, z)) in enumerate(places):
        crop = canvas[b, :, x : x + size[0], y : y + size[1], z : z + size[2]].numpy()
        if options.network_size is not None:
            crop = literal.resized(crop, list(options.network_size))
        turns = int(changes.quarter_turns[n]) if crop.shape[1] == crop.shape[2] else 0
        crop = literal.augmented(crop, changes.is_flipped[n].tolist(), turns, float(changes.shift[n]))
        image = torch.from_numpy(crop.copy())[None]
        rows.append(method.backbone(image)[0].mean(dim=(2, 3, 4))[0])
        if method.teacher_backbone is not None:
            teacher_rows.append(method.teacher_backbone(image)[0].mean(dim=(2, 3, 4))[0])
    embeddings = torch.stack(rows)
    seen_by_teacher = torch.stack(teacher_rows) if teacher_rows else embeddings
    targets = torch.tensor([[literal.labels(o, grid, size) for o in of_volume] for of_volume in offsets]).double()
    if method.teacher is None:
        return literal.paper_total(split(embeddings, method.student, targets), targets)
    teacher = split(seen_by_teacher.detach(), method.teacher, targets)
    if options.objective == "v1":
        return literal.v1_total(split(embeddings, method.student, targets), teacher, targets)
    width = embeddings.shape[1] if options.objective == "fixed" else 1
    kept = torch.rand(len(rows), width, generator=generator) >= 0.2
    student = split(torch.where(kept, embeddings * 1.25, 0.0), method.student, targets)
    if options.objective == "v2":
        return literal.v2_total(student, teacher, targets)
    rules = options.rules
    return literal.fixed_total(student, teacher, targets, slope=rules.negative_slope, kind=rules.regulariser)


def split(embeddings: Tensor, projector: nn.Module, targets: Tensor) -> tuple[Tensor, Tensor]:
    layers = [
        (projector.get_parameter(f"layer{i}.0.weight"), projector.get_parameter(f"layer{i}.0.bias")) for i in (1, 2, 3)
    ]
    rows = literal.projected(embeddings, layers)
    batch, num_random, num_bases = targets.shape
    random, bases = rows[: batch * num_random], rows[batch * num_random :]
    return random.reshape(batch, num_random, -1), bases.reshape(batch, num_bases, -1)
