"""Losses on unlabelled images against the published numbers, and against the equations written out slowly."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medssl_cli.base.classes import IGNORE
from medssl_cli.nn.momentum import exponential_ramp, warm_momentum
from medssl_cli.nn.pseudo_labels import entropy, probabilities
from medssl_cli.nn.voxel_losses import DiceRule, LossTerms, voxel_losses
from medssl_cli.unlabelled.bcp import only
from medssl_cli.unlabelled.mean_teacher import consistency
from medssl_cli.unlabelled.uamt import FLOOR, entropy_limit, sure_consistency
from tests.parity.unlabelled_literal import (
    copy_paste_loss,
    divergence,
    mean_squared,
    published_mixture,
    published_volume_mixture,
    uncertain,
    waves,
)

A, B = waves(np.sin, 4, 8), waves(np.cos, 4, 8, factor=1.5)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def labels(shape: tuple[int, ...], *, every: int, classes: int) -> np.ndarray:
    """Place of each voxel within its image, divided and taken modulo."""
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers // every % classes


def flat(*shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits, outside and inside labels and the box of the vector of 2D images."""
    box = np.zeros((6, 6), dtype=bool)
    box[1:5, 1:5] = True
    return (
        2 * waves(np.sin, 2, 4, 6, 6),
        labels((2, 6, 6), every=1, classes=4),
        labels((2, 6, 6), every=5, classes=4),
        box,
    )


def test_the_mean_teacher_has_the_published_values() -> None:
    """Vector 23; float32 within."""
    assert mean_squared(A, B) == pytest.approx(0.01469069, abs=1e-8)
    assert divergence(A, B) == pytest.approx(0.48418520, abs=1e-8)
    assert float(consistency(tensor(A), tensor(B), "softmax")) == pytest.approx(0.01469069, abs=1e-7)
    assert float(consistency(tensor(A), tensor(B), "softmax", "kl")) == pytest.approx(0.48418520, abs=1e-6)
    assert exponential_ramp(10, 40) == pytest.approx(0.06005467, abs=1e-8)
    assert exponential_ramp(20, 40) == pytest.approx(0.28650480, abs=1e-8)
    assert exponential_ramp(0, 40) == pytest.approx(0.00673795, abs=1e-8)


def test_a_warm_teacher_begins_as_the_student() -> None:
    assert [warm_momentum(updates, limit=0.99) for updates in (0, 1, 3)] == [0.0, 0.5, 0.75]
    assert warm_momentum(1000, limit=0.99) == 0.99
    assert [warm_momentum(updates, limit=0.99, pace=20) for updates in (0, 20, 1980, 2000)] == [0.0, 0.5, 0.99, 0.99]


def test_only_voxels_that_the_teacher_is_sure_of_count() -> None:
    """Vector 24."""
    student, teacher = 2 * waves(np.sin, 2, 2, 3, 3), 2 * waves(np.cos, 2, 2, 3, 3, factor=1.5)
    passes = [3 * waves(np.sin, 2, 2, 3, 3, factor=1 + 0.3 * i) for i in range(8)]
    literal = uncertain(student, teacher, passes, 100, 400)
    assert literal[0] == pytest.approx(0.53026707, abs=1e-8)
    assert literal[1] == pytest.approx(0.65324055, abs=1e-8)
    assert literal[2] == 2
    assert literal[3] == pytest.approx(0.03760914, abs=1e-8)

    limit = entropy_limit(100 / 400, 2, "softmax")
    mean = torch.stack([probabilities(tensor(logits), "softmax") for logits in passes]).mean(dim=0)
    unsure = entropy(mean, "softmax", floor=FLOOR)
    loss, used = sure_consistency(tensor(student), tensor(teacher), unsure, limit, "softmax")

    assert limit == pytest.approx(0.53026707, abs=1e-8)
    assert float(unsure.mean()) == pytest.approx(0.65324055, abs=1e-6)
    assert float(used) == pytest.approx(2 / 18)
    assert float(loss) == pytest.approx(0.03760914, abs=1e-7)


