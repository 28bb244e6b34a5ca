"""Whole images as samples: nothing is cut off, proportions stay, and the order is a function of the seed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medssl_cli.cache.prepared import PreparedItem, prepare
from medssl_cli.data.augmentation import Draws, augment_images
from medssl_cli.data.loading import step_loader
from medssl_cli.data.pieces import read_pieces
from medssl_cli.data.whole import WholeDataset, collate_whole, each_loader, read_whole
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe_sections import Augmentation
from tests.finding_cache import finding_cache


def items(
    root: Path, shape: tuple[int, int, int], number: int = 3, fit: tuple[int, int] | tuple[int, int, int] | None = None
) -> list[PreparedItem]:
    cache = finding_cache(root / "cache", num_patients=number, shape=shape, images=1)
    return list(prepare(cache, cache.records(), Preprocessing(window_hu=(0, 255), fit=fit)))


def test_a_radiograph_is_a_square(tmp_path: Path) -> None:
    image = read_whole(items(tmp_path, (24, 12, 1), fit=(32, 32))[0], (32, 32, 1))

    assert image.shape == (1, 32, 32)
    outside = image.min()
    assert (image[0, :, :8] == outside).all()  # a band on either side
    assert (image[0, :, 24:] == outside).all()
    assert (image[0, :, 8:24] > outside).float().mean() > 0.9


@pytest.mark.parametrize("size", [(16, 16, 16), (24, 24, 24), (8, 16, 8), (12, 12, 40)])
def test_a_volume_fits_in_whole_and_keeps_its_proportions(tmp_path: Path, size: tuple[int, int, int]) -> None:
    item = items(tmp_path, (16, 16, 8), fit=size)[0]

    image = read_whole(item, size)

    assert image.shape == (1, *size)
    scale = min(size[0] / 16, size[1] / 16, size[2] / 8)
    is_filled = image[0] > image.min()
    filled = [int(is_filled.any(dim=tuple({0, 1, 2} - {axis})).sum()) for axis in range(3)]
    assert filled == [round(16 * scale), round(16 * scale), round(8 * scale)]
    whole = item.intensity.apply(np.full((1, 1, 1), 100, np.int16)).item()
    assert image[0][is_filled].mean() == pytest.approx(whole, rel=0.5)


def test_every_epoch_shows_every_image_once_with_its_targets(tmp_path: Path) -> None:
    prepared = items(tmp_path, (16, 16, 1), number=6)
    targets = np.arange(6, dtype=np.float32)[:, None]
    dataset = WholeDataset(prepared, targets, (16, 16, 1), batch_size=2, seed=1)

    batches = list(step_loader(dataset, collate_whole, first_step=0, num_steps=6, batch_size=2, num_workers=0))

    assert [batch.images.shape for batch in batches] == [(2, 1, 16, 16)] * 6
    shown = [float(target) for batch in batches for target in batch.targets]
    assert sorted(shown[:6]) == sorted(shown[6:]) == [0, 1, 2, 3, 4, 5]
    assert shown[:6] != shown[6:]
    ids = [item.item_id for item in prepared]
    assert [ids.index(item) for batch in batches for item in batch.item_ids] == shown
    later = list(step_loader(dataset, collate_whole, first_step=3, num_steps=6, batch_size=2, num_workers=0))
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches[3:], later, strict=True))


def test_each_image_is_shown_once_in_order_and_again(tmp_path: Path) -> None:
    prepared = items(tmp_path, (16, 16, 1), number=5)
    dataset = WholeDataset(prepared, np.zeros((5, 1), np.float32), (16, 16, 1), batch_size=2, seed=1)
    loader = each_loader(dataset, batch_size=2, num_workers=0)

    first, second = ([item for batch in loader for item in batch.item_ids] for _ in range(2))

    assert first == second == [item.item_id for item in prepared]


@pytest.mark.parametrize("shape", [(4, 1, 16, 16), (4, 1, 16, 16, 8)])
def test_augmentation_keeps_the_shape_and_changes_the_image(shape: tuple[int, ...]) -> None:
    options = Augmentation(affine_prob=1.0, rotate_degrees=20, noise_std=0.1)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))

    once, again = (augment_images(images, options, Draws(torch.Generator().manual_seed(3))) for _ in range(2))

    assert once.shape == images.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, images)


def test_a_2d_image_turns_in_its_plane_only() -> None:
    # A disc about the centre looks the same from every angle in its plane; out of it, it would become narrow.
    options = Augmentation(
        flip_prob=0, affine_prob=1, rotate_degrees=90, scale_range=(1, 1), intensity_scale=0, intensity_shift=0
    )
    grid = torch.stack(torch.meshgrid(torch.arange(33) - 16, torch.arange(33) - 16, indexing="ij")).float()
    disc = (10 - grid.norm(dim=0)).clamp(0, 1).repeat(8, 1, 1, 1)

    turned = augment_images(disc, options, Draws(torch.Generator().manual_seed(0)))

    assert (turned - disc).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((16, 16, 1), (8, 8, 1), (1, 1, 8, 8)),
        ((16, 16, 16), (8, 8, 1), (4, 1, 8, 8)),
        ((16, 16, 16), (8, 8, 8), (8, 1, 8, 8, 8)),
        ((16, 16, 8), (8, 8, 8), (4, 1, 8, 8, 8)),
        ((6, 6, 6), (8, 8, 8), (1, 1, 8, 8, 8)),
    ],
)
def test_pieces_cover_an_image(
    tmp_path: Path, shape: tuple[int, int, int], size: tuple[int, int, int], expected: tuple[int, ...]
) -> None:
    item = items(tmp_path, shape, fit=size[:2] if size[2] == 1 else None)[0]

    assert read_pieces(item, size, num_slices=4).shape == expected
