"""What sets VoCo's objectives apart: `v1`, and each of the corrections that make `v2` into `fixed`."""

import math

import pytest
import torch
from torch import Tensor

from medssl_cli.data.views import draw_offsets
from medssl_cli.methods.voco import overlap, terms

EPS = 1e-6
ROOT = math.sqrt(3) / 2
THIRDS = [[1.0, 0.0], [0.5, ROOT], [0.0, 1.0]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(x: int, y: int, grid: tuple[int, int, int] = (4, 4, 1)) -> Tensor:
    return overlap.overlap_fractions(torch.tensor([x, y, 0]), grid, (64, 64, 64))


def with_value(base: Tensor, index: int, value: float) -> Tensor:
    changed = base.clone()
    changed[index] = value
    return changed


QUARTERS, CORNER, FLAT = labels(32, 32), labels(0, 0), labels(16, 48, (3, 3, 1))
ZEROS = torch.zeros(16, dtype=torch.float64)


def projections(seed: int, batch: int = 3, num_random: int = 4, num_bases: int = 9) -> terms.Projections:
    random, bases = (
        torch.randn(batch, count, 6, generator=generator(seed + count), dtype=torch.float64).requires_grad_()
        for count in (num_random, num_bases)
    )
    return random, bases


def targets(seed: int, batch: int = 3, num_random: int = 4) -> Tensor:
    offsets = draw_offsets((batch, num_random), (128, 128, 1), generator(seed))
    return overlap.overlap_fractions(offsets, (3, 3, 1), (64, 64, 64))


def total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


# v1.


@pytest.mark.parametrize(
    ("target", "logits", "positive", "negative"),
    [
        # Printed digits of the released functions; each is a logarithm or a square by hand, up to their eps.
        (QUARTERS, QUARTERS, -1e-6, 0.0),
        (QUARTERS, ZEROS, 0.28768045, 0.0),  # -ln 0.75
        (QUARTERS, torch.full_like(ZEROS, 0.25), -1e-6, 0.0625),  # 0.25^2
        (QUARTERS, with_value(QUARTERS, 10, 0.5), -1e-6, 0.02083333),  # 0.5^2 / 12
        (CORNER, ZEROS, 13.81549674, 0.0),  # -ln eps
        (CORNER, with_value(ZEROS, 0, 0.5), 0.69314449, 0.0),  # ln 2
        (FLAT, torch.zeros(9, dtype=torch.float64), 0.54690276, 0.0),
    ],
)
def test_v1_prediction_losses(target: Tensor, logits: Tensor, positive: float, negative: float) -> None:
    assert overlap.touched_loss(logits[None], target[None]).item() == pytest.approx(positive, abs=1e-8)
    whole = overlap.squared_overlap_loss(logits[None], target[None]).item()
    assert whole == pytest.approx(positive + negative, abs=1.1e-8)


def test_v1_on_three_queries_against_orthonormal_bases() -> None:
    queries = torch.tensor([[1, 1, 1, 1], [3, 4, 0, 0], [-1, 2, 2, 0]], dtype=torch.float64)
    target = torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0]], dtype=torch.float64)
    logits = overlap.similarity(queries, torch.eye(4, dtype=torch.float64))

    assert overlap.squared_overlap_loss(logits, target).item() == pytest.approx(0.23367244, abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_v1_treats_student_and_teacher_alike_in_its_prediction(seed: int) -> None:
    student, teacher, target = projections(seed), projections(seed + 50), targets(seed)

    forth = terms.v1_terms(student, teacher, target)["prediction"]
    back = terms.v1_terms(teacher, student, target)["prediction"]

    torch.testing.assert_close(forth, back)


def test_v1_prediction_moves_the_students_base_crops_but_never_the_teacher() -> None:
    student, teacher = projections(0), projections(50)

    parts = terms.v1_terms(student, teacher, targets(0))
    gradients = torch.autograd.grad(parts["prediction"], [*student, *teacher], allow_unused=True)

    assert gradients[0] is not None
    assert gradients[1] is not None
    assert gradients[1].any()
    assert gradients[2:] == (None, None)


# fixed.


@pytest.mark.parametrize("seed", range(3))
def test_a_slope_below_zero_changes_no_value(seed: int) -> None:
    (queries, bases), target = projections(seed), targets(seed)
    raw = overlap.cosines(queries, bases)
    is_stuck = (raw < 0) & (target > 0)
    assert is_stuck.any()

    logits = overlap.leaky_similarity(queries, bases, target, negative_slope=0.25)

    assert torch.equal(logits, overlap.similarity(queries, bases))


def test_a_slope_below_zero_passes_where_crops_overlap_only() -> None:
    angles = torch.linspace(0.1, math.pi - 0.1, 7, dtype=torch.float64, requires_grad=True)
    query = torch.stack([angles.cos(), angles.sin()], dim=1)
    base = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for overlaps, slope in ((1.0, 0.25), (0.0, 0.0)):
        wanted = torch.full((7, 1), overlaps, dtype=torch.float64)
        similar = overlap.leaky_similarity(query, base, wanted, negative_slope=0.25)
        (gradient,) = torch.autograd.grad(similar.sum(), angles, retain_graph=True)
        factor = torch.where(angles.cos() > 0, 1.0, slope)
        torch.testing.assert_close(gradient, -angles.detach().sin() * factor)


def test_a_query_opposite_to_its_only_base_is_not_stuck() -> None:
    query = torch.tensor([[-1.0, 0.1]], dtype=torch.float64, requires_grad=True)
    base, target = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)

    logits = overlap.leaky_similarity(query, base, target, negative_slope=0.1)
    loss = overlap.overlap_loss(logits, target)
    loss.backward()

    assert loss.item() == pytest.approx(-math.log(EPS), abs=2e-5)  # the value is the published one
    assert query.grad is not None
    assert query.grad[0, 1] != 0
    after = overlap.cosines((query - 1e-9 * query.grad).detach(), base)
    assert after.item() > overlap.cosines(query.detach(), base).item()


