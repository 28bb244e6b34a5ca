"""VoCo on numbers that can be checked by hand: labels, prediction losses, regularisers, teacher, dropout, baselines."""

import math
from itertools import product

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medssl_cli.errors import UsageError
from medssl_cli.methods import Views, voco
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.crops import augment, base_crops, crops_at, draw_augmentation, draw_offsets
from medssl_cli.nn.momentum import update_teacher
from medssl_cli.nn.projector import Projector

ROI = 64
EPS = 1e-6
CUBE = (ROI, ROI, ROI)


def labels(
    offset: tuple[int, ...], grid: tuple[int, int, int] = (4, 4, 1), size: tuple[int, int, int] = CUBE
) -> Tensor:
    start = torch.tensor([*offset, 0][:3] if len(offset) == 2 else offset)
    return voco.overlap_fractions(start, grid, size)


def vector(entries: dict[int, float], length: int) -> Tensor:
    expected = torch.zeros(length, dtype=torch.float64)
    for index, value in entries.items():
        expected[index] = value
    return expected


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Labels. An offset of a cells and s voxels along an axis shares 1 - s/64 with cell a and s/64 with cell a + 1.


@pytest.mark.parametrize(
    ("offset", "entries"),
    [
        ((0, 0), {0: 1.0}),
        ((64, 128), {6: 1.0}),  # cell (1, 2) = 4 * 1 + 2
        ((32, 32), {0: 0.25, 1: 0.25, 4: 0.25, 5: 0.25}),
        ((16, 48), {0: 3 / 16, 1: 9 / 16, 4: 1 / 16, 5: 3 / 16}),  # (3/4, 1/4) x (1/4, 3/4)
        # 191 = 2 * 64 + 63: 1/64 and 63/64 along both axes
        ((191, 191), {10: 1 / 4096, 11: 63 / 4096, 14: 63 / 4096, 15: 3969 / 4096}),
        # 100 = 64 + 36 and 7: (28, 36) x (57, 7) / 4096
        ((100, 7), {4: 28 * 57 / 4096, 5: 28 * 7 / 4096, 8: 36 * 57 / 4096, 9: 36 * 7 / 4096}),
    ],
)
def test_label_is_the_share_of_the_crop_in_each_cell(offset: tuple[int, int], entries: dict[int, float]) -> None:
    assert torch.equal(labels(offset), vector(entries, 16))


def test_label_on_the_published_grid() -> None:
    expected = torch.tensor([3, 9, 0, 1, 3, 0, 0, 0, 0], dtype=torch.float64) / 16

    assert torch.equal(labels((16, 48), (3, 3, 1)), expected)


def test_labels_in_three_dimensions() -> None:
    eighths = dict.fromkeys([0, 1, 2, 3, 8, 9, 10, 11], 1 / 8)
    # (3/4, 1/4) x (1/4, 3/4) x (7/8, 1/8), in 128ths
    uneven = {0: 21, 1: 3, 2: 63, 3: 9, 6: 7, 7: 1, 8: 21, 9: 3}

    assert torch.equal(labels((32, 32, 32), (4, 4, 2)), vector(eighths, 32))
    assert torch.equal(labels((16, 48, 8), (3, 3, 2)), vector({k: n / 128 for k, n in uneven.items()}, 18))


