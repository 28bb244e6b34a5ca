"""`swin_pretext`: what is damaged, how copies turn, and what its three tasks cost without knowledge."""

import math
from typing import Any

import pytest
import torch

from medssl_cli.base.errors import UsageError
from medssl_cli.data.augmentation import Draws
from medssl_cli.methods.swin_pretext import Method
from medssl_cli.methods.swin_pretext.damage import draw_boxes, noise_like, turned
from medssl_cli.methods.swin_pretext.method import distance, turn_loss
from medssl_cli.nn.contrast import view_contrast
from tests.masked import build, cosines, images_for, sines, views_of

each_dims = pytest.mark.parametrize("dims", [2, 3])


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def method_of(dims: int, **options: Any) -> Method:
    built = build("swin_pretext", "unet", dims, side=16, **{"projection_dim": 8, **options})
    built.require_batch(2)
    assert isinstance(built, Method)
    return built


def test_vector_15_three_losses() -> None:
    labels = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    scores = sines(8, 4)
    everything = torch.ones(8, dtype=torch.bool)
    restored, true = cosines(8, 1, 2, 2, 2), sines(8, 1, 2, 2, 2)

    rotation = turn_loss(scores, labels, everything)
    contrast = view_contrast(sines(4, 8), cosines(4, 8, rate=1.5), temperature=0.5).loss
    restoration = distance(restored, true, torch.ones(8, 2, 2, 2, dtype=torch.bool))

    assert rotation.item() == pytest.approx(1.62664454, abs=1e-6)  # in float32
    assert contrast.item() == pytest.approx(2.55656060, abs=1e-8)
    assert restoration.item() == pytest.approx(0.89921520, abs=1e-6)


def test_vector_16_a_turn_about_z() -> None:
    images = torch.arange(8.0).view(1, 1, 2, 2, 2)

    assert turned(images, torch.tensor([1])).flatten().tolist() == [2, 3, 6, 7, 0, 1, 4, 5]


@each_dims
@pytest.mark.parametrize("turn", range(4))
def test_a_turn_that_is_taken_back_gives_the_image(dims: int, turn: int) -> None:
    images = torch.randn(2, 1, *[6] * dims)

    there = turned(images, torch.tensor([turn, turn]))

    assert torch.equal(turned(there, torch.tensor([-turn % 4] * 2)), images)


@each_dims
def test_boxes_count_the_share_that_was_drawn(dims: int) -> None:
    size, number = (32,) * dims, 200

    boxes = draw_boxes(size, number, draws(), most=0.3, sides=(0.05, 0.25))

    shares = boxes.flatten(1).float().mean(dim=1)
    assert boxes.shape == (number, *size)
    # A share of 0 to 0.3 is drawn, the last box goes beyond it, and overlaps count twice.
    assert 0.08 < shares.mean() < 0.2
    assert shares.max() < 0.3 + 0.25**dims
    assert not draw_boxes(size, 4, draws(), most=0.0, sides=(0.05, 0.25)).any()


def test_boxes_have_sides_of_two_voxels_at_least() -> None:
    boxes = draw_boxes((8, 8), 100, draws(), most=0.01, sides=(0.01, 0.02))

    areas = boxes.flatten(1).sum(dim=1).unique().tolist()
    assert areas == [4]


def test_noise_has_the_range_of_the_image() -> None:
    images = torch.randn(2, 1, 64, 64) * torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)

    noise = noise_like(images, torch.randn(2, 1, 64, 64))

    low, high = torch.quantile(images[1].flatten(), torch.tensor([0.005, 0.995]))
    assert noise[1].min().item() == pytest.approx(low.item(), rel=1e-4)
    assert noise[1].max().item() == pytest.approx(high.item(), rel=1e-4)


@each_dims
def test_copies_are_turned_and_damaged_here_and_there(dims: int) -> None:
    method = method_of(dims, damage=0.3)
    views = views_of(method, images_for(method))

    damaged, true, turns, can_turn, is_shown = method.copies(views)

    assert len(damaged) == len(true) == len(turns) == len(is_shown) == 4
    assert can_turn.all()
    for number in range(4):
        back = turned(true[number, None], torch.tensor([-int(turns[number]) % 4]))
        assert torch.equal(back[0], views.images[0][number % 2])
    changed = (damaged != true).float().mean()
    assert 0.02 < changed < 0.6


@each_dims
def test_every_parameter_learns(dims: int) -> None:
    method = method_of(dims)

    losses = method.loss(views_of(method, images_for(method)), 0.0)
    losses.total.backward()

    assert [name for name, each in method.named_parameters() if each.grad is None] == []
    assert sum(float(part) for part in losses.parts.values()) == pytest.approx(losses.total.item(), rel=1e-5)


def test_what_knows_nothing_costs_the_baseline() -> None:
    method = method_of(2, damage=0.0)
    images = images_for(method)
    for layer in (method.rotation, method.projector):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.ones_(layer.bias)

    losses = method.loss(views_of(method, images), 0.0)

    found = method.measured_baselines()
    assert losses.parts["rotation"].item() == pytest.approx(math.log(4))
    assert losses.parts["contrast"].item() == pytest.approx(math.log(3))
    assert found["copy"] == pytest.approx(math.log(4) + math.log(3))  # nothing is damaged
    assert found["median"] > found["copy"]


def test_turns_that_are_told_at_once_are_named() -> None:
    method = method_of(2)

    assert method.health([{"step": 4, "turns_told": 1.0}, {"step": 40, "turns_told": 1.0}]) != []
    assert method.health([{"step": 4, "turns_told": 0.5}, {"step": 40, "turns_told": 1.0}]) == []
    assert method.health([{"step": 40, "turns_told": 1.0}]) == []


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        method_of(2).require_batch(1)
    method_of(2, contrast_weight=0.0, swap=False).require_batch(1)
    module = type(method_of(2))
    other = method_of(2)
    with pytest.raises(UsageError, match="within x and y"):
        module(other.backbone, other.options, (16, 32, 1))