@pytest.mark.parametrize("seed", range(3))
def test_without_corrections_fixed_is_v2(seed: int) -> None:
    student, teacher, target = projections(seed), projections(seed + 50), targets(seed)
    published = total(terms.v2_terms(student, teacher, target))

    same = total(terms.v2_terms(student, teacher, target, negative_slope=0.0, regulariser="one_sided"))
    corrected = terms.v2_terms(student, teacher, target, negative_slope=0.1, has_all_pairs=True, regulariser="squared")

    assert torch.equal(published, same)
    gradients = [torch.autograd.grad(loss, student, retain_graph=True) for loss in (published, total(corrected))]
    assert not torch.equal(gradients[0][1], gradients[1][1])


def test_all_pairs_of_two_volumes_are_each_with_the_next() -> None:
    student, teacher, target = projections(0, batch=2), projections(50, batch=2), targets(0, batch=2)

    pairs = terms.v2_terms(student, teacher, target, has_all_pairs=True)["inter"]

    torch.testing.assert_close(pairs, terms.v2_terms(student, teacher, target)["inter"])


def test_all_pairs_of_three_volumes_are_six() -> None:
    student, teacher, target = projections(0), projections(50), targets(0)

    inter = terms.v2_terms(student, teacher, target, has_all_pairs=True)["inter"]

    expected = [
        overlap.overlap_loss(
            overlap.similarity(student[0][i], student[1][j]), overlap.similarity(teacher[0][i], teacher[1][j])
        )
        for i in range(3)
        for j in range(3)
        if i != j
    ]
    assert len(expected) == 6
    torch.testing.assert_close(inter, torch.stack(expected).mean())


def test_a_single_volume_has_no_other() -> None:
    student, teacher, target = projections(0, batch=1), projections(50, batch=1), targets(0, batch=1)

    assert terms.v2_terms(student, teacher, target, has_all_pairs=True)["inter"].item() == 0


def test_between_volumes_a_student_that_equals_its_teacher_is_at_rest() -> None:
    student = projections(0)

    inter = terms.v2_terms(student, student, targets(0), has_all_pairs=True)["inter"]

    assert inter.item() == pytest.approx(-2e-6, abs=1e-8)
    assert all(not gradient.any() for gradient in torch.autograd.grad(inter, student))


@pytest.mark.parametrize(
    ("vectors", "squared"),
    [
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], 0.0),
        ([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], 1.0),
        (THIRDS, 1 / 3),
        ([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]], 1 / 6),
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], 0.0),
    ],
)
def test_the_symmetric_regulariser_has_the_published_value(vectors: list[list[float]], squared: float) -> None:
    bases = torch.tensor(vectors, dtype=torch.float64)

    assert overlap.squared_regulariser(bases).item() == pytest.approx(squared, abs=1e-12)
    torch.testing.assert_close(overlap.squared_regulariser(bases), overlap.one_sided_regulariser(bases))


def test_the_symmetric_regulariser_moves_both_of_each_pair() -> None:
    """Of each pair 2/3 cos (q_j - cos q_i) on q_i and the reverse on q_j.

    Pair (0, 1), cos 1/2: (0, r/3) on q_0 and ((1, 0) - (1/2, r) / 2) / 3 = (1/4, -r/6) on q_1. Pair (1, 2), cos r:
    (-1/4, r/6) on q_1 and 2/3 r ((1/2, r) - r (0, 1)) = (r/3, 0) on q_2. With r = sqrt(3) / 2; q_1 is in balance.
    """
    bases = torch.tensor(THIRDS, dtype=torch.float64, requires_grad=True)

    overlap.squared_regulariser(bases).backward()

    expected = torch.tensor([[0.0, ROOT / 3], [0.0, 0.0], [ROOT / 3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(bases.grad, expected)


@pytest.mark.parametrize("loss", [overlap.touched_loss, overlap.squared_overlap_loss])
def test_the_target_is_the_best_prediction(loss: type) -> None:
    target = targets(0)
    for size in (1e-3, 0.1, 0.5):
        noise = size * torch.randn(target.shape, generator=generator(1), dtype=torch.float64)
        assert (loss((target + noise).clamp(0, 1), target) > loss(target, target)).all()


def test_mean_number_of_touched_base_crops() -> None:
    """A crop touches two cells along an axis unless it is aligned: (2 - 2/128)^2 = 3.94 on the published grid."""
    starts = torch.arange(128)
    offsets = torch.cartesian_prod(starts, starts, torch.zeros(1, dtype=torch.int64))

    touched = (overlap.overlap_fractions(offsets, (3, 3, 1), (64, 64, 64)) > 0).sum(dim=1).double().mean()

    assert touched.item() == pytest.approx((2 - 2 / 128) ** 2)
