"""What a network sees of a volume, and how its answer finds the way back to the volume's own voxels."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medssl_cli.imaging.geometry import Affine, Shape, ras_index_affine, reorient_to_ras
from medssl_cli.imaging.placement import placement_of
from medssl_cli.imaging.preprocessing import Intensity, intensity_of
from medssl_cli.imaging.restoring import restore_labels
from medssl_cli.imaging.segment import num_calls, segment_volume
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing
from tests.itk_sampler import itk_resampled
from tests.orientations import reorient_like
from tests.placements import gridded, placed, preprocessed

WINDOW = Preprocessing(window_hu=(-100.0, 300.0))
ZSCORE = Preprocessing(zscore=True)
SPACING = (1.0, 1.5, 2.0)
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
each_orientation = pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)


def stored_affine(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...] = SPACING) -> Affine:
    """World axis w, with edge spacing[w], runs along array axis order[w] in direction signs[w]."""
    affine = np.zeros((4, 4))
    for world in range(3):
        affine[world, order[world]] = signs[world] * spacing[world]
    affine[:, 3] = (10, -20, 30, 1)
    return affine


def as_stored(ras: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same patient, written with other axes: RAS voxels `[X, Y, Z]` at the same places in the world."""
    affine = stored_affine(order, signs)
    voxels = reorient_like(ras[None], affine)
    _, ras_affine = reorient_to_ras(voxels, affine)
    affine[:3, 3] -= ras_affine[:3, 3]  # voxel (0, 0, 0) of the RAS array lies at the origin, however it is stored
    return Volume(np.ascontiguousarray(voxels), affine, "CT", "HU")


def image(seed: int = 0, shape: tuple[int, int, int] = (6, 7, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def plain(voxels: np.ndarray, spacing: tuple[float, ...] = SPACING) -> Volume:
    return Volume(voxels[None], np.diag([*spacing, 1.0]), "CT", "HU")


def threshold(tiles: np.ndarray) -> np.ndarray:
    """A network known by hand: class 1 where the input is above one half."""
    return np.concatenate([np.zeros_like(tiles), tiles - 0.5], axis=1)


def test_a_window_becomes_zero_to_one_and_clips() -> None:
    values = np.array([-1000, -100, 100, 300, 3000], dtype=np.int16).reshape(1, 5, 1, 1)

    seen = preprocessed(Volume(values, np.eye(4)), WINDOW).voxels

    assert seen.dtype == np.float32
    assert seen.ravel().tolist() == pytest.approx([0, 0, 0.5, 1, 1])


def test_z_scores_are_taken_over_what_is_not_zero() -> None:
    values = np.array([0, 0, 0, 10, 30], dtype=np.uint8).reshape(1, 5, 1, 1)  # mean 20, standard deviation 10

    seen = preprocessed(Volume(values, np.eye(4)), ZSCORE).voxels

    assert seen.ravel().tolist() == pytest.approx([-2, -2, -2, -1, 1])


def test_z_scores_of_an_empty_or_constant_image_are_finite() -> None:
    for value in (0, 7):
        seen = preprocessed(Volume(np.full((1, 2, 2, 2), value, np.uint8), np.eye(4)), ZSCORE).voxels
        assert np.array_equal(seen, np.zeros((1, 2, 2, 2)))


def test_z_scores_of_large_integers_do_not_overflow() -> None:
    values = np.full((1, 40, 40, 40), 60_000, dtype=np.uint16)
    values[:, :20] = 20_000

    rule = intensity_of(values, ZSCORE)

    assert (rule.shift, 1 / rule.scale) == pytest.approx((40_000, 20_000))


@pytest.mark.parametrize("preprocessing", [WINDOW, ZSCORE], ids=["window", "zscore"])
@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)], ids=["native", "2mm"])
def test_a_crop_through_the_training_path_equals_the_whole_through_the_other(preprocessing, spacing) -> None:
    preprocessing = preprocessing.model_copy(update={"spacing_mm": spacing})
    volume = as_stored(image(shape=(12, 10, 9)), (2, 0, 1), (-1, 1, -1))
    box = (slice(None), slice(1, 5), slice(2, 6), slice(0, 3))

    grid = gridded(volume, preprocessing)
    crop = intensity_of(grid.voxels, preprocessing).apply(grid.voxels[box])

    whole = preprocessed(volume, preprocessing)
    assert np.array_equal(crop, whole.voxels[box])
    assert np.array_equal(grid.affine, whole.affine)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_the_grid_keeps_the_meaning_of_values_and_does_not_depend_on_how_they_are_stored(dtype: str) -> None:
    volume = plain(image())

    coarse = WINDOW.model_copy(update={"spacing_mm": (2.0, 2.0, 2.0)})
    grid = gridded(replace(volume, voxels=volume.voxels.astype(dtype)), coarse)

    assert grid.voxels.dtype == np.float32
    assert np.array_equal(grid.voxels, gridded(volume, coarse).voxels)
    assert grid.spacing_mm == pytest.approx((2, 2, 2))
    assert (grid.modality, grid.units) == ("CT", "HU")
    assert volume.voxels.min() <= grid.voxels.min() <= grid.voxels.max() <= volume.voxels.max()


