"""The way back from a grid in blocks and slabs: the voxels are those of the slow way, wherever the cuts are."""

import itertools

import numpy as np
import pytest

from medssl_cli.imaging import restoring
from medssl_cli.imaging.geometry import Affine, Shape, reorient_to_ras
from medssl_cli.imaging.placement import GridPlacement
from medssl_cli.imaging.restoring import RestoredLabels, RestoredMasks, restore_labels, restore_masks
from medssl_cli.imaging.segment import segment_volume
from medssl_cli.imaging.separable import planes, shared_axes
from medssl_cli.imaging.tiling import gaussian_weights, tile_starts
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing
from tests.itk_sampler import itk_resampled
from tests.placements import gridded, placed
from tests.windows import sliding_window

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (2.0, 0.9, 0.6)]
SHAPE = (11, 9, 7)
RULE = Preprocessing(zscore=True, spacing_mm=(1.5, 1.5, 1.5))


def stored_affine(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]) -> Affine:
    affine = np.zeros((4, 4))
    for world in range(3):
        affine[world, order[world]] = signs[world] * spacing[world]
    affine[:, 3] = (10, -20, 30, 1)
    return affine


def placement_for(affine: Affine, shape: Shape = SHAPE) -> GridPlacement:
    grid = gridded(Volume(np.zeros((1, *shape), np.float32), affine), RULE)
    return placed(grid.affine, grid.shape, affine, shape)


def logits_for(placement: GridPlacement, num: int = 4, *, seed: int = 0, has_ties: bool = False) -> np.ndarray:
    logits = 5 * np.random.default_rng(seed).standard_normal((num, *placement.shape), dtype=np.float32)
    return np.round(logits) if has_ties else logits


def interpolated(logits: np.ndarray, placement: GridPlacement) -> np.ndarray:
    """Logits `[K, X, Y, Z]` in the axes of RAS, by ITK."""
    target = placement.box_affine, placement.box_shape
    return np.stack([itk_resampled(channel, placement.content_affine, *target) for channel in logits])


def in_ras(answer: np.ndarray, placement: GridPlacement) -> np.ndarray:
    whole = answer if answer.ndim == 4 else answer[None]
    return reorient_to_ras(whole, placement.source_affine)[0]


def add_in_slabs(restored: RestoredLabels | RestoredMasks, logits: np.ndarray, along: int, lengths: list[int]) -> None:
    """Give planes along an axis as `rolling_window` does: each slab begins with the last plane of the one before."""
    turned = np.moveaxis(logits, along + 1, 1)
    begin, ends = 0, itertools.cycle(lengths)
    while begin < turned.shape[1]:
        end = min(begin + next(ends), turned.shape[1])
        first = max(begin - 1, 0)
        restored.add(first, turned[:, first:end].copy())
        begin = end


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("along", [0, 1, 2])
def test_slabs_change_no_voxel_in_any_of_48_orientations(spacing: tuple[float, ...], along: int) -> None:
    for number, (order, signs) in enumerate(ORIENTATIONS):
        placement = placement_for(stored_affine(order, signs, spacing))
        logits = logits_for(placement, seed=number, has_ties=number % 2 == 0)
        expected = interpolated(logits, placement)
        labels, masks = RestoredLabels(placement, along=along), RestoredMasks(placement, 4, along=along)

        add_in_slabs(labels, logits, along, [1, 3, 2])
        add_in_slabs(masks, logits, along, [4, 1])

        np.testing.assert_array_equal(in_ras(labels.answer, placement)[0], expected.argmax(axis=0))
        np.testing.assert_array_equal(in_ras(masks.answer, placement), expected > 0)


@pytest.mark.parametrize("has_ties", [False, True])
def test_blocks_change_no_voxel(has_ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "BLOCK_PLANES", 3)
    monkeypatch.setattr(restoring, "BLOCK_WIDTH", 4)
    monkeypatch.setattr(restoring, "BLOCK_VOXELS", 30)
    monkeypatch.setattr(restoring, "VOXELS_AT_ONCE", 5)
    for seed in range(3):
        spacing = tuple(np.random.default_rng(seed).uniform(0.4, 4, 3).tolist())
        placement = placement_for(np.diag([*spacing, 1.0]), (23, 19, 17))
        logits = logits_for(placement, 5, seed=seed, has_ties=has_ties)
        expected = interpolated(logits, placement)

        np.testing.assert_array_equal(restore_labels(logits, placement), expected.argmax(axis=0))
        np.testing.assert_array_equal(restore_masks(logits, placement), expected > 0)


