"""Sampling between grids: voxel edges coincide, straight lines stay straight, nothing moves by half a voxel."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from medssl_cli.imaging.geometry import Affine, spacing_mm
from medssl_cli.imaging.resample import resample, spaced_grid

RATIOS = (0.5, 0.77, 1.3, 2.0)
each_ratio = pytest.mark.parametrize("ratio", RATIOS)
OBLIQUE = np.array([[0.6, -0.8, 0, -12], [0.8, 0.6, 0, 5], [0, 0, 1, 30], [0, 0, 0, 1]], dtype=np.float64) @ np.diag(
    [1.5, 0.75, 2.0, 1.0]
)  # a 3-4-5 rotation about z with three different edges


def centres(shape: tuple[int, ...], affine: Affine) -> np.ndarray:
    """World places of the voxel centres, `[X, Y, Z, 3]`."""
    indices = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"), axis=-1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def low_corner(affine: Affine) -> np.ndarray:
    """The outer corner of voxel (0, 0, 0): half a voxel before its centre along each axis."""
    return (affine @ [-0.5, -0.5, -0.5, 1])[:3]


@each_ratio
def test_both_grids_begin_at_the_same_voxel_edge(ratio: float) -> None:
    target = tuple(ratio * edge for edge in spacing_mm(OBLIQUE))

    affine, shape = spaced_grid(OBLIQUE, (20, 30, 10), target)

    assert spacing_mm(affine) == pytest.approx(target)
    assert low_corner(affine) == pytest.approx(low_corner(OBLIQUE))
    for old, new in zip((20, 30, 10), shape, strict=True):
        assert abs(new * ratio - old) <= ratio / 2  # the far edge is off by at most half a new voxel


def test_a_grid_has_at_least_one_voxel() -> None:
    _, shape = spaced_grid(np.eye(4), (2, 2, 1), (10, 10, 10))

    assert shape == (1, 1, 1)


@each_ratio
def test_a_ramp_in_the_world_is_reproduced_exactly(ratio: float) -> None:
    slope, offset = np.array([0.25, -0.5, 1.25]), 3.0
    shape = (12, 14, 10)
    ramp = centres(shape, OBLIQUE) @ slope + offset
    affine, new_shape = spaced_grid(OBLIQUE, shape, tuple(ratio * edge for edge in spacing_mm(OBLIQUE)))

    sampled = resample(ramp[None].astype(np.float64), OBLIQUE, affine, new_shape)[0]

    # Linear interpolation is exact for a linear function where all neighbours exist: between the outermost centres.
    new_centres = centres(new_shape, affine)
    indices = (new_centres - OBLIQUE[:3, 3]) @ np.linalg.inv(OBLIQUE[:3, :3]).T
    is_inside = ((indices >= 0) & (indices <= np.array(shape) - 1)).all(axis=-1)
    assert is_inside.mean() > 0.5
    np.testing.assert_allclose(sampled[is_inside], (new_centres @ slope + offset)[is_inside], atol=1e-9)


def soft_ball(shape: tuple[int, ...], affine: Affine, centre: np.ndarray, radius_mm: float) -> np.ndarray:
    """1 inside, 0 outside, with a cosine edge 8 mm wide: smooth on the scale of the voxels."""
    distance = np.linalg.norm(centres(shape, affine) - centre, axis=-1)
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((distance - radius_mm + 4) / 8, 0, 1))


def centroid(values: np.ndarray, affine: Affine) -> np.ndarray:
    weights = values.astype(np.float64)[..., None]
    return (centres(values.shape, affine) * weights).sum(axis=(0, 1, 2)) / weights.sum()


@each_ratio
def test_a_ball_stays_where_it_is_through_resampling_there_and_back(ratio: float) -> None:
    source = np.eye(4)
    source[:3, 3] = (-20, 7, 100)
    shape = (40, 40, 40)
    centre = np.array([-0.3, 26.7, 119.6])
    ball = soft_ball(shape, source, centre, radius_mm=9).astype(np.float32)
    affine, new_shape = spaced_grid(source, shape, (ratio, ratio, ratio))

    there = resample(ball[None], source, affine, new_shape)[0]
    back = resample(there[None], affine, source, shape)[0]

    # A shift of half a voxel, the classic mistake, would be 0.25 mm or more.
    assert np.linalg.norm(centroid(there, affine) - centroid(ball, source)) <= 0.01
    assert np.linalg.norm(centroid(back, source) - centroid(ball, source)) <= 0.01


@pytest.mark.parametrize("ratio", RATIOS)
def test_linear_sampling_agrees_with_scipy(ratio: float) -> None:
    voxels = np.random.default_rng(0).normal(size=(2, 9, 11, 8))
    shape = (9, 11, 8)
    affine, new_shape = spaced_grid(OBLIQUE, shape, tuple(ratio * edge for edge in spacing_mm(OBLIQUE)))
    turn = np.array([[0.96, -0.28, 0, 0.4], [0.28, 0.96, 0, -1.1], [0, 0, 1, 0.7], [0, 0, 0, 1]])  # 7-24-25
    affine = turn @ affine

    sampled = resample(voxels, OBLIQUE, affine, new_shape)

    indices = (centres(new_shape, affine) - OBLIQUE[:3, 3]) @ np.linalg.inv(OBLIQUE[:3, :3]).T
    # The nearest voxel serves beyond half a voxel outside; up to there, the border value: "nearest" of scipy is both
    # along one axis, but not in the corners, where one axis is inside and another outside.
    is_within = ((indices >= -0.49) & (indices <= np.array(shape) - 0.51)).all(axis=-1)
    assert is_within.sum() > 20
    for channel, result in zip(voxels, sampled, strict=True):
        expected = ndimage.map_coordinates(channel, np.moveaxis(indices, -1, 0), order=1, mode="nearest")
        np.testing.assert_allclose(result[is_within], expected[is_within], atol=1e-6)


def test_far_outside_the_nearest_voxel_is_repeated() -> None:
    voxels = np.array([[[[5.0, 7.0]]]])
    affine = np.eye(4)
    affine[2, 3] = -10

    sampled = resample(voxels, np.eye(4), affine, (1, 1, 22))

    assert sampled[0, 0, 0].tolist() == [5.0] * 11 + [7.0] * 11


@each_ratio
def test_labels_take_the_value_of_the_nearest_centre_and_invent_none(ratio: float) -> None:
    labels = np.random.default_rng(1).choice(np.array([0, 3, 200], dtype=np.uint8), (1, 10, 9, 8))
    affine, shape = spaced_grid(np.eye(4), (10, 9, 8), (ratio * 1.01,) * 3)  # 1.01: no centre in the middle of two

    sampled = resample(labels, np.eye(4), affine, shape, is_label=True)

    assert sampled.dtype == np.uint8
    nearest = np.rint(centres(shape, affine)).astype(int)
    nearest = np.minimum(nearest, np.array([10, 9, 8]) - 1)
    assert np.array_equal(sampled[0], labels[0][tuple(np.moveaxis(nearest, -1, 0))])


def test_whole_number_images_are_sampled_like_the_same_numbers_as_floats() -> None:
    voxels = np.array([0, 3], dtype=np.int16).reshape(1, 2, 1, 1)
    affine, shape = spaced_grid(np.eye(4), (2, 1, 1), (0.5, 1, 1))

    sampled = resample(voxels, np.eye(4), affine, shape)

    # Centres at -0.25, 0.25, 0.75, 1.25: 0 (border), 0.75, 2.25, 3 (border).
    assert sampled.dtype == np.float32
    assert sampled.ravel().tolist() == [0, 0.75, 2.25, 3]
    assert np.array_equal(sampled, resample(voxels.astype(np.float32), np.eye(4), affine, shape))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_every_stored_kind_keeps_its_extremes(dtype: str) -> None:
    limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(np.float16)
    voxels = np.full((1, 4, 4, 4), limits.max, dtype=dtype)
    voxels[:, :2] = limits.min

    there = resample(voxels, np.eye(4), *spaced_grid(np.eye(4), (4, 4, 4), (0.5, 0.5, 0.5)))

    assert there.dtype == np.result_type(dtype, np.float32)
    assert there[0, 0, 0, 0] == limits.min
    assert there[0, -1, -1, -1] == limits.max


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float64"])
def test_values_beyond_single_precision_survive(dtype: str) -> None:
    value = 2**24 + 1  # the first whole number that float32 cannot hold
    voxels = np.full((1, 3, 3, 3), value, dtype=dtype)

    sampled = resample(voxels, np.eye(4), *spaced_grid(np.eye(4), (3, 3, 3), (0.7, 0.7, 0.7)))

    assert set(sampled.ravel().tolist()) == {value}


def test_the_same_grid_is_not_sampled_at_all() -> None:
    voxels = np.random.default_rng(0).normal(size=(1, 3, 4, 5))

    assert resample(voxels, OBLIQUE, OBLIQUE.copy(), (3, 4, 5)) is voxels


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_sampling_onto_permuted_axes_is_a_transposition(order: tuple[int, int, int]) -> None:
    voxels = np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5)
    permutation = np.zeros((4, 4))
    permutation[3, 3] = 1
    for new, old in enumerate(order):
        permutation[old, new] = 1
    shape = tuple(voxels.shape[1 + old] for old in order)

    sampled = resample(voxels, OBLIQUE, OBLIQUE @ permutation, shape)

    np.testing.assert_allclose(sampled, voxels.transpose(0, *(1 + old for old in order)), atol=1e-4)
