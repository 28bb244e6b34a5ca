"""Spacing, crops and levels from sizes and spacings: rules known by hand."""

import math

import numpy as np
import pytest

from medssl_cli.plan.geometry import (
    SpacingChoice,
    coarsened,
    crop_and_levels,
    crop_within,
    levels_of,
    multiple_of,
    rounded_to,
    target_spacing,
)


def same(values: tuple[float, float, float], number: int = 5) -> np.ndarray:
    return np.tile(np.array(values), (number, 1))


def test_the_spacing_is_the_median_of_each_axis() -> None:
    spacings = np.array([[0.5, 0.5, 1.0], [0.7, 0.7, 1.5], [0.9, 0.9, 2.0]])

    choice = target_spacing(spacings, same((300, 300, 200), 3))

    assert choice == SpacingChoice((0.7, 0.7, 1.5), None)


def test_of_thick_slices_it_is_the_tenth_percentile_but_no_finer_than_the_other_axes() -> None:
    spacings = np.array([[1.0, 1.0, thickness] for thickness in range(1, 12)])  # median 6, 10th percentile 2

    assert target_spacing(spacings, same((200, 200, 20), 11)) == SpacingChoice((1.0, 1.0, 2.0), 2)
    assert target_spacing(spacings / [[0.25, 0.25, 1]], same((200, 200, 20), 11)).thick_axis is None  # 4, 4, 6 mm


def test_few_millimetres_in_many_slices_are_no_thick_slices() -> None:
    assert target_spacing(same((1, 1, 5)), same((200, 200, 100))).thick_axis is None


def test_an_image_of_which_a_crop_shows_a_tenth_keeps_its_spacing() -> None:
    choice = SpacingChoice((1.0, 1.0, 2.0), None)

    assert coarsened(choice, np.array([100.0, 100.0, 200.0]), 100_000, 1e6) == choice


def test_a_larger_one_becomes_coarser_along_its_finest_axes_first() -> None:
    choice = SpacingChoice((1.0, 1.0, 2.0), None)  # 200 x 200 x 50 = 2 million voxels, and a crop of 100,000

    found = coarsened(choice, np.array([200.0, 200.0, 100.0]), 100_000, 1e6)

    assert found.spacing_mm[2] == 2
    assert 1.4 <= found.spacing_mm[0] == found.spacing_mm[1] < 1.5  # half as many voxels: the square root of 2


def test_it_becomes_no_coarser_than_the_smallest_class_allows() -> None:
    choice = SpacingChoice((1.0, 1.0, 1.0), None)

    found = coarsened(choice, np.array([500.0, 500.0, 500.0]), 100_000, smallest_mm3=800.0)

    assert math.prod(found.spacing_mm) <= 800 / 200
    assert found.coarsening > 1.4


def test_a_crop_shows_all_of_a_small_image_and_a_cube_of_a_large_one() -> None:
    assert crop_within((35, 50, 36), (1, 1, 1), 200_000).tolist() == [35, 50, 36]

    x, y, z = crop_within((500, 500, 200), (1, 1, 4), 64**3 * 2).tolist()

    assert (x, y) == pytest.approx((z * 4, z * 4), rel=1e-3)
    assert x * y * z == pytest.approx(64**3 * 2, rel=1e-3)


def test_an_axis_is_halved_while_its_cells_are_less_than_twice_as_long() -> None:
    levels = levels_of((128, 128, 8), (1.5, 1.5, 10.0), first_stride=1)

    assert [level.stride for level in levels] == [(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1)]
    assert [level.kernel for level in levels][:3] == [(3, 3, 1), (3, 3, 1), (3, 3, 3)]  # 1.5, 3 and 6 against 10 mm
    assert multiple_of(levels) == (32, 32, 4)


def test_a_first_stride_of_two_leaves_full_resolution_out() -> None:
    levels = levels_of((32, 48, 32), (1, 1, 1), first_stride=2)

    assert [level.stride for level in levels] == [(2, 2, 2)] * 4  # the last map has 2 x 3 x 2 cells


@pytest.mark.parametrize("first_stride", [1, 2])
@pytest.mark.parametrize("extents", [(35, 50, 36), (216, 256, 9.5), (9, 400, 400), (20, 20, 20), (512, 512, 3)])
def test_crops_are_multiples_and_leave_the_coarsest_map_more_than_one_cell(
    extents: tuple[float, float, float], first_stride: int
) -> None:
    crop, levels = crop_and_levels(extents, (1.0, 1.0, 2.0), max_voxels=200_000, first_stride=first_stride)
    multiple = multiple_of(levels)

    assert all(size % step == 0 for size, step in zip(crop, multiple, strict=True))
    assert math.prod(crop) > math.prod(multiple)
    assert math.prod(crop) <= 2 * 200_000


def test_a_size_is_rounded_up_where_it_then_shows_everything() -> None:
    assert rounded_to((9, 35, 50), (2, 16, 16)) == (10, 32, 48)
    assert rounded_to((3, 20, 7), (8, 8)) == (8, 24, 7)