@each_orientation
def test_a_new_grid_is_needed_exactly_when_something_changes(order, signs) -> None:
    volume = as_stored(image(), order, signs)
    grid = gridded(volume, WINDOW)

    changes = grid.shape != volume.shape or not np.array_equal(grid.voxels, volume.voxels)

    assert placement_of([volume], WINDOW).is_identity != changes
    assert placement_of([grid], WINDOW).is_identity
    assert not placement_of([grid], WINDOW.model_copy(update={"spacing_mm": (3.0, 3.0, 3.0)})).is_identity


@each_orientation
def test_labels_return_exactly_when_only_the_orientation_changed(order, signs) -> None:
    labels = np.random.default_rng(2).integers(0, 4, (6, 7, 5)).astype(np.uint8)
    stored = as_stored(labels, order, signs)
    grid = gridded(stored, WINDOW, is_label=True)
    assert np.array_equal(grid.voxels[0], labels)
    logits = np.stack([(labels == value).astype(np.float32) for value in range(4)])

    restored = restore_labels(logits, placed(grid.affine, grid.shape, stored.affine, stored.shape))

    assert restored.dtype == np.uint8
    assert restored.flags.c_contiguous
    assert np.array_equal(restored, stored.voxels[0])


def test_of_equal_logits_the_lowest_class_wins() -> None:
    logits = np.zeros((3, 2, 2, 2), dtype=np.float32)
    logits[1:, 0] = 1

    restored = restore_labels(logits, placed(np.eye(4), (2, 2, 2), np.eye(4), (2, 2, 2)))

    assert restored[0].tolist() == [[1, 1], [1, 1]]
    assert restored[1].tolist() == [[0, 0], [0, 0]]


def test_logits_are_interpolated_before_the_largest_wins() -> None:
    # On two coarse voxels class 1 leads by 3, then trails by 1: the lead, linear between the centres 0 and 2 mm, is
    # 0 at 1.5 mm. Fine centres lie at -0.5, 0.5, 1.5 - tiny, 2.5 mm.
    logits = np.array([[0, 0], [3, -1]], dtype=np.float32).reshape(2, 2, 1, 1)
    coarse, fine = np.diag([2.0, 1, 1, 1]), np.eye(4)
    fine[0, 3] = -0.5001

    restored = restore_labels(logits, placed(coarse, (2, 1, 1), fine, (4, 1, 1)))

    assert restored.ravel().tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("spacing", [None, (1.3, 1.3, 1.3)], ids=["native", "resampled"])
def test_all_48_ways_to_store_a_volume_give_the_same_mask_in_the_world(spacing) -> None:
    index = np.stack(np.meshgrid(*[np.arange(size) for size in (14, 12, 10)], indexing="ij"))
    distance = np.linalg.norm((index.T - [6.2, 5.1, 4.3]) * SPACING, axis=-1).T
    ras = (400 - 60 * distance).astype(np.int16)
    preprocessing = Preprocessing(window_hu=(-100.0, 300.0), spacing_mm=spacing)
    masks = []
    for order, signs in ORIENTATIONS:
        volume = as_stored(ras, order, signs)
        mask = segment_volume(threshold, volume, preprocessing=preprocessing, tile=(8, 8, 8), overlap=0.5)
        assert mask.shape == volume.shape
        masks.append(reorient_to_ras(mask[None], volume.affine)[0][0])

    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    # The window's middle, 100 HU, lies 5 mm from the centre: a ball of 4/3 pi 5^3 mm3 in voxels of 3 mm3.
    assert masks[0].sum() == pytest.approx(4 / 3 * np.pi * 125 / 3, rel=0.1)