def test_what_cannot_win_is_not_interpolated_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    placement = placement_for(np.diag([0.7, 0.7, 0.7, 1.0]), (40, 30, 30))
    logits = np.full((50, *placement.shape), -20, dtype=np.float32)
    logits[0] = 3
    logits[7, 4:9, 4:9, 4:9] = 9
    asked: list[int] = []
    interpolate = restoring.Block.interpolated

    def spy(block: restoring.Block, number: int) -> np.ndarray:
        asked.append(int(number))
        return interpolate(block, number)

    monkeypatch.setattr(restoring.Block, "interpolated", spy)

    labels = restore_labels(logits, placement)

    np.testing.assert_array_equal(labels, interpolated(logits, placement).argmax(axis=0))
    assert set(np.unique(labels)) == {0, 7}
    assert set(asked) <= {0, 7}


def test_decisions_closer_than_rounding_are_taken_in_double_precision() -> None:
    # Between two voxels at 0 and 1 the classes differ by one unit in the last place of a large number: in single
    # precision, what is interpolated from them is mostly equal.
    placement = placement_for(np.diag([0.4, 0.4, 0.4, 1.0]), (50, 40, 30))
    large = logits_for(placement, 1, seed=1)[0] + np.float32(1000)
    logits = np.stack([large, np.nextafter(large, np.float32(2000)), np.nextafter(large, np.float32(0))])
    logits[:, ::2] = logits[::-1, ::2]

    labels = restore_labels(logits, placement)

    np.testing.assert_array_equal(labels, interpolated(logits, placement).argmax(axis=0))


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_answer_lies_in_memory_as_its_image_does(order: str) -> None:
    voxels = np.asarray(np.random.default_rng(0).integers(0, 100, (1, *SHAPE)), dtype=np.int16, order=order)
    image = Volume(voxels, np.diag([-1.0, 1.0, 2.0, 1.0]))
    window = Preprocessing(window_hu=(0.0, 100.0))

    for activation in ("softmax", "sigmoid"):
        answer = segment_volume(
            lambda tiles: np.concatenate([0 * tiles, tiles - 0.5], axis=1),
            image,
            preprocessing=window,
            tile=(4, 4, 4),
            overlap=0.5,
            activation=activation,
        )
        mask = answer if answer.ndim == 3 else answer[1]
        assert (mask.flags.c_contiguous, mask.flags.f_contiguous) == (order == "C", order == "F")
        np.testing.assert_array_equal(mask, voxels[0] > 50)


@pytest.mark.parametrize("along", [0, 1, 2])
@pytest.mark.parametrize("memory", list(itertools.permutations(range(3))), ids=str)
def test_images_are_resampled_along_any_axis_to_the_same_bits(along: int, memory: tuple[int, ...]) -> None:
    affine, target = np.diag([0.8, 1.1, 2.5, 1.0]), np.diag([1.5, 0.6, 1.5, 1.0])
    voxels = np.random.default_rng(1).integers(-1000, 1000, SHAPE).astype(np.int16)
    stored = np.ascontiguousarray(voxels.transpose(memory)).transpose(np.argsort(memory))
    shape = (7, 17, 13)

    axes = shared_axes(np.linalg.inv(affine) @ target, SHAPE, shape)

    parts = [plane[0].copy() for plane in planes(stored[None], axes, along=along)]

    np.testing.assert_array_equal(np.stack(parts, axis=along), itk_resampled(voxels, affine, target, shape))


@pytest.mark.parametrize("along", [0, 1, 2])
def test_planes_come_once_and_in_order_whatever_they_come_along(along: int) -> None:
    voxels = np.random.default_rng(0).normal(size=(1, 13, 9, 11)).astype(np.float32)

    def blurred(tiles: np.ndarray) -> np.ndarray:
        return np.concatenate([tiles, tiles + np.roll(tiles, 1, axis=2)], axis=1)

    plain = sliding_window(blurred, voxels, tile=(6, 4, 5), overlap=0.5)
    turned = sliding_window(blurred, voxels, tile=(6, 4, 5), overlap=0.5, along=along)

    np.testing.assert_allclose(turned, plain, rtol=1e-5, atol=1e-6)


def test_along_x_tiles_are_added_in_the_order_of_the_tiles() -> None:
    """The sums are those of one array for all of the grid, to the last bit."""
    tile = (6, 4, 5)
    voxels = np.random.default_rng(0).normal(size=(1, 13, 9, 11)).astype(np.float32)
    total, norm = np.zeros((1, 13, 9, 11), np.float32), np.zeros((13, 9, 11), np.float32)
    for start in tile_starts((13, 9, 11), tile, 0.6):
        box = tuple(slice(low, low + size) for low, size in zip(start, tile, strict=True))
        total[(slice(None), *box)] += np.sin(3 * voxels[(slice(None), *box)]) * gaussian_weights(tile)
        norm[box] += gaussian_weights(tile)

    found = sliding_window(lambda tiles: np.sin(3 * tiles), voxels, tile=tile, overlap=0.6)

    np.testing.assert_array_equal(found, total / norm)
