"""Sinkhorn codes: worked numbers, what must not change them, and how many prototypes a batch can carry."""

import math

import pytest
import torch
from torch import Tensor

from medssl_cli.nn.clusters.sinkhorn import entropy_floor, most_prototypes, queue_length, sinkhorn_codes

SCORES = torch.tensor([[0.9, 0.1, -0.2], [0.8, 0.2, 0], [-0.1, 0.7, 0.3], [0, 0.6, 0.5]], dtype=torch.float64)


def random_scores(rows: int = 16, prototypes: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(rows, prototypes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def rounded(row: list[float]) -> Tensor:
    return torch.tensor(row, dtype=torch.float64)


def test_worked_example() -> None:
    """Plain exponentials and divisions in float64, carried out apart from this code; all digits that were printed."""
    expected = rounded(
        [
            [0.99997455, 0.00002109, 0.00000436],
            [0.99709951, 0.00114829, 0.00175220],
            [0.00000000, 0.97281176, 0.02718824],
            [0.00000000, 0.08146596, 0.91853404],
        ]
    )

    codes = sinkhorn_codes(SCORES)

    torch.testing.assert_close(codes, expected, rtol=0, atol=6e-9)
    # Three iterations do not make the prototypes equal, fifty do.
    torch.testing.assert_close(codes.mean(0), rounded([0.499269, 0.263862, 0.236870]), rtol=0, atol=6e-7)
    converged = sinkhorn_codes(SCORES, num_iterations=50)
    torch.testing.assert_close(converged.mean(0), torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(converged[1], rounded([0.349566, 0.262361, 0.388074]), rtol=0, atol=6e-7)


@pytest.mark.parametrize(
    ("epsilon", "num_iterations", "first_row"),
    [(0.05, 1, [0.999993, 0.000006, 0.000001]), (0.5, 3, [0.649912, 0.184114, 0.165973])],
)
def test_worked_example_with_other_settings(epsilon: float, num_iterations: int, first_row: list[float]) -> None:
    codes = sinkhorn_codes(SCORES, epsilon=epsilon, num_iterations=num_iterations)

    torch.testing.assert_close(codes[0], rounded(first_row), rtol=0, atol=6e-7)


@pytest.mark.parametrize("num_iterations", [1, 3, 10])
def test_codes_are_distributions_without_gradient(num_iterations: int) -> None:
    codes = sinkhorn_codes(random_scores().requires_grad_(), num_iterations=num_iterations)

    torch.testing.assert_close(codes.sum(dim=1), torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-15)
    assert (codes >= 0).all()
    assert not codes.requires_grad


@pytest.mark.parametrize("num_iterations", [1, 2, 3])
def test_what_a_prototype_adds_to_all_scores_does_not_count(num_iterations: int) -> None:
    scores, added = random_scores(), random_scores(1, 5, seed=1)

    torch.testing.assert_close(
        sinkhorn_codes(scores + added, num_iterations=num_iterations),
        sinkhorn_codes(scores, num_iterations=num_iterations),
    )


def test_what_an_image_adds_to_all_scores_counts_until_the_codes_converge() -> None:
    added = random_scores(4, 1, seed=1)

    def change(num_iterations: int) -> float:
        shifted = sinkhorn_codes(SCORES + added, epsilon=0.5, num_iterations=num_iterations)
        return float((shifted - sinkhorn_codes(SCORES, epsilon=0.5, num_iterations=num_iterations)).abs().max())

    assert change(3) > 1e-4
    assert change(200) < 1e-12


def test_order_of_images_and_prototypes_does_not_matter() -> None:
    scores = random_scores()
    rows = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    columns = torch.randperm(5, generator=torch.Generator().manual_seed(2))

    torch.testing.assert_close(sinkhorn_codes(scores[rows][:, columns]), sinkhorn_codes(scores)[rows][:, columns])


def test_scores_that_say_nothing_give_uniform_codes() -> None:
    uniform = torch.full((16, 5), 1 / 5, dtype=torch.float64)

    torch.testing.assert_close(sinkhorn_codes(torch.full_like(uniform, 0.3)), uniform)
    # Equal images, whatever they look like, must be spread over all prototypes: after one iteration already.
    torch.testing.assert_close(sinkhorn_codes(random_scores(1).expand(16, 5), num_iterations=1), uniform)


def test_no_image_gets_more_of_a_prototype_than_its_share() -> None:
    codes = sinkhorn_codes(random_scores(3, 12), epsilon=0.5, num_iterations=500)

    assert codes.max() <= 3 / 12 * (1 + 1e-9)


def test_small_epsilon_neither_overflows_nor_underflows() -> None:
    # exp(1 / 0.01) is beyond float32, and after subtraction of the largest score exp(-2 / 0.01) is 0 in it.
    codes = sinkhorn_codes(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), epsilon=0.01)

    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_half_precision_scores_are_assigned_in_float32(dtype: torch.dtype, bound: float) -> None:
    """The rounding of the scores is all that is lost: up to 3e-3 and 4e-4 in the published trial."""
    embeddings = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    scores = unit[:64] @ unit[64:].T

    codes = sinkhorn_codes(scores.to(dtype))

    assert codes.dtype == torch.float32
    assert float((codes - sinkhorn_codes(scores.to(dtype).float())).abs().max()) == 0
    assert 0 < float((codes - sinkhorn_codes(scores)).abs().max()) < bound


def test_both_published_settings_keep_one_ratio() -> None:
    # 3000 prototypes for 4096 images at once, and for 256 with a queue of 3840
    assert most_prototypes(4096) == most_prototypes(256 + 3840) == 3000
    assert queue_length(3000, 4096) == 0
    assert queue_length(3000, 256) == 3840
    # 12 volumes carry 12 * 3000 / 4096 = 8.8 prototypes
    assert most_prototypes(12) == 8
    assert most_prototypes(1) == 1


@pytest.mark.parametrize("num_prototypes", [1, 7, 32, 256, 3000])
@pytest.mark.parametrize("batch", [1, 8, 12, 100])
def test_a_queue_of_that_length_is_whole_batches_and_enough(num_prototypes: int, batch: int) -> None:
    queue = queue_length(num_prototypes, batch)

    assert queue % batch == 0
    assert most_prototypes(batch + queue) >= num_prototypes
    assert queue == 0 or most_prototypes(queue) < num_prototypes or num_prototypes == 1


def test_too_many_prototypes_leave_a_loss_that_training_cannot_remove() -> None:
    assert entropy_floor(3000, 12) == pytest.approx(5.521, abs=5e-4)
    assert entropy_floor(64, 12) == pytest.approx(1.674, abs=5e-4)
    assert entropy_floor(12, 12) == entropy_floor(3, 12) == 0
    # and converged codes obey it, so a prediction can at best cost their entropy
    codes = sinkhorn_codes(random_scores(12, 64), num_iterations=300)
    entropy = float(torch.special.entr(codes).sum(dim=1).mean())
    assert math.log(64 / 12) <= entropy + 1e-9