def all_labels(grid: tuple[int, int, int], size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    starts = [torch.arange((cells - 1) * extent + 1) for cells, extent in zip(grid, size, strict=True)]
    offsets = torch.cartesian_prod(*starts)
    return offsets, voco.overlap_fractions(offsets, grid, size)


@pytest.mark.parametrize(("grid", "size"), [((3, 3, 1), (12, 12, 12)), ((4, 2, 1), (5, 7, 3)), ((2, 3, 2), (4, 3, 5))])
def test_labels_are_a_partition_of_the_crop(grid: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    offsets, fractions = all_labels(grid, size)
    is_aligned = (offsets % torch.tensor(size) == 0).all(dim=1)

    assert (fractions >= 0).all()
    torch.testing.assert_close(fractions.sum(dim=1), torch.ones(len(offsets), dtype=torch.float64))
    assert set((fractions > 0).sum(dim=1).tolist()) <= {1, 2, 4, 8}
    assert torch.equal(fractions.amax(dim=1) == 1, is_aligned)


def test_labels_mirror_with_the_canvas() -> None:
    grid, size = (3, 4, 2), (4, 5, 3)
    offsets, fractions = all_labels(grid, size)
    largest = offsets.amax(dim=0)
    for axis in range(3):
        mirrored = offsets.clone()
        mirrored[:, axis] = largest[axis] - mirrored[:, axis]

        cells = voco.overlap_fractions(mirrored, grid, size).unflatten(1, grid).flip(1 + axis).flatten(1)

        torch.testing.assert_close(cells, fractions)


def test_labels_do_not_depend_on_the_unit_of_length() -> None:
    offset = torch.tensor([[32, 90, 0], [100, 6, 0]])

    at_64 = voco.overlap_fractions(offset, (4, 4, 1), (64, 64, 64))
    at_96 = voco.overlap_fractions(offset * 3 // 2, (4, 4, 1), (96, 96, 96))

    torch.testing.assert_close(at_64, at_96)


@pytest.mark.parametrize(("objective", "last"), [("v2", 127), ("paper", 128)])
def test_v2_never_draws_the_last_legal_start(objective: str, last: int) -> None:
    num_starts = voco._num_starts(voco.Options.model_validate({"objective": objective}), CUBE)

    starts = draw_offsets((50_000,), num_starts, generator())

    assert starts[:, :2].amin() == 0
    assert starts[:, :2].amax() == last
    assert (starts[:, 2] == 0).all()  # one cell along z leaves no choice


# Prediction losses, on one random crop.

QUARTERS, CORNER, FLAT = labels((32, 32)), labels((0, 0)), labels((16, 48), (3, 3, 1))


def test_a_perfect_prediction_costs_nothing() -> None:
    # v2's eps inside both logarithms leaves -log(1 + 1e-6) twice.
    assert voco.overlap_loss(QUARTERS[None], QUARTERS[None]).item() == pytest.approx(-2e-6, abs=1e-9)
    assert voco.uniform_overlap_loss(QUARTERS[None], QUARTERS[None]).item() == 0


def halves_on_a_wrong_base() -> Tensor:
    logits = QUARTERS.clone()
    logits[10] = 0.5
    return logits


def half_on_the_right_base() -> Tensor:
    logits = torch.zeros(16, dtype=torch.float64)
    logits[0] = 0.5
    return logits


ZEROS = torch.zeros(16, dtype=torch.float64)


@pytest.mark.parametrize(
    ("target", "logits", "v2", "paper"),
    [
        # four touched cells at distance 1/4; twelve untouched at 0
        (QUARTERS, ZEROS, -math.log(0.75), -4 / 16 * math.log(0.75)),
        # touched cells right, twelve untouched at 1/4
        (QUARTERS, torch.full_like(ZEROS, 0.25), -math.log(0.75), -12 / 16 * math.log(0.75)),
        # touched cells right, one of twelve untouched at 1/2
        (QUARTERS, halves_on_a_wrong_base(), math.log(2) / 12, math.log(2) / 16),
        (CORNER, half_on_the_right_base(), math.log(2), math.log(2) / 16),
        # distance 1: eps decides
        (CORNER, ZEROS, -math.log(EPS), -math.log(EPS) / 16),
        (
            FLAT,
            torch.zeros(9, dtype=torch.float64),
            -sum(n / 16 * math.log(1 - n / 16) for n in (3, 9, 1, 3)),
            -sum(math.log(1 - n / 16) for n in (3, 9, 1, 3)) / 9,
        ),
    ],
)
def test_prediction_losses_by_hand(target: Tensor, logits: Tensor, v2: float, paper: float) -> None:
    # eps moves each logarithm of v2 by up to 1e-6 / (1 - d), and divides a loss of 13.8 by 1 + 1e-6
    assert voco.overlap_loss(logits[None], target[None]).item() == pytest.approx(v2, abs=2e-5 if v2 > 1 else 5e-6)
    assert voco.uniform_overlap_loss(logits[None], target[None]).item() == pytest.approx(paper, abs=1e-9)


@pytest.mark.parametrize(
    ("target", "logits", "published"),
    [
        (QUARTERS, ZEROS, 0.28767945),
        (QUARTERS, torch.full_like(ZEROS, 0.25), 0.28767972),
        (QUARTERS, halves_on_a_wrong_base(), 0.05776018),
        (CORNER, ZEROS, 13.81549574),
        (CORNER, half_on_the_right_base(), 0.69314349),
        (FLAT, torch.zeros(9, dtype=torch.float64), 0.54690176),
    ],
)
def test_v2_agrees_with_the_released_code_to_the_last_printed_digit(
    target: Tensor, logits: Tensor, published: float
) -> None:
    """Values that the released functions gave on these inputs; their derivation without eps is the test above."""
    assert voco.overlap_loss(logits[None], target[None]).item() == pytest.approx(published, abs=1e-8)


QUERIES = torch.tensor([[1, 1, 1, 1], [3, 4, 0, 0], [-1, 2, 2, 0]], dtype=torch.float64)
BASES = torch.eye(4, dtype=torch.float64)
TOY_TARGETS = torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]], dtype=torch.float64)


