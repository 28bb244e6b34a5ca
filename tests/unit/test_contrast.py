"""Losses of SimCLR, MoCo, BYOL and DINO: derived numbers, values of ignorance, and what must change nothing."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.methods.byol import prediction_loss
from medssl_cli.methods.dino import next_centre, self_distillation_loss, teacher_shares
from medssl_cli.methods.moco import KeyQueue, batch_contrast, queue_contrast
from medssl_cli.nn.contrast import matched, mean_log_candidates, unit, view_contrast
from medssl_cli.nn.health import collapse_signs, spread_figures
from medssl_cli.nn.momentum import cosine_momentum, update_teacher
from medssl_cli.nn.perceptron import perceptron


def counted(*shape: int) -> Tensor:
    """0, 1, 2 ... in float64."""
    return torch.arange(math.prod(shape), dtype=torch.float64).view(shape)


A, B = counted(4, 8).sin(), (1.5 * counted(4, 8)).cos()


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 2.55656060), (0.1, 7.64405565)])
def test_contrast_of_views_has_the_derived_value(temperature: float, expected: float) -> None:
    assert view_contrast(A, B, temperature=temperature).loss.item() == pytest.approx(expected, abs=6e-9)


def test_contrast_of_views_is_the_cross_entropy_without_the_diagonal() -> None:
    vectors = unit(torch.cat([A, B]))
    scores = (vectors @ vectors.T / 0.2).fill_diagonal_(-torch.inf)
    partner = (torch.arange(8) + 4) % 8

    expected = nn.functional.cross_entropy(scores, partner)

    found = view_contrast(A, B, temperature=0.2)
    torch.testing.assert_close(found.loss, expected)
    assert found.accuracy == (scores.argmax(dim=1) == partner).double().mean()


def test_equal_views_say_nothing() -> None:
    found = view_contrast(torch.ones(4, 8).double(), torch.ones(4, 8).double(), temperature=0.1)

    assert found.loss.item() == pytest.approx(math.log(2 * 4 - 1))
    assert found.no_information.item() == pytest.approx(math.log(2 * 4 - 1))


def test_neither_lengths_nor_the_order_of_views_or_images_matter() -> None:
    order = torch.tensor([2, 0, 3, 1])
    loss = view_contrast(A, B, temperature=0.2).loss

    for first, second in [(3 * A, 0.1 * B), (B, A), (A[order], B[order])]:
        torch.testing.assert_close(view_contrast(first, second, temperature=0.2).loss, loss)


def test_other_images_of_a_patient_are_neither_attracted_nor_repelled() -> None:
    first, second = A.clone().requires_grad_(), B.clone().requires_grad_()
    patients = torch.tensor([0, 0, 1, 2])

    found = view_contrast(first, second, temperature=0.2, patients=patients)

    # Images 0 and 1 have their partner and four views of two other patients; 2 and 3 have six views beside it.
    assert found.no_information.item() == pytest.approx((math.log(5) + math.log(7)) / 2)
    scores = torch.autograd.grad(found.loss, first)[0]
    moved = B.clone()
    moved[1] = -moved[1]
    alone = view_contrast(A[[0, 2, 3]], B[[0, 2, 3]], temperature=0.2).loss
    assert scores.isfinite().all()
    anchors = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert matched(anchors, torch.tensor([0]), torch.tensor([[True, False, False, False]])).loss.item() == 0
    # Only the two anchors of image 0 would change if image 1 were there for them: leave it out and compare.
    literal = view_contrast(A[[0, 2, 3]], B[[0, 2, 3]], temperature=0.2, patients=torch.tensor([0, 1, 2])).loss
    torch.testing.assert_close(alone, literal)


def test_ignored_scores_get_no_gradient() -> None:
    scores = counted(2, 3).sin().requires_grad_()
    is_candidate = torch.tensor([[True, True, False], [False, True, True]])

    matched(scores, torch.tensor([0, 2]), is_candidate).loss.backward()

    assert scores.grad is not None
    assert (scores.grad[~is_candidate] == 0).all()
    assert (scores.grad[is_candidate] != 0).all()


def test_expected_candidates_are_those_of_the_closed_form_or_fewer() -> None:
    everyone = torch.arange(50)
    pairs = torch.arange(50) // 2

    assert mean_log_candidates(everyone, 8, per_image=2) == pytest.approx(math.log(15))
    # In a batch of all, every anchor has its partner and two views of 48 images.
    assert mean_log_candidates(pairs, 50, per_image=2) == pytest.approx(math.log(97))
    assert mean_log_candidates(pairs, 8, per_image=2) < math.log(15)


def test_contrast_with_a_queue_has_the_derived_value() -> None:
    queue = unit((0.7 * counted(8, 8)).sin().T)

    found = queue_contrast(A, B, queue, temperature=0.2)

    assert found.loss.item() == pytest.approx(5.00721878, abs=6e-9)
    assert (unit(A[0]) @ unit(B[0])).item() / 0.2 == pytest.approx(-2.59323870, abs=6e-9)
    equal = queue_contrast(torch.ones(4, 8), torch.ones(4, 8), torch.ones(6, 8) / 8**0.5, temperature=0.2)
    assert equal.loss.item() == pytest.approx(math.log(6 + 1), rel=1e-6)


def test_keys_and_queue_get_no_gradient() -> None:
    queries, keys, queue = A.clone().requires_grad_(), B.clone().requires_grad_(), unit(B).requires_grad_()

    queue_contrast(queries, keys, queue.detach(), temperature=0.2).loss.backward()
    batch_contrast(queries, keys, temperature=0.2).loss.backward()

    assert keys.grad is None
    assert queries.grad is not None
    assert queries.grad.abs().sum() > 0


def test_a_queue_holds_the_latest_keys_and_whose_they_are() -> None:
    queue = KeyQueue(8, 8).double()

    queue.push(B, torch.tensor([5, 6, 7, 8]))
    torch.testing.assert_close(queue.keys[:4], unit(B))
    assert int(queue.place) == 4
    queue.push(A, None)
    assert int(queue.place) == 0
    queue.push(2 * A, torch.tensor([1, 2, 3, 4]))

    torch.testing.assert_close(queue.keys, unit(torch.cat([A, A])))
    assert queue.patients.tolist() == [1, 2, 3, 4, -1, -1, -1, -1]
    assert int(queue.place) == 4


def test_contrast_within_the_batch_has_the_derived_values() -> None:
    both = [batch_contrast(A, B, temperature=0.2).loss, batch_contrast(B, A, temperature=0.2).loss]
    hot = [batch_contrast(A, B, temperature=1).loss, batch_contrast(B, A, temperature=1).loss]
    equal = batch_contrast(torch.ones(4, 8), torch.ones(4, 8), temperature=0.2)

    assert both[0].item() == pytest.approx(0.81354411, abs=6e-9)
    assert sum(both).item() == pytest.approx(1.99817012, abs=6e-9)
    assert sum(hot).item() == pytest.approx(5.97246612, abs=6e-9)
    assert 2 * equal.loss.item() == pytest.approx(4 * 0.2 * math.log(4))


def test_predictions_have_the_derived_values() -> None:
    others = (0.7 * counted(4, 8)).cos(), (0.9 * counted(4, 8)).sin()
    one_direction = (2 - 2 * (unit(A) * unit(B)).sum(dim=1)).mean()

    both = prediction_loss((A, others[0]), (others[1], B))

    assert one_direction.item() == pytest.approx(2.23018262, abs=6e-9)
    assert both.item() == pytest.approx(4.24916609, abs=6e-9)


def test_predictions_cost_0_to_8_whatever_their_lengths() -> None:
    assert prediction_loss((A, B), (B, A)).item() == pytest.approx(0, abs=1e-12)
    assert prediction_loss((A, B), (-B, -A)).item() == pytest.approx(8)
    torch.testing.assert_close(prediction_loss((5 * A, B), (B, 0.1 * B)), prediction_loss((A, B), (B, B)))
    many = [torch.randn(400, 256, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    assert prediction_loss((many[0], many[1]), (many[2], many[3])).item() == pytest.approx(4, abs=0.05)


def test_targets_of_predictions_get_no_gradient() -> None:
    predicted, targets = A.clone().requires_grad_(), B.clone().requires_grad_()

    prediction_loss((predicted, predicted), (targets, targets)).backward()

    assert targets.grad is None
    assert predicted.grad is not None


def test_momentum_rises_along_half_a_cosine() -> None:
    found = [cosine_momentum(step / 100, first=0.99, last=1) for step in (0, 25, 50, 100)]

    assert found == pytest.approx([0.99, 0.99146447, 0.995, 1], abs=6e-9)


def test_a_teacher_may_keep_its_own_statistics() -> None:
    student, teacher = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    student(torch.randn(8, 3) + 5)

    update_teacher(teacher, student, momentum=0.5, keeps_statistics=True)
    assert teacher.running_mean is not None
    assert student.running_mean is not None
    assert (teacher.running_mean == 0).all()
    update_teacher(teacher, student, momentum=0.5)

    assert torch.equal(teacher.running_mean, student.running_mean)


STUDENTS = list(counted(4, 3, 6).sin())
TEACHERS = list(counted(2, 3, 6).cos())


def test_self_distillation_has_the_derived_values() -> None:
    centre = torch.zeros(6, dtype=torch.float64)

    first = self_distillation_loss(STUDENTS, TEACHERS, centre)
    centre = next_centre(centre, TEACHERS)
    second = self_distillation_loss(STUDENTS, TEACHERS, centre, teacher_temperature=0.07)

    assert first.item() == pytest.approx(15.15432136, abs=6e-9)
    expected = [0.06737952, 0.08493835, 0.02440525, -0.05856592, -0.08769186, -0.03619430]
    assert centre.tolist() == pytest.approx(expected, abs=6e-9)
    assert second.item() == pytest.approx(14.88912510, abs=6e-9)


def test_equal_outputs_of_the_student_cost_the_logarithm_of_their_number() -> None:
    zeros = [torch.zeros(3, 6, dtype=torch.float64)] * 4

    loss = self_distillation_loss(zeros, TEACHERS, torch.zeros(6, dtype=torch.float64))

    assert loss.item() == pytest.approx(math.log(6))


def test_no_view_is_compared_with_itself() -> None:
    """With two views there are two terms, and each needs the other view's target."""
    centre = torch.zeros(6, dtype=torch.float64)
    own = [STUDENTS[0].clone().requires_grad_(), STUDENTS[1].clone().requires_grad_()]

    across = [
        self_distillation_loss([torch.zeros_like(own[1]), own[1]], [TEACHERS[0]], centre),
        self_distillation_loss([own[0], torch.zeros_like(own[0])], [TEACHERS[1]], centre),
    ]
    both = self_distillation_loss(own, TEACHERS, centre)

    # The first is the term of teacher 0 and student 1; the second compares with zeros: log K.
    assert across[1].item() == pytest.approx(math.log(6))
    term = -(teacher_shares(TEACHERS[1], centre, 0.04) * (own[0] / 0.1).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(both, (across[0] + term) / 2)


def test_a_constant_in_outputs_and_centre_changes_nothing() -> None:
    centre, constant = 0.1 * counted(6).sin(), counted(6).cos()

    moved = self_distillation_loss(STUDENTS, [view + constant for view in TEACHERS], centre + constant)

    torch.testing.assert_close(moved, self_distillation_loss(STUDENTS, TEACHERS, centre))


@pytest.mark.parametrize(
    "loss",
    [
        lambda first, second: view_contrast(first, second, temperature=0.5, patients=torch.tensor([0, 0, 1])).loss,
        lambda first, _: queue_contrast(first, B[:3, :4], unit(B[:3, 4:]), temperature=0.5).loss,
        lambda first, _: batch_contrast(first, B[:3, :4], temperature=0.5).loss,
        lambda first, second: prediction_loss((first, second), (A[:3, 4:], B[:3, 4:])),
        lambda first, second: self_distillation_loss([first, second], [A[:3, 4:], B[:3, 4:]], A[3, :4]),
    ],
)
def test_gradients_are_those_of_the_values(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    first, second = (vectors[:3, :4].clone().requires_grad_() for vectors in (A, B))

    assert torch.autograd.gradcheck(loss, (first, second))


def test_spread_is_1_where_projections_point_everywhere_and_0_where_they_are_equal() -> None:
    many = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))

    everywhere, nowhere = spread_figures(many), spread_figures(torch.ones(16, 32))

    assert everywhere["spread"].item() == pytest.approx(1, rel=0.02)
    assert everywhere["rank"].item() > 30
    assert nowhere["spread"].item() == pytest.approx(0, abs=1e-6)
    assert nowhere["rank"].item() == pytest.approx(1, abs=0.01)


