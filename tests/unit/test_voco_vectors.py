"""VoCo on numbers that can be checked by hand: labels, prediction losses, regularisers."""

import math

import pytest
import torch
from torch import Tensor

from medssl_cli.data.views import draw_offsets
from medssl_cli.methods import voco
from medssl_cli.methods.voco import overlap, terms
from medssl_cli.methods.voco.method import num_starts

ROI = 64
EPS = 1e-6
CUBE = (ROI, ROI, ROI)


def labels(offset: tuple[int, ...], grid: tuple[int, int, int] = (4, 4, 1)) -> Tensor:
    return overlap.overlap_fractions(torch.tensor([*offset, 0][:3]), grid, CUBE)


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
    return offsets, overlap.overlap_fractions(offsets, grid, size)


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

        cells = overlap.overlap_fractions(mirrored, grid, size).unflatten(1, grid).flip(1 + axis).flatten(1)

        torch.testing.assert_close(cells, fractions)


def test_labels_do_not_depend_on_the_unit_of_length() -> None:
    offset = torch.tensor([[32, 90, 0], [100, 6, 0]])

    at_64 = overlap.overlap_fractions(offset, (4, 4, 1), (64, 64, 64))
    at_96 = overlap.overlap_fractions(offset * 3 // 2, (4, 4, 1), (96, 96, 96))

    torch.testing.assert_close(at_64, at_96)


@pytest.mark.parametrize(("objective", "last"), [("v1", 127), ("v2", 127), ("paper", 128), ("fixed", 128)])
def test_the_released_code_never_draws_the_last_legal_start(objective: str, last: int) -> None:
    legal = num_starts(voco.Options.model_validate({"objective": objective}), CUBE)

    starts = draw_offsets((50_000,), legal, generator())

    assert starts[:, :2].amin() == 0
    assert starts[:, :2].amax() == last
    assert (starts[:, 2] == 0).all()  # one cell along z leaves no choice


# Prediction losses, on one random crop.

QUARTERS, CORNER, FLAT = labels((32, 32)), labels((0, 0)), labels((16, 48), (3, 3, 1))


def test_a_perfect_prediction_costs_nothing() -> None:
    # v2's eps inside both logarithms leaves -log(1 + 1e-6) twice.
    assert overlap.overlap_loss(QUARTERS[None], QUARTERS[None]).item() == pytest.approx(-2e-6, abs=1e-9)
    assert overlap.uniform_overlap_loss(QUARTERS[None], QUARTERS[None]).item() == 0


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
    assert overlap.overlap_loss(logits[None], target[None]).item() == pytest.approx(v2, abs=2e-5 if v2 > 1 else 5e-6)
    assert overlap.uniform_overlap_loss(logits[None], target[None]).item() == pytest.approx(paper, abs=1e-9)


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
    assert overlap.overlap_loss(logits[None], target[None]).item() == pytest.approx(published, abs=1e-8)


QUERIES = torch.tensor([[1, 1, 1, 1], [3, 4, 0, 0], [-1, 2, 2, 0]], dtype=torch.float64)
BASES = torch.eye(4, dtype=torch.float64)
TOY_TARGETS = torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]], dtype=torch.float64)


def test_three_queries_against_orthonormal_bases() -> None:
    logits = overlap.similarity(QUERIES, BASES)

    expected = torch.tensor([[0.5] * 4, [0.6, 0.8, 0, 0], [0, 2 / 3, 2 / 3, 0]], dtype=torch.float64)
    torch.testing.assert_close(logits, expected)
    # distances to the targets: 1/4 (weight 1/4) four times, 0.1 and 0.3 (weight 1/2), 1/6 (weight 1/2) twice
    touched = -(math.log(0.75) + 0.5 * math.log(0.9) + 0.5 * math.log(0.7) + math.log(5 / 6)) / 3
    paper = -(4 * math.log(0.75) + math.log(0.9) + math.log(0.7) + 2 * math.log(5 / 6)) / 12
    assert overlap.overlap_loss(logits, TOY_TARGETS).item() == pytest.approx(touched, abs=3e-6)
    assert overlap.overlap_loss(logits, TOY_TARGETS).item() == pytest.approx(0.23367144, abs=1e-8)
    assert overlap.uniform_overlap_loss(logits, TOY_TARGETS).item() == pytest.approx(paper, abs=1e-12)


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    queries = torch.randn(2, 5, 7, generator=generator(seed), dtype=torch.float64)
    bases = torch.randn(2, 9, 7, generator=generator(seed + 1), dtype=torch.float64)
    offsets = draw_offsets((2, 5), (128, 128, 1), generator(seed + 2))
    return queries, bases, overlap.overlap_fractions(offsets, (3, 3, 1), CUBE)


@pytest.mark.parametrize("seed", range(5))
def test_logits_lie_between_0_and_1_and_ignore_lengths(seed: int) -> None:
    queries, bases, _ = random_case(seed)
    lengths = torch.rand(2, 9, 1, generator=generator(seed), dtype=torch.float64) + 0.1

    logits = overlap.similarity(queries, bases)

    assert ((logits >= 0) & (logits <= 1)).all()
    torch.testing.assert_close(overlap.similarity(queries * 3, bases * lengths), logits)