def test_three_queries_against_orthonormal_bases() -> None:
    logits = voco.similarity(QUERIES, BASES)

    expected = torch.tensor([[0.5] * 4, [0.6, 0.8, 0, 0], [0, 2 / 3, 2 / 3, 0]], dtype=torch.float64)
    torch.testing.assert_close(logits, expected)
    # distances to the targets: 1/4 (weight 1/4) four times, 0.1 and 0.3 (weight 1/2), 1/6 (weight 1/2) twice
    touched = -(math.log(0.75) + 0.5 * math.log(0.9) + 0.5 * math.log(0.7) + math.log(5 / 6)) / 3
    paper = -(4 * math.log(0.75) + math.log(0.9) + math.log(0.7) + 2 * math.log(5 / 6)) / 12
    assert voco.overlap_loss(logits, TOY_TARGETS).item() == pytest.approx(touched, abs=3e-6)
    assert voco.overlap_loss(logits, TOY_TARGETS).item() == pytest.approx(0.23367144, abs=1e-8)
    assert voco.uniform_overlap_loss(logits, TOY_TARGETS).item() == pytest.approx(paper, abs=1e-12)


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    queries = torch.randn(2, 5, 7, generator=generator(seed), dtype=torch.float64)
    bases = torch.randn(2, 9, 7, generator=generator(seed + 1), dtype=torch.float64)
    offsets = draw_offsets((2, 5), (128, 128, 1), generator(seed + 2))
    return queries, bases, voco.overlap_fractions(offsets, (3, 3, 1), CUBE)


@pytest.mark.parametrize("seed", range(5))
def test_logits_lie_between_0_and_1_and_ignore_lengths(seed: int) -> None:
    queries, bases, _ = random_case(seed)
    lengths = torch.rand(2, 9, 1, generator=generator(seed), dtype=torch.float64) + 0.1

    logits = voco.similarity(queries, bases)

    assert ((logits >= 0) & (logits <= 1)).all()
    torch.testing.assert_close(voco.similarity(queries * 3, bases * lengths), logits)


@pytest.mark.parametrize("loss", [voco.overlap_loss, voco.uniform_overlap_loss])
@pytest.mark.parametrize("seed", range(3))
def test_order_of_crops_does_not_matter(loss: type, seed: int) -> None:
    queries, bases, targets = random_case(seed)
    rows, columns = torch.randperm(5, generator=generator(seed)), torch.randperm(9, generator=generator(seed))
    logits = voco.similarity(queries, bases)

    torch.testing.assert_close(voco.similarity(queries, bases[:, columns]), logits[..., columns])
    shuffled = loss(logits[:, rows][..., columns], targets[:, rows][..., columns])

    torch.testing.assert_close(shuffled, loss(logits, targets))


@pytest.mark.parametrize("loss", [voco.overlap_loss, voco.uniform_overlap_loss])
@pytest.mark.parametrize("seed", range(3))
def test_the_target_is_the_best_prediction(loss: type, seed: int) -> None:
    _, _, targets = random_case(seed)
    for size in (1e-3, 0.1, 0.5):
        noise = size * torch.randn(targets.shape, generator=generator(seed), dtype=torch.float64)
        assert (loss((targets + noise).clamp(0, 1), targets) > loss(targets, targets)).all()


