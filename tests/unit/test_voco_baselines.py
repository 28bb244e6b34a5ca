"""What VoCo's loss is worth to predictors that do not look where a crop lies."""

import math
from itertools import product

import pytest
import torch

from medssl_cli.methods import voco
from medssl_cli.methods.voco import overlap

CUBE = (64, 64, 64)
EPS = 1e-6


def test_zero_logits_cost_4_minus_a_third_of_pi_squared() -> None:
    """For shares ab with a, b uniform: 4 E[-ab log(1 - ab)] = 4 sum 1 / (k (k + 2)^2) = 4 - pi^2 / 3.

    The paper's mean over nine cells: 4/9 E[-log(1 - ab)] = 4/9 sum 1 / (k (k + 1)^2) = 4/9 (2 - pi^2 / 6).
    Odd starts are the midpoints of intervals of two voxels, so the mean over them is the midpoint rule.
    """
    midpoints = torch.arange(1, 512, 2)
    offsets = torch.cartesian_prod(midpoints, midpoints, torch.zeros(1, dtype=torch.int64))
    targets = overlap.overlap_fractions(offsets, (3, 3, 1), (512, 512, 64))
    zeros = torch.zeros_like(targets)

    assert overlap.overlap_loss(zeros, targets).item() == pytest.approx(4 - math.pi**2 / 3, abs=1e-4)
    expected = 4 / 9 * (2 - math.pi**2 / 6)
    assert overlap.uniform_overlap_loss(zeros, targets).item() == pytest.approx(expected, abs=1e-4)


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


def brute_force(logit: float, *, size: int, num_starts: int, untouched: float) -> float:
    """Overlap-weighted cost of a constant logit over all starts of a crop along both axes, plus a given other cost."""
    total = 0.0
    for x, y in product(range(num_starts), repeat=2):
        s, t = x % size / size, y % size / size
        for share in ((1 - s) * (1 - t), s * (1 - t), (1 - s) * t, s * t):  # of the up to four cells that it touches
            total += share * -math.log(1 - abs(share - logit) + EPS)
    return total / num_starts**2 + untouched


def test_v1_baselines_square_the_untouched() -> None:
    baselines = voco.trivial_losses(voco.Options(objective="v1"), (16, 16, 16))
    logits = [step / 100 for step in range(100)]

    costs = [brute_force(c, size=16, num_starts=32, untouched=c**2) for c in logits]

    assert baselines["zero_logits"] == pytest.approx(costs[0], abs=5e-6)
    assert baselines["constant_logit"] == pytest.approx(min(costs[:34]), abs=5e-6)  # 1 / sqrt(9) = 0.333
    assert baselines["collapsed"] == pytest.approx(min(c + x**2 for c, x in zip(costs, logits, strict=True)), abs=5e-6)


def test_v1_baselines_of_the_published_geometry() -> None:
    """4 x 4 cells: the best constant logit is about 0.30, which sixteen orthogonal base crops do not allow."""
    baselines = voco.trivial_losses(voco.Options(objective="v1", base_grid=(4, 4, 1)), CUBE)

    at_030, at_050 = (brute_force(c, size=64, num_starts=192, untouched=c**2) for c in (0.3, 0.5))
    assert 0.355 <= at_030 <= 0.365
    assert 0.48 <= at_050 <= 0.49
    at_025 = brute_force(0.25, size=64, num_starts=192, untouched=0.25**2)
    assert baselines["constant_logit"] == pytest.approx(at_025, abs=3e-3)  # a sample of the starts
    assert baselines["constant_logit"] > at_030


@pytest.mark.parametrize("kind", ["squared", "absolute"])
def test_fixed_baselines_count_the_last_start(kind: str) -> None:
    options = voco.Options.model_validate({"objective": "fixed", "corrections": {"regulariser": kind}})
    baselines = voco.trivial_losses(options, (16, 16, 16))
    logits = [step / 100 for step in range(100)]

    costs = [brute_force(c, size=16, num_starts=33, untouched=-math.log(1 - c + EPS)) for c in logits]

    regularisers = logits if kind == "absolute" else [c**2 for c in logits]
    assert baselines["zero_logits"] == pytest.approx(costs[0], abs=5e-6)
    assert baselines["constant_logit"] == pytest.approx(min(costs[:34]), abs=5e-6)
    assert baselines["collapsed"] == pytest.approx(min(map(sum, zip(costs, regularisers, strict=True))), abs=5e-6)