@pytest.mark.parametrize("loss", [overlap.overlap_loss, overlap.uniform_overlap_loss])
@pytest.mark.parametrize("seed", range(3))
def test_order_of_crops_does_not_matter(loss: type, seed: int) -> None:
    queries, bases, targets = random_case(seed)
    rows, columns = torch.randperm(5, generator=generator(seed)), torch.randperm(9, generator=generator(seed))
    logits = overlap.similarity(queries, bases)

    torch.testing.assert_close(overlap.similarity(queries, bases[:, columns]), logits[..., columns])
    shuffled = loss(logits[:, rows][..., columns], targets[:, rows][..., columns])

    torch.testing.assert_close(shuffled, loss(logits, targets))


@pytest.mark.parametrize("loss", [overlap.overlap_loss, overlap.uniform_overlap_loss])
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

    for parts in (terms.v2_terms(student, teacher, targets), terms.paper_terms(student, targets)):
        gradients = torch.autograd.grad(parts["prediction"], [*student, *teacher], allow_unused=True)

        assert gradients[0] is not None
        assert gradients[1:] == (None, None, None)


def test_a_query_opposite_to_its_only_base_is_stuck() -> None:
    query = torch.tensor([[-1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0]], dtype=torch.float64)

    loss = overlap.overlap_loss(overlap.similarity(query, torch.tensor([[1.0, 0.0]], dtype=torch.float64)), target)
    loss.backward()

    assert loss.item() == pytest.approx(-math.log(EPS), abs=2e-5)
    assert query.grad is not None
    assert not query.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_directions_never_give_nan(dtype: torch.dtype) -> None:
    queries = torch.randn(64, 1, 33, generator=generator()).to(dtype).requires_grad_()
    logits = overlap.similarity(queries, queries.detach() * 7)
    assert (logits <= 1).all()
    targets = torch.zeros_like(logits)

    for loss in (overlap.overlap_loss(logits, targets).sum(), overlap.uniform_overlap_loss(logits, targets).sum()):
        (gradient,) = torch.autograd.grad(loss, queries, retain_graph=True)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_volumes_that_touch_every_base_have_no_negative_term() -> None:
    quarters = torch.full((1, 4), 0.25, dtype=torch.float64)

    assert overlap.overlap_loss(quarters, quarters).item() == pytest.approx(-EPS, abs=1e-9)


def test_between_volumes_a_student_that_equals_its_teacher_is_at_rest() -> None:
    queries, bases, targets = random_case(0)
    student = (queries.requires_grad_(), bases.requires_grad_())

    inter = terms.v2_terms(student, (queries, bases), targets)["inter"]
    gradients = torch.autograd.grad(inter, student)

    assert inter.item() == pytest.approx(-2e-6, abs=1e-8)
    assert all(not gradient.any() for gradient in gradients)


def test_between_volumes_pairs_each_with_the_next() -> None:
    queries, bases, targets = random_case(0)
    teacher = random_case(50)[:2]

    parts = terms.v2_terms((queries, bases), teacher, targets)
    alone = terms.v2_terms((queries[:1], bases[:1]), (teacher[0][:1], teacher[1][:1]), targets[:1])

    expected = [
        overlap.overlap_loss(overlap.similarity(queries[i], bases[j]), overlap.similarity(teacher[0][i], teacher[1][j]))
        for i, j in ((0, 1), (1, 0))
    ]
    torch.testing.assert_close(parts["inter"], torch.stack(expected).mean())
    own = overlap.overlap_loss(
        overlap.similarity(queries[0], bases[0]), overlap.similarity(teacher[0][0], teacher[1][0])
    )
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

    assert overlap.one_sided_regulariser(vectors).item() == pytest.approx(v2, abs=1e-12)
    assert overlap.absolute_regulariser(vectors).item() == pytest.approx(paper, abs=1e-12)


def test_v2_regulariser_moves_only_the_first_of_each_pair() -> None:
    """d/dq_i of cos^2 between unit vectors is 2 cos (q_j - cos q_i); a third of it for a mean of three pairs.

    Pair (0, 1), cos 1/2: 1/3 ((1/2, r) - 1/2 (1, 0)) = (0, r/3) on q_0. Pair (1, 2), cos r: 2/3 r ((0, 1) - r (1/2, r))
    = (-1/4, r/6) on q_1. Pair (0, 2) is orthogonal. With r = sqrt(3) / 2.
    """
    bases = torch.tensor(THIRDS, dtype=torch.float64, requires_grad=True)

    overlap.one_sided_regulariser(bases).backward()

    expected = torch.tensor([[0.0, ROOT / 3], [-0.25, ROOT / 6], [0.0, 0.0]], dtype=torch.float64)
    assert bases.grad is not None
    torch.testing.assert_close(bases.grad, expected)
    assert not bases.grad[-1].any()


def test_paper_regulariser_moves_both_of_each_pair() -> None:
    """d/dq_i of cos between unit vectors is q_j - cos q_i, and vice versa; a third of it for a mean of three pairs."""
    bases = torch.tensor([*THIRDS[:2], [-0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    unit = bases.detach()
    cosines = unit @ unit.T

    overlap.absolute_regulariser(bases).backward()

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
