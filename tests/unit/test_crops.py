"""Cutting many crops at once and changing each on its own."""

import math
from itertools import product

import pytest
import torch

from medssl_cli.data.augmentation import Changes, CropChanges, draw_crop_changes, move_
from medssl_cli.data.views import crops_at, grid_crops


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crops_of_a_grid_put_together_are_the_canvas() -> None:
    canvas = torch.arange(2 * 1 * 6 * 4 * 6.0).reshape(2, 1, 6, 4, 6)

    crops = grid_crops(canvas, (3, 2, 3))

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

    drawn = draw_crop_changes(count, CropChanges(0.2, 0.2, 0.5, 0.1), generator())

    tolerance = 5 * math.sqrt(0.25 / count)
    assert drawn.is_flipped.double().mean(dim=0).tolist() == pytest.approx([0.2] * 3, abs=tolerance)
    turns = torch.bincount(drawn.quarter_turns, minlength=4).double() / count
    assert turns.tolist() == pytest.approx([0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3], abs=tolerance)
    shifted = drawn.shift[drawn.shift != 0]
    assert len(shifted) / count == pytest.approx(0.5, abs=tolerance)
    assert shifted.abs().max() <= 0.1
    assert shifted.mean().item() == pytest.approx(0, abs=0.1 * tolerance)
    assert shifted.abs().mean().item() == pytest.approx(0.05, abs=0.1 * tolerance)


def test_crops_are_changed_independently_of_one_another() -> None:
    count = 20_000
    drawn = draw_crop_changes(count, CropChanges(0.5, 0.5, 0.5, 1.0), generator())

    columns = torch.stack([*drawn.is_flipped.T, drawn.quarter_turns > 0, drawn.shift != 0]).double()
    neighbours = torch.cat([columns[:, 1:], columns[:, :-1]])
    correlations = torch.corrcoef(neighbours) - torch.eye(10)

    assert correlations.abs().max() < 6 / math.sqrt(count)


def test_a_quarter_turn_takes_x_to_y() -> None:
    crop = torch.zeros(1, 1, 3, 3, 1)
    crop[0, 0, 2, 1, 0] = 1  # on the +x side
    for turns, place in [(0, (2, 1)), (1, (1, 2)), (2, (0, 1)), (3, (1, 0))]:
        change = Changes(quarter_turns=torch.tensor([turns]))

        turned = move_(crop.clone(), change)

        assert turned[0, 0, *place, 0] == 1