def test_where_the_teacher_is_sure_of_nothing_nothing_is_lost() -> None:
    student = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)

    loss, used = sure_consistency(student, torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4), 0.5, "softmax")
    loss.backward()

    assert (float(loss.detach()), float(used)) == (0.0, 0.0)
    assert student.grad is not None
    assert not student.grad.any()


def test_published_copy_paste_of_2d_images() -> None:
    """Vector 25: the literal equations have its values, and our cross-entropy is theirs."""
    logits, outside, inside, box = flat()
    expected = {(0.5, 1.0): (1.04467824, 3.37012422), (1.0, 0.5): (1.08176563, 3.58871867)}
    for weights, (dice, cross_entropy) in expected.items():
        found = published_mixture(logits, outside, inside, box, weights)
        assert found == pytest.approx((dice, cross_entropy), abs=1e-8)
        ours = sum(
            weight * float(masked(logits, own, mask)["cross_entropy"])
            for weight, own, mask in zip(weights, (outside, inside), (~box, box), strict=True)
        )
        assert ours == pytest.approx(cross_entropy, abs=1e-5)
    found = published_mixture(0 * logits, outside, inside, box, (1.0, 0.5))
    assert found == pytest.approx((0.90129419, 2.07944154), abs=1e-8)
    assert found[1] == pytest.approx(1.5 * math.log(4))


def masked(logits: np.ndarray, own: np.ndarray, mask: np.ndarray, rule: DiceRule = "batch") -> dict[str, Tensor]:
    """Our loss over a part of an image, with background among the structures of Dice."""
    values, goal = tensor(logits), tensor(own)
    if values.ndim == 4:
        values, goal, mask = values[..., None], goal[..., None], mask[..., None]
    counted = tensor(np.broadcast_to(mask, goal.shape))
    return voxel_losses(values, only(goal, counted), LossTerms(rule, include_background=True))


@pytest.mark.parametrize(("weights", "expected"), [((1.0, 0.5), 1.25071615), ((0.5, 1.0), 1.40578818)])
def test_published_copy_paste_of_volumes_is_the_loss_of_samples(weights: tuple[float, float], expected: float) -> None:
    """Vector 26: with `dice: sample` and background among the structures, ours is the released loss."""
    box = np.zeros((4, 4, 4), dtype=bool)
    box[1:3, 1:3, 0:2] = True
    logits = 2 * waves(np.sin, 2, 2, 4, 4, 4)
    outside, inside = labels((2, 4, 4, 4), every=1, classes=2), labels((2, 4, 4, 4), every=3, classes=2)

    ours = 0.0
    for weight, own, mask in zip(weights, (outside, inside), (~box, box), strict=True):
        parts = masked(logits, own, mask, "sample")
        ours += weight * float(parts["cross_entropy"] + parts["dice"]) / 2

    assert published_volume_mixture(logits, outside, inside, box, weights) == pytest.approx(expected, abs=1e-8)
    assert ours == pytest.approx(expected, abs=1e-5)


def test_our_copy_paste_is_the_loss_of_the_task_over_each_kind_of_label() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 5, 4, 3))
    true, pseudo = (rng.integers(0, 4, (3, 5, 4, 3)) for _ in range(2))
    is_true = rng.random((3, 5, 4, 3)) < 0.6

    total = 0.0
    for own, mask, weight in ((true, is_true, 1.0), (pseudo, ~is_true, 0.5)):
        parts = voxel_losses(tensor(logits), only(tensor(own), tensor(mask)))
        total += weight * float(parts["cross_entropy"] + parts["dice"])

    assert total == pytest.approx(copy_paste_loss(logits, true, pseudo, is_true, 0.5), abs=1e-5)


def test_a_part_without_voxels_costs_nothing() -> None:
    goal = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    nothing = only(goal, torch.zeros(2, 4, 4, 4, dtype=torch.bool))

    parts = voxel_losses(logits, nothing)

    assert (nothing == IGNORE).all()
    assert {name: float(part) for name, part in parts.items()} == {"cross_entropy": 0.0, "dice": 0.0}
