"""Which blocks are hidden, how they are cut out and scored; vectors 7, 8, 10, 12 and 13 of the specification."""

import pytest
import torch
from torch import Tensor

from medssl_cli.nn.backbones import spread_blocks
from medssl_cli.nn.hidden_blocks import (
    block_grid,
    choose_hidden,
    cut_blocks,
    joined_blocks,
    mean_over,
    smoothed,
    standardised_blocks,
    standardised_images,
    telling_blocks,
    visible_means,
)
from tests.masked import cosines, sines


def squared(guessed: Tensor, targets: Tensor, hidden: Tensor) -> float:
    """Mean squared distance over hidden blocks."""
    errors = (guessed - targets).square().mean(dim=2)
    return mean_over(errors, hidden[:, :, None].expand_as(errors)).item()


def some_hidden(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_vector_7_patches_of_mae() -> None:
    targets, guessed = cut_blocks(sines(2, 3, 4, 4), (2, 2)), cosines(2, 4, 4, 3)
    hidden = some_hidden([0, 1, 1, 1], [1, 0, 1, 1])
    alike = standardised_blocks(targets, jointly=True)

    assert squared(guessed, targets, hidden) == pytest.approx(0.97660199, abs=1e-8)
    assert squared(guessed, alike, hidden) == pytest.approx(1.42600360, abs=1e-8)
    assert squared(0 * guessed, alike, hidden) == pytest.approx(0.91666472, abs=1e-8)  # nearly 11 / 12


def test_vector_8_the_smallest_numbers_stay_visible() -> None:
    numbers = torch.tensor([[0.3, 0.1, 0.9, 0.5, 0.7, 0.2, 0.8, 0.4]])

    assert choose_hidden(numbers, 6)[0].logical_not().nonzero().flatten().tolist() == [1, 5]


def test_vector_10_maps_of_spark() -> None:
    targets = standardised_blocks(cut_blocks(sines(2, 3, 4, 4), (2, 2)), jointly=True)
    hidden = some_hidden([0, 1, 1, 1], [1, 0, 1, 1])

    assert squared(cut_blocks(cosines(2, 3, 4, 4), (2, 2)), targets, hidden) == pytest.approx(1.55191950, abs=1e-8)


@pytest.mark.parametrize(("channels", "expected"), [(1, 0.98743415), (2, 0.99327378)])
def test_vector_12_voxels_of_volumes(channels: int, expected: float) -> None:
    guessed, targets = cosines(2, channels, 4, 4, 4), sines(2, channels, 4, 4, 4)
    hidden = torch.ones(2, 8, dtype=torch.bool)
    hidden[0, [0, 3]] = hidden[1, [4, 5]] = False

    found = squared(cut_blocks(guessed, (2, 2, 2)), cut_blocks(targets, (2, 2, 2)), hidden)

    assert found == pytest.approx(expected, abs=1e-8)


def test_vector_13_simmim() -> None:
    hidden = some_hidden([0, 1, 1, 1], [1, 0, 1, 1])
    errors = (cut_blocks(cosines(2, 3, 4, 4), (2, 2)) - cut_blocks(sines(2, 3, 4, 4), (2, 2))).abs().mean(dim=2)

    # without the 1e-5 of the released code
    assert mean_over(errors, hidden[:, :, None].expand_as(errors)).item() == pytest.approx(0.93983868, abs=1e-8)


@pytest.mark.parametrize(("grid", "size"), [((2, 3), (4, 9)), ((2, 1, 4), (4, 5, 8))])
def test_blocks_are_cut_and_joined(grid: tuple[int, ...], size: tuple[int, ...]) -> None:
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))

    blocks = cut_blocks(images, grid)

    assert torch.equal(joined_blocks(blocks, grid, size), images)
    corner = images[(..., *(slice(0, extent // count) for extent, count in zip(size, grid, strict=True)))]
    assert torch.equal(blocks[:, 0], corner.flatten(2).transpose(1, 2))


def test_what_is_said_of_blocks_reaches_their_voxels() -> None:
    hidden = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.5

    spread = spread_blocks(hidden, (4, 9))

    assert torch.equal(cut_blocks(spread[:, None], (2, 3)).flatten(2).all(dim=2), hidden.flatten(1))
    assert spread.float().mean() == hidden.float().mean()


def test_exactly_so_many_are_hidden_in_every_image() -> None:
    numbers = torch.rand(50, 3, 4, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties

    hidden = choose_hidden(numbers, 7)

    assert hidden.shape == numbers.shape
    assert hidden.flatten(1).sum(dim=1).eq(7).all()


def test_images_and_blocks_are_standardised_channel_by_channel() -> None:
    blocks = torch.randn(2, 4, 8, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10, 100]) + 5

    alone, whole = standardised_blocks(blocks), standardised_images(blocks)

    torch.testing.assert_close(alone.mean(2), torch.zeros(2, 4, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.var(2), torch.ones(2, 4, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.var((1, 2)), torch.ones(2, 3), atol=1e-4, rtol=0)


def test_blocks_of_air_tell_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(1, 4, 64, 1, generator=generator)
    blocks[0, 1] *= 0.01
    blocks[0, 2] = -3.0

    assert telling_blocks(blocks, flat_below=0.05).flatten().tolist() == [True, False, False, True]
    assert telling_blocks(blocks, flat_below=0.0).flatten().tolist() == [True, True, False, True]


def test_nothing_that_counts_costs_nothing() -> None:
    errors = torch.full((2, 3, 1), torch.nan)

    assert mean_over(errors, torch.zeros(2, 3, 1, dtype=torch.bool)).item() == 0.0


def test_guesses_that_know_the_visible_voxels_alone() -> None:
    images = torch.full((1, 1, 8, 8), 2.0)
    hidden = some_hidden([1, 0, 0, 1]).view(1, 2, 2)
    blocks = cut_blocks(images.masked_fill(spread_blocks(hidden, (8, 8))[:, None], 99.0), (2, 2))
    under = joined_blocks(blocks, (2, 2), (8, 8))

    assert visible_means(blocks, hidden.flatten(1)).flatten().tolist() == [2.0]
    torch.testing.assert_close(smoothed(under, hidden), images)


def test_surroundings_follow_a_slope() -> None:
    slope = torch.linspace(0, 1, 24)[:, None].expand(24, 24)[None, None].contiguous()
    hidden = torch.zeros(1, 3, 3, dtype=torch.bool)
    hidden[0, 1, 1] = True

    around = smoothed(slope, hidden)[0, 0, 8:16, 8:16]

    assert (around - slope[0, 0, 8:16, 8:16]).abs().max() < 0.1
    assert around[0, 0] < around[-1, 0]


@pytest.mark.parametrize(("size", "block", "words"), [((8, 9), (4, 4), "9 along y"), ((8, 8), (1, 1), "no variance")])
def test_blocks_that_do_not_fit_are_refused(size: tuple[int, ...], block: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        block_grid(size, block)