def test_prediction_gives_base_crops_no_gradient() -> None:
    queries, bases, targets = random_case(0)
    teacher = (queries.clone().requires_grad_(), bases.clone().requires_grad_())
    student = (queries.requires_grad_(), bases.requires_grad_())

    for parts in (voco.v2_losses(student, teacher, targets), voco.paper_losses(student, targets)):
        gradients = torch.autograd.grad(parts["prediction"], [*student, *teacher], allow_unused=True)

        assert gradients[0] is not None
        assert gradients[1:] == (None, None, None)


def test_a_query_opposite_to_its_only_base_is_stuck() -> None:
    query = torch.tensor([[-1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0]], dtype=torch.float64)

    loss = voco.overlap_loss(voco.similarity(query, torch.tensor([[1.0, 0.0]], dtype=torch.float64)), target)
    loss.backward()

    assert loss.item() == pytest.approx(-math.log(EPS), abs=2e-5)
    assert query.grad is not None
    assert not query.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_directions_never_give_nan(dtype: torch.dtype) -> None:
    queries = torch.randn(64, 1, 33, generator=generator()).to(dtype).requires_grad_()
    logits = voco.similarity(queries, queries.detach() * 7)
    targets = torch.zeros_like(logits)

    for loss in (voco.overlap_loss(logits, targets).sum(), voco.uniform_overlap_loss(logits, targets).sum()):
        (gradient,) = torch.autograd.grad(loss, queries, retain_graph=True)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_volumes_that_touch_every_base_have_no_negative_term() -> None:
    quarters = torch.full((1, 4), 0.25, dtype=torch.float64)

    assert voco.overlap_loss(quarters, quarters).item() == pytest.approx(-EPS, abs=1e-9)


def test_between_volumes_a_student_that_equals_its_teacher_is_at_rest() -> None:
    queries, bases, targets = random_case(0)
    student = (queries.requires_grad_(), bases.requires_grad_())

    inter = voco.v2_losses(student, (queries, bases), targets)["inter"]
    gradients = torch.autograd.grad(inter, student)

    assert inter.item() == pytest.approx(-2e-6, abs=1e-8)
    assert all(not gradient.any() for gradient in gradients)


def test_between_volumes_pairs_each_with_the_next() -> None:
    queries, bases, targets = random_case(0)
    teacher = random_case(50)[:2]

    parts = voco.v2_losses((queries, bases), teacher, targets)
    alone = voco.v2_losses((queries[:1], bases[:1]), (teacher[0][:1], teacher[1][:1]), targets[:1])

    expected = [
        voco.overlap_loss(voco.similarity(queries[i], bases[j]), voco.similarity(teacher[0][i], teacher[1][j]))
        for i, j in ((0, 1), (1, 0))
    ]
    torch.testing.assert_close(parts["inter"], torch.stack(expected).mean())
    own = voco.overlap_loss(voco.similarity(queries[0], bases[0]), voco.similarity(teacher[0][0], teacher[1][0]))
    torch.testing.assert_close(alone["inter"], own)  # a batch of one is its own neighbour


# Regularisers.

ROOT = math.sqrt(3) / 2
THIRDS = [[1.0, 0.0], [0.5, ROOT], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("bases", "v2", "paper"),
    [
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], 0.0, 0.0),
        ([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], 1.0, 1.0),
        # cosines 1/2, 0, sqrt(3)/2
        (THIRDS, (1 / 4 + 3 / 4) / 3, (1 / 2 + ROOT) / 3),
        # cosines .6, 0, -1, .8, -.6, 0: v2 squares the positive ones
        ([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]], (0.36 + 0.64) / 6, (0.6 + 1 + 0.8 + 0.6) / 6),
        # opposite directions are free in v2
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], 0.0, 1 / 3),
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], 0.0, 2 / 6),
    ],
)
def test_regularisers_by_hand(bases: list[list[float]], v2: float, paper: float) -> None:
    vectors = torch.tensor(bases, dtype=torch.float64)

    assert voco.one_sided_regulariser(vectors).item() == pytest.approx(v2, abs=1e-12)
    assert voco.absolute_regulariser(vectors).item() == pytest.approx(paper, abs=1e-12)