def test_segmentation_on_the_native_grid_is_the_network_itself() -> None:
    volume = plain(image(shape=(11, 9, 6)))

    mask = segment_volume(threshold, volume, preprocessing=WINDOW, tile=(8, 8, 8), overlap=0.5, mirror_axes=(0, 2))

    assert np.array_equal(mask, (volume.voxels[0] > 100).astype(np.uint8))


def test_progress_counts_every_call_and_ends_at_the_announced_number() -> None:
    volume = plain(image(shape=(11, 9, 6)))
    told: list[tuple[int, int]] = []

    segment_volume(
        threshold,
        volume,
        preprocessing=WINDOW,
        tile=(8, 8, 8),
        overlap=0.5,
        mirror_axes=(0, 1),
        progress=lambda done, total: told.append((done, total)),
    )

    # 11 and 9 voxels need two tiles of 8 each, 6 is padded to one; four mirror images of each tile.
    assert told == [(call, 16) for call in range(1, 17)]
    assert num_calls(volume.shape, (8, 8, 8), 0.5, (0, 1)) == 16


def test_an_intensity_rule_is_elementwise() -> None:
    rule = Intensity(low=-10, high=30, shift=10, scale=0.5)

    seen = rule.apply(np.array([-100, -10, 0, 10, 30, 99], dtype=np.int32))

    assert seen.tolist() == [-10, -10, -5, 0, 10, 10]


def restored_by_resample(logits: np.ndarray, grid_affine: Affine, source_affine: Affine, shape: Shape) -> np.ndarray:
    """`restore_labels` said plainly: each class resampled whole by ITK, then the largest, of equal ones the first."""
    to_ras = ras_index_affine(source_affine, shape)
    x, y, z = (int(size) for size in np.array(shape) @ np.abs(to_ras[:3, :3]))
    sampled = [itk_resampled(channel, grid_affine, source_affine @ to_ras, (x, y, z)) for channel in logits]
    return reorient_like(np.argmax(sampled, axis=0)[None], source_affine)[0].astype(np.uint8)


@pytest.mark.parametrize("seed", range(40))
def test_labels_restored_plane_by_plane_are_those_of_itk_to_the_voxel(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(int(size) for size in random.integers(1, 30, 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * random.uniform(0.3, 4, 3)
    affine[:3, 3] = random.uniform(-300, 300, 3)
    preprocessing = Preprocessing(zscore=True, spacing_mm=tuple(random.uniform(0.3, 4, 3).tolist()))
    grid = gridded(Volume(random.normal(size=(1, *shape)).astype(np.float32), affine), preprocessing)
    logits = random.normal(size=(4, *grid.shape)).astype(np.float32)
    if seed % 2:
        logits = np.round(logits)  # many ties, inside of the grid and at its border

    restored = restore_labels(logits, placed(grid.affine, grid.shape, affine, shape))

    np.testing.assert_array_equal(restored, restored_by_resample(logits, grid.affine, affine, shape))


def test_points_beyond_the_grid_take_the_nearest_voxel_as_images_do() -> None:
    # Seven voxels of 1 mm are two of 3 mm: the box of 6 mm ends before the last voxel's centre at 6.5 mm, that is
    # 1.67 voxels behind the first one's, more than half a voxel outside.
    affine = np.eye(4)
    grid = gridded(
        Volume(np.zeros((1, 7, 7, 7), np.float32), affine), Preprocessing(zscore=True, spacing_mm=(3.0,) * 3)
    )
    assert grid.shape == (2, 2, 2)
    logits = np.random.default_rng(3).normal(size=(3, 2, 2, 2)).astype(np.float32)

    restored = restore_labels(logits, placed(grid.affine, grid.shape, affine, (7, 7, 7)))

    np.testing.assert_array_equal(restored, restored_by_resample(logits, grid.affine, affine, (7, 7, 7)))
    assert restored[6, 6, 6] == logits[:, 1, 1, 1].argmax()


def test_grids_that_do_not_share_their_axes_are_refused() -> None:
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 1, degrees=True).as_matrix()

    with pytest.raises(ValueError, match="share their axes"):
        restore_labels(np.zeros((2, 4, 4, 4), np.float32), placed(turned, (4, 4, 4), np.eye(4), (8, 8, 8)))
