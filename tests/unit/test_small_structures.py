"""Losses for small and thin structures: limits known by hand, slow restatements, and what they leave as it was."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medssl_cli.base.classes import IGNORE
from medssl_cli.nn.backbones import unet
from medssl_cli.nn.boundary_loss import boundary_loss, signed_distances
from medssl_cli.nn.voxel_losses import LossTerms, dice_loss, region_losses, tversky_loss, voxel_losses
from medssl_cli.tasks.segmentation.network import SegmentationNetwork, SegmentationOptions

SIZE = (5, 4, 3)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_hot(seed: int = 1) -> Tensor:
    classes = torch.randint(0, 3, (2, *SIZE), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).double()


@pytest.mark.parametrize("rule", ["batch", "sample"])
def test_tversky_of_halves_is_dice_and_other_weights_are_the_equation(rule: str) -> None:
    probabilities, target = drawn(2, 3, *SIZE).softmax(dim=1), one_hot()

    half = tversky_loss(probabilities, target, false_weight=0.5, missed_weight=0.5, rule=rule)  # type: ignore[arg-type]
    other = tversky_loss(probabilities, target, false_weight=0.3, missed_weight=0.7, rule=rule)  # type: ignore[arg-type]

    torch.testing.assert_close(half, dice_loss(probabilities, target, rule=rule))  # type: ignore[arg-type]
    indices = []
    for sample in [slice(None)] if rule == "batch" else [slice(0, 1), slice(1, 2)]:
        for structure in range(3):
            p, g = probabilities[sample, structure].numpy(), target[sample, structure].numpy()
            true, false, missed = (p * g).sum(), (p * (1 - g)).sum(), ((1 - p) * g).sum()
            indices.append((true + 5e-6) / (true + 0.3 * false + 0.7 * missed + 5e-6))
    assert float(other) == pytest.approx(1 - np.mean(indices), abs=1e-12)


def test_a_focal_entropy_weighs_voxels_by_what_is_wrong_and_of_none_is_the_plain_one() -> None:
    logits, labels = drawn(2, 3, *SIZE), one_hot().argmax(dim=1)
    labels[0, 0, 0, 0] = IGNORE

    plain = voxel_losses(logits, labels)["cross_entropy"]
    focal = voxel_losses(logits, labels, LossTerms(focus=2.0))["cross_entropy"]

    terms = []
    for place in itertools.product(range(2), *map(range, SIZE)):
        if labels[place] != IGNORE:
            values = logits[place[0], :, place[1], place[2], place[3]].float().numpy()
            probability = np.exp(values[labels[place]]) / np.exp(values).sum()
            terms.append((-((1 - probability) ** 2) * np.log(probability), -np.log(probability)))
    assert (float(focal), float(plain)) == pytest.approx(tuple(np.mean(terms, axis=0)), rel=1e-5)
    assert torch.equal(plain, voxel_losses(logits, labels, LossTerms(focus=0.0))["cross_entropy"])


def test_a_focal_entropy_of_regions_is_that_of_each_region() -> None:
    logits = drawn(1, 2, 2, 2, 1)
    regions = torch.tensor([1, 0, 1, IGNORE, 0, 0, 1, 1], dtype=torch.uint8).view(1, 2, 2, 2, 1)

    found = region_losses(logits, regions, LossTerms(focus=1.0))["binary_cross_entropy"]

    judged = [(value, truth) for value, truth in zip(logits.flatten().tolist(), regions.flatten().tolist(), strict=True)
              if truth != IGNORE]  # fmt: skip
    shares = [1 / (1 + math.exp(-value if truth else value)) for value, truth in judged]
    assert float(found) == pytest.approx(np.mean([-(1 - share) * math.log(share) for share in shares]), rel=1e-5)


def test_distances_are_those_to_the_nearest_voxel_of_the_other_kind_less_half_a_voxel() -> None:
    mask = torch.from_numpy(np.random.default_rng(0).random(SIZE) < 0.4)

    found = signed_distances(mask[None, None].float())[0, 0]

    places = np.argwhere(np.ones(SIZE, dtype=bool))
    for place in places:
        others = places[mask.numpy()[tuple(places.T)] != bool(mask[tuple(place)])]
        nearest = np.sqrt(((others - place) ** 2).sum(axis=1).min())
        expected = (0.5 - nearest) if mask[tuple(place)] else (nearest - 0.5)
        assert float(found[tuple(place)]) == pytest.approx(expected, abs=1e-6)


def test_the_boundary_loss_is_the_mean_distance_of_what_is_marked() -> None:
    target = torch.zeros(1, 1, 7, 1, 1)
    target[0, 0, 2:4] = 1  # signed distances 1.5, .5, -.5, -.5, .5, 1.5, 2.5

    def loss_of(*marked: int, judged: tuple[int, ...] = tuple(range(7))) -> float:
        probabilities, is_judged = torch.zeros_like(target), torch.zeros_like(target)
        probabilities[0, 0, list(marked)] = 1
        is_judged[0, 0, list(judged)] = 1
        return float(boundary_loss(probabilities, target, is_judged))

    assert loss_of() == 0
    assert loss_of(2, 3) == pytest.approx(-1 / 7)  # the least that there is
    assert loss_of(2, 3, 6) == pytest.approx((-1 + 2.5) / 7)
    assert loss_of(2, 3, 6, judged=(0, 1, 2, 3, 4, 5)) == pytest.approx(-1 / 6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_structure_that_is_not_there_or_fills_the_crop_has_no_boundary(value: float) -> None:
    assert not signed_distances(torch.full((1, 2, *SIZE), value)).any()


def network(**options: object) -> SegmentationNetwork:
    torch.manual_seed(0)
    backbone = unet.build(1, channels=(4, 8), strides=(1, 2), num_res_units=0)
    return SegmentationNetwork(backbone, SegmentationOptions.model_validate({"classes": ["a", "b"], **options}))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, ["cross_entropy", "dice"]),
        ({"tversky": {}}, ["cross_entropy", "tversky"]),
        ({"focus": 2.0, "boundary_weight": 0.01}, ["cross_entropy", "dice", "boundary"]),
        ({"classes": {"a": ["x", "y"], "b": ["y"]}, "tversky": {"false": 0.2, "missed": 0.8}, "boundary_weight": 1.0},
         ["binary_cross_entropy", "tversky", "boundary"]),
    ],
)  # fmt: skip
def test_a_recipe_chooses_the_terms_whose_sum_is_the_loss_and_whose_gradient_is_finite(
    options: dict[str, object], parts: list[str]
) -> None:
    task = network(**options)
    logits = task(torch.randn(2, 1, 8, 8, 8))
    targets = torch.randint(0, 3, (2, 8, 8, 8))
    if len(parts) > 0 and parts[0] == "binary_cross_entropy":
        targets = torch.stack([targets > 0, targets > 1], dim=1).to(torch.uint8)

    losses = task.loss(logits, targets)

    assert list(losses.parts) == parts
    torch.testing.assert_close(losses.total, torch.stack(list(losses.parts.values())).sum())
    losses.total.backward()
    assert all(torch.isfinite(each.grad).all() for each in task.parameters() if each.grad is not None)


def test_a_small_structure_that_is_missed_costs_more_than_with_dice() -> None:
    """One voxel of a thousand, missed: Dice and Tversky are 1 for both; half found, misses weigh more."""
    target = torch.zeros(1, 1, 10, 10, 10)
    target[0, 0, 5, 5, 4:6] = 1
    half = target.clone()
    half[0, 0, 5, 5, 4] = 0
    double = target.clone()
    double[0, 0, 5, 5, 6:8] = 1

    def cost(found: Tensor) -> float:
        return float(tversky_loss(found, target, false_weight=0.3, missed_weight=0.7))

    assert cost(half) > float(dice_loss(half, target))  # 1 - 1 / 1.7 and 1 - 2 / 3
    assert cost(double) < float(dice_loss(double, target))  # 1 - 2 / 2.6 and 1 - 4 / 6