def test_v2_regulariser_moves_only_the_first_of_each_pair() -> None:
    """d/dq_i of cos^2 between unit vectors is 2 cos (q_j - cos q_i); a third of it for a mean of three pairs.

    Pair (0, 1), cos 1/2: 1/3 ((1/2, r) - 1/2 (1, 0)) = (0, r/3) on q_0. Pair (1, 2), cos r: 2/3 r ((0, 1) - r (1/2, r))
    = (-1/4, r/6) on q_1. Pair (0, 2) is orthogonal. With r = sqrt(3) / 2.
    """
    bases = torch.tensor(THIRDS, dtype=torch.float64, requires_grad=True)

    voco.one_sided_regulariser(bases).backward()

    expected = torch.tensor([[0.0, ROOT / 3], [-0.25, ROOT / 6], [0.0, 0.0]], dtype=torch.float64)
    assert bases.grad is not None
    torch.testing.assert_close(bases.grad, expected)
    assert not bases.grad[-1].any()


def test_paper_regulariser_moves_both_of_each_pair() -> None:
    """d/dq_i of cos between unit vectors is q_j - cos q_i, and vice versa; a third of it for a mean of three pairs."""
    bases = torch.tensor([*THIRDS[:2], [-0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    unit = bases.detach()
    cosines = unit @ unit.T

    voco.absolute_regulariser(bases).backward()

    expected = torch.stack(
        [
            sum(
                (cosines[i, j].sign() * (unit[j] - cosines[i, j] * unit[i]) for j in range(3) if j != i),
                torch.zeros(2, dtype=torch.float64),
            )
            / 3
            for i in range(3)
        ]
    )
    assert bases.grad is not None
    torch.testing.assert_close(bases.grad, expected)
    assert bases.grad[-1].any()


# Trivial predictors.


def test_zero_logits_cost_4_minus_a_third_of_pi_squared() -> None:
    """For shares ab with a, b uniform: 4 E[-ab log(1 - ab)] = 4 sum 1 / (k (k + 2)^2) = 4 - pi^2 / 3.

    The paper's mean over nine cells: 4/9 E[-log(1 - ab)] = 4/9 sum 1 / (k (k + 1)^2) = 4/9 (2 - pi^2 / 6).
    Odd starts are the midpoints of intervals of two voxels, so the mean over them is the midpoint rule.
    """
    midpoints = torch.arange(1, 512, 2)
    offsets = torch.cartesian_prod(midpoints, midpoints, torch.zeros(1, dtype=torch.int64))
    targets = voco.overlap_fractions(offsets, (3, 3, 1), (512, 512, 64))
    zeros = torch.zeros_like(targets)

    assert voco.overlap_loss(zeros, targets).item() == pytest.approx(4 - math.pi**2 / 3, abs=1e-4)
    expected = 4 / 9 * (2 - math.pi**2 / 6)
    assert voco.uniform_overlap_loss(zeros, targets).item() == pytest.approx(expected, abs=1e-4)


def brute_force_v2_prediction(logit: float, size: int) -> float:
    """Mean over all starts in a cell: four shares, whose sum is 1; the untouched cells cost -log(1 - logit)."""
    total = 0.0
    for s, t in product(range(size), repeat=2):
        for share in (
            (size - s) * (size - t) / size**2,
            s * (size - t) / size**2,
            (size - s) * t / size**2,
            s * t / size**2,
        ):
            total += share * -math.log(1 - abs(share - logit) + EPS)
    return total / size**2 - math.log(1 - logit + EPS)


def test_v2_baselines_are_those_of_the_published_geometry() -> None:
    baselines = voco.trivial_losses(voco.Options(), CUBE)

    # Aligned crops (one start in 4096) meet the eps: a little above the limit of small voxels, 0.7101.
    assert baselines["zero_logits"] == pytest.approx(brute_force_v2_prediction(0.0, 64), abs=5e-6)
    assert 4 - math.pi**2 / 3 < baselines["zero_logits"] < 0.7135
    assert 0.578 <= baselines["constant_logit"] <= 0.588
    assert baselines["constant_logit"] == pytest.approx(
        min(brute_force_v2_prediction(c / 100, 64) for c in range(10, 34)), abs=5e-6
    )
    # The regulariser of a collapsed network is c^2.
    assert baselines["collapsed"] == pytest.approx(
        min(brute_force_v2_prediction(c / 100, 64) + (c / 100) ** 2 for c in range(5, 30)), abs=5e-6
    )
    assert 0.60 <= baselines["collapsed"] <= 0.63
    assert brute_force_v2_prediction(0.2, 64) + 0.2**2 == pytest.approx(0.62, abs=0.005)
    assert brute_force_v2_prediction(0.5, 64) + 0.5**2 == pytest.approx(1.18, abs=0.005)


def test_paper_baselines_cannot_be_worse_than_zero_logits() -> None:
    baselines = voco.trivial_losses(voco.Options(objective="paper"), CUBE)

    # one aligned start in about 4000 costs 13.8 / 9 on top of the limit of small voxels
    assert baselines["zero_logits"] == pytest.approx(4 / 9 * (2 - math.pi**2 / 6), abs=2e-3)
    assert 0 < baselines["constant_logit"] <= baselines["zero_logits"]
    assert baselines["collapsed"] <= baselines["zero_logits"]


# Teacher, dropout, projector.


def test_teacher_approaches_a_resting_student_geometrically() -> None:
    student, teacher = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.ones_(student.weight)
    nn.init.zeros_(teacher.weight)
    seen = {}
    for update in range(1, 51):
        update_teacher(teacher, student, momentum=0.9)
        seen[update] = teacher.weight.item()

    for update in (1, 2, 5, 10, 22, 50):
        assert seen[update] == pytest.approx(1 - 0.9**update, abs=1e-6)
    assert seen[22] == pytest.approx(0.9, abs=0.002)  # 90 % of the gap is gone
    assert student.weight.item() == 1


def test_teacher_copies_buffers() -> None:
    student, teacher = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    student.running_mean += 3.0  # type: ignore[operator]

    update_teacher(teacher, student, momentum=0.5)

    assert torch.equal(teacher.running_mean, student.running_mean)  # type: ignore[arg-type]


def test_dropout_zeroes_whole_rows() -> None:
    dropped = voco.drop_rows(torch.ones(10, 6), 0.2, generator())

    assert (dropped == dropped[:, :1]).all()
    assert set(dropped.flatten().tolist()) == {0.0, 1.25}


def test_dropout_hits_a_fifth_of_the_rows() -> None:
    rows = 20_000

    share = (voco.drop_rows(torch.ones(rows, 1), 0.2, generator()) == 0).double().mean().item()

    assert share == pytest.approx(0.2, abs=5 * math.sqrt(0.2 * 0.8 / rows))


def test_projector_ignores_what_all_rows_share() -> None:
    torch.manual_seed(0)
    projector = Projector(12, 8).double()
    embeddings = torch.randn(20, 12, dtype=torch.float64)

    shifted = projector(embeddings + torch.randn(12, dtype=torch.float64))

    torch.testing.assert_close(shifted, projector(embeddings))


def test_projector_has_no_state_but_three_linear_layers_and_the_same_output_in_evaluation() -> None:
    projector = Projector(12, 8)
    embeddings = torch.randn(20, 12, generator=generator())

    names = [f"layer{layer}.0.{part}" for layer in (1, 2, 3) for part in ("weight", "bias")]
    assert list(projector.state_dict()) == names
    assert torch.equal(projector.eval()(embeddings), projector.train()(embeddings))


# The method.


class TinyBackbone(Backbone):
    """Remembers the images that it saw last."""

    def __init__(self) -> None:
        super().__init__(channels=(5,), strides=(2,), embedding_levels=(0,), crop_multiple=2)
        self.conv = nn.Conv3d(1, 5, 3, stride=2, padding=1)
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> list[Tensor]:
        self.seen = x.detach()
        return [self.conv(x).tanh()]


def method_with(crop_size: tuple[int, int, int] = (4, 4, 4), **options: object) -> voco.Method:
    torch.manual_seed(0)
    return voco.Method(TinyBackbone(), voco.Options.model_validate({"projector_dim": 8, **options}), crop_size)


def images_for(method: voco.Method, batch: int = 2) -> Tensor:
    return torch.rand(batch, 1, 1, *method.views().size, generator=generator(3))


UNCHANGED = {"flip_prob": 0, "rot90_prob": 0, "shift_prob": 0}


def test_the_canvas_is_the_grid_of_crops() -> None:
    assert method_with((4, 6, 8), base_grid=(3, 2, 2)).views().size == (12, 12, 16)
    assert method_with().views().num_views == 1


def test_one_forward_pass_sees_random_crops_of_all_volumes_then_their_base_crops() -> None:
    method = method_with(**UNCHANGED)
    images = images_for(method)

    method.loss(Views(images, generator()), progress=0.0)

    seen = method.backbone.seen
    assert len(seen) == 2 * 2 + 2 * 9
    offsets = draw_offsets((2, 2), (8, 8, 1), generator()).tolist()
    for b, r in product(range(2), range(2)):
        x, y, z = offsets[b][r]
        assert torch.equal(seen[2 * b + r], images[b, 0, :, x : x + 4, y : y + 4, z : z + 4])
    for b, i, j in product(range(2), range(3), range(3)):
        expected = images[b, 0, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, :]
        assert torch.equal(seen[4 + 9 * b + 3 * i + j], expected)


def test_only_the_student_projector_trains_and_the_teacher_follows() -> None:
    method = method_with()
    assert method.teacher is not None
    before = [p.clone() for p in method.teacher.parameters()]
    assert not torch.equal(before[0], method.student.layer1[0].weight)  # drawn on its own, not copied

    method.before_step(0.0)
    method.loss(Views(images_for(method), generator()), progress=0.0).total.backward()

    for old, now, source in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * source)
        assert now.grad is None
        assert source.grad is not None


def test_the_backbone_learns_through_the_student_only() -> None:
    method = method_with(dropout_prob=0)
    for parameter in method.student.layer3.parameters():
        nn.init.zeros_(parameter)  # a student that projects everything to 0 passes nothing back

    method.loss(Views(images_for(method), generator()), progress=0.0).total.backward()

    gradient = method.backbone.conv.weight.grad
    assert gradient is None or not gradient.any()


def test_the_total_is_the_sum_of_the_published_terms() -> None:
    for objective, names in (("v2", {"prediction", "inter", "regulariser"}), ("paper", {"prediction", "regulariser"})):
        method = method_with(objective=objective)

        losses = method.loss(Views(images_for(method), generator()), progress=0.0)

        assert set(losses.parts) == names
        assert losses.total.dtype == torch.float64
        torch.testing.assert_close(losses.total.detach(), torch.stack(list(losses.parts.values())).sum())


def test_rows_are_dropped_in_training_only() -> None:
    method = method_with()
    views = images_for(method)

    training = method.train().loss(Views(views, generator()), progress=0.0).total
    evaluation = method.eval().loss(Views(views, generator()), progress=0.0).total
    without = method_with(dropout_prob=0).train().loss(Views(views, generator()), progress=0.0).total

    assert torch.equal(evaluation, without)
    assert not torch.equal(training, evaluation)


def test_spread_tells_collapsed_from_spread_out_projections() -> None:
    same = torch.ones(1, 4, 16), torch.ones(1, 4, 16)
    orthogonal = torch.eye(8).reshape(2, 1, 4, 8).unbind()

    assert voco._spread(same).item() == pytest.approx(0, abs=1e-4)
    assert voco._spread((orthogonal[0], orthogonal[1])).item() == pytest.approx(math.sqrt(1 - 1 / 8))


def test_bf16_autocast_leaves_the_loss_in_full_precision() -> None:
    for objective in ("v2", "paper"):
        method = method_with(objective=objective)
        views = images_for(method)
        full = method.loss(Views(views, generator()), progress=0.0).total

        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = method.loss(Views(views, generator()), progress=0.0).total
        mixed.backward()

        assert mixed.dtype == torch.float64
        assert mixed.item() == pytest.approx(full.item(), rel=0.3)


def test_flat_crops_are_not_turned() -> None:
    method = method_with((4, 6, 4), base_grid=(3, 2, 1), num_random_crops=4, rot90_prob=1)

    assert method.loss(Views(images_for(method), generator()), progress=0.0).total.isfinite()


@pytest.mark.parametrize("size", [(12, 12, 6), (8, 12, 4), (14, 12, 4)])
def test_images_of_another_size_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="E_CANVAS") as refusal:
        method_with().loss(Views(torch.rand(2, 1, 1, *size), generator()), progress=0.0)

    assert "(12, 12, 4)" in refusal.value.message


def test_crops_that_the_backbone_cannot_take_are_refused() -> None:
    with pytest.raises(UsageError, match="E_CANVAS"):
        method_with((5, 4, 4))


def test_fewer_than_16_rows_are_refused() -> None:
    method = method_with()

    with pytest.raises(UsageError, match="11 rows"):
        method.loss(Views(images_for(method, batch=1), generator()), progress=0.0)
    more = method_with(num_random_crops=7)  # 7 + 9 = 16
    assert more.loss(Views(images_for(more, batch=1), generator()), progress=0.0).total.isfinite()


@pytest.mark.parametrize(
    "options",
    [{"base_grid": (1, 1, 1)}, {"base_grid": (3, 0, 1)}, {"dropout_prob": 1.0}, {"objective": "v3"}, {"momentum": 1.5}],
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        voco.Options.model_validate(options)


# Crops and their augmentation.


def test_crops_of_a_grid_put_together_are_the_canvas() -> None:
    canvas = torch.arange(2 * 1 * 6 * 4 * 6.0).reshape(2, 1, 6, 4, 6)

    crops = base_crops(canvas, (3, 2, 3))

    assert crops.shape == (2, 8, 1, 3, 2, 3)
    for b, (i, j, k) in product(range(2), product(range(2), repeat=3)):
        expected = canvas[b, :, 3 * i : 3 * i + 3, 2 * j : 2 * j + 2, 3 * k : 3 * k + 3]
        assert torch.equal(crops[b, (i * 2 + j) * 2 + k], expected)


def test_a_crop_at_the_far_corner_is_legal() -> None:
    canvas = torch.rand(1, 2, 6, 5, 4)

    crop = crops_at(canvas, torch.tensor([[[3, 3, 0]]]), (3, 2, 4))

    assert torch.equal(crop[0, 0], canvas[0, :, 3:, 3:, :])


def test_augmentations_have_the_frequencies_asked_for() -> None:
    count = 20_000

    drawn = draw_augmentation(count, flip_prob=0.2, rot90_prob=0.2, shift_prob=0.5, shift=0.1, generator=generator())

    tolerance = 5 * math.sqrt(0.25 / count)
    assert drawn.flips.double().mean(dim=0).tolist() == pytest.approx([0.2] * 3, abs=tolerance)
    turns = torch.bincount(drawn.quarter_turns, minlength=4).double() / count
    assert turns.tolist() == pytest.approx([0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3], abs=tolerance)
    shifted = drawn.shifts[drawn.shifts != 0]
    assert len(shifted) / count == pytest.approx(0.5, abs=tolerance)
    assert shifted.abs().max() <= 0.1
    assert shifted.mean().item() == pytest.approx(0, abs=0.1 * tolerance)
    assert shifted.abs().mean().item() == pytest.approx(0.05, abs=0.1 * tolerance)


def test_crops_are_changed_independently_of_one_another() -> None:
    count = 20_000
    drawn = draw_augmentation(count, flip_prob=0.5, rot90_prob=0.5, shift_prob=0.5, shift=1.0, generator=generator())

    columns = torch.stack([*drawn.flips.T, drawn.quarter_turns > 0, drawn.shifts != 0]).double()
    neighbours = torch.cat([columns[:, 1:], columns[:, :-1]])
    correlations = torch.corrcoef(neighbours) - torch.eye(10)

    assert correlations.abs().max() < 6 / math.sqrt(count)


def test_a_quarter_turn_takes_x_to_y() -> None:
    crop = torch.zeros(1, 1, 3, 3, 1)
    crop[0, 0, 2, 1, 0] = 1  # on the +x side
    for turns, place in [(0, (2, 1)), (1, (1, 2)), (2, (0, 1)), (3, (1, 0))]:
        change = voco.draw_augmentation(1, flip_prob=0, rot90_prob=0, shift_prob=0, shift=0, generator=generator())
        change.quarter_turns.fill_(turns)

        turned = augment(crop, change)

        assert turned[0, 0, *place, 0] == 1