def test_a_collapse_is_said_after_a_hundred_steps_of_it() -> None:
    def logged(spread: float, rank: float, steps: int) -> list[dict[str, float]]:
        return [{"step": step, "spread": spread, "rank": rank} for step in range(0, steps + 1, 10)]

    assert collapse_signs(logged(0.05, 20, 90)) == []
    assert collapse_signs(logged(0.5, 20, 200)) == []
    assert collapse_signs([]) == []
    (flat,) = collapse_signs(logged(0.05, 20, 100))
    assert flat == "projections of all images are nearly equal: spread 0.050 of 1"
    (line,) = collapse_signs(logged(0.5, 1.5, 100))
    assert line == "projections lie on a line: effective rank 1.50"
    assert collapse_signs([*logged(0.5, 20, 100), {"step": 110, "spread": 0.05, "rank": 20}]) == []


def test_projectors_are_built_as_published() -> None:
    def kinds(layers: nn.Sequential) -> list[str]:
        return [type(layer).__name__ for layer in layers]

    scaled = perceptron([8, 16, 4], last_norm="scaled")
    assert kinds(scaled) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert [name for name, each in scaled.named_parameters() if not each.requires_grad] == ["4.bias"]
    assert scaled[3].bias is None
    plain = perceptron([8, 16, 16, 4], last_norm="plain")
    assert kinds(plain)[-2:] == ["Linear", "BatchNorm1d"]
    assert not plain[-1].affine
    bare = perceptron([8, 16, 4], has_norms=False, last_bias=True)
    assert kinds(bare) == ["Linear", "ReLU", "Linear"]
    assert bare[0].bias is not None
    assert bare[2].bias is not None
