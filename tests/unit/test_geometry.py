"""Where voxels are: displacement in closed form, orientation without loss, one letter per axis."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl_cli.imaging.geometry import (
    Affine,
    axis_order,
    corner_displacement_mm,
    corner_indices,
    displacement_limit_mm,
    is_invertible,
    is_same_grid,
    orthonormalised,
    ras_index_affine,
    reorient_to_ras,
    spacing_mm,
)
from medssl_cli.imaging.volume import Volume
from tests.orientations import orientation_code, reorient_like

SHAPE = (3, 4, 5)
SIGNED_PERMUTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
each_orientation = pytest.mark.parametrize(("order", "signs"), SIGNED_PERMUTATIONS)
SPACING = (0.5, 2.0, 3.25)  # of the array axes; binary fractions, so that products with whole numbers are exact

coordinates = st.floats(-200, 200, allow_nan=False)
angles = st.floats(-math.pi, math.pi)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
spacings = st.tuples(*[st.floats(0.1, 10)] * 3)


def signed_affine(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...] = SPACING) -> Affine:
    """World axis w runs along array axis order[w], in direction signs[w]."""
    affine = np.zeros((4, 4))
    for world, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[axis]
    affine[:, 3] = (-7.5, 11, 42.25, 1)
    return affine


def rotation(x: float, y: float, z: float) -> np.ndarray:
    about_x = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
    about_y = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    about_z = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*(draw(angles) for _ in range(3))) * np.array(draw(spacings))
    affine[:3, 3] = [draw(coordinates) for _ in range(3)]
    return affine


def places(voxels: np.ndarray, affine: Affine) -> dict[int, tuple[float, float, float]]:
    """World place of each voxel, by its (unique) value."""
    indices = np.argwhere(np.ones(voxels.shape[1:], dtype=bool))
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    return {int(voxels[(0, *index)]): tuple(place) for index, place in zip(indices, world.tolist(), strict=True)}


def test_there_are_48_signed_permutations() -> None:
    assert len(set(SIGNED_PERMUTATIONS)) == 48


def test_corners_are_the_eight_centres_at_the_ends() -> None:
    corners = corner_indices((2, 3, 4))

    assert {tuple(column) for column in corners.T} == {(x, y, z, 1) for x in (0, 1) for y in (0, 2) for z in (0, 3)}


def test_a_translation_displaces_every_corner_by_its_length() -> None:
    moved = np.eye(4)
    moved[:3, 3] = (2, -3, 6)

    assert corner_displacement_mm(np.eye(4), moved, (9, 9, 9)) == 7  # 4 + 9 + 36 = 49


def test_a_wrong_spacing_is_worst_at_the_far_end() -> None:
    stretched = np.diag([1, 1, 1.01, 1])

    # The last of 101 slices lies at 100 mm or at 101 mm.
    assert corner_displacement_mm(np.eye(4), stretched, (5, 5, 101)) == pytest.approx(1)


@given(angle=st.floats(0, math.pi), size=st.integers(2, 300))
@settings(deadline=None)
def test_a_rotation_about_voxel_0_displaces_the_far_corner_by_a_chord(angle: float, size: int) -> None:
    turned = np.eye(4)
    turned[:3, :3] = rotation(0, 0, angle)

    # A point at radius r moves along the chord 2 r sin(angle / 2); the farthest corner has r = sqrt(2) (size - 1).
    chord = 2 * math.sqrt(2) * (size - 1) * math.sin(angle / 2)
    assert corner_displacement_mm(np.eye(4), turned, (size, size, 1)) == pytest.approx(chord, abs=1e-9)


@given(first=affines(), second=affines(), shape=shapes)
@settings(deadline=None)
def test_no_voxel_is_displaced_more_than_the_worst_corner(
    first: Affine, second: Affine, shape: tuple[int, ...]
) -> None:
    # The displacement is affine in the index, its norm is convex, and a convex function peaks at a corner of a box.
    indices = np.random.default_rng(0).uniform(0, np.array(shape) - 1, (50, 3))
    homogeneous = np.column_stack([indices, np.ones(50)])
    displacements = np.linalg.norm(((first - second) @ homogeneous.T)[:3], axis=0)

    assert displacements.max() <= corner_displacement_mm(first, second, shape) + 1e-9


def test_the_limit_is_a_tenth_of_a_millimetre_or_a_twentieth_of_the_smallest_edge() -> None:
    assert displacement_limit_mm(np.diag([5.0, 5.0, 5.0, 1.0])) == 0.10
    assert displacement_limit_mm(np.diag([5.0, 0.4, 5.0, 1.0])) == pytest.approx(0.02)


def test_grids_are_the_same_up_to_the_limit() -> None:
    grid, near, far = np.eye(4), np.eye(4), np.eye(4)  # 1 mm voxels: the limit is 0.05 mm
    near[0, 3], far[0, 3] = 0.0499, 0.0501

    assert is_same_grid(grid, near, SHAPE)
    assert not is_same_grid(grid, far, SHAPE)


@each_orientation
def test_reorientation_there_and_back_changes_nothing(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = signed_affine(order, signs)
    voxels = np.arange(2 * 60, dtype=np.int16).reshape(2, *SHAPE)

    ras, ras_affine = reorient_to_ras(voxels, affine)

    assert np.array_equal(reorient_like(ras, affine), voxels)
    assert orientation_code(ras_affine) == "RAS"
    assert np.array_equal(np.diag(ras_affine)[:3], [SPACING[axis] for axis in order])
    assert np.array_equal(reorient_to_ras(ras, ras_affine)[0], ras)


@each_orientation
def test_reorientation_moves_no_voxel_in_the_world(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = signed_affine(order, signs)
    voxels = np.arange(60).reshape(1, *SHAPE)

    assert places(*reorient_to_ras(voxels, affine)) == places(voxels, affine)


@each_orientation
def test_index_affine_says_where_each_reoriented_voxel_came_from(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    affine = signed_affine(order, signs)
    voxels = np.arange(60).reshape(1, *SHAPE)

    ras, _ = reorient_to_ras(voxels, affine)
    to_original = ras_index_affine(affine, SHAPE)

    for index in np.ndindex(ras.shape[1:]):
        source = (to_original @ [*index, 1]).astype(int)[:3]
        assert ras[(0, *index)] == voxels[(0, *source)]


@each_orientation
def test_orientation_code_names_the_direction_of_each_array_axis(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    affine = signed_affine(order, signs)

    for axis, letter in enumerate(orientation_code(affine)):
        step = affine[:3, axis]
        world = int(np.abs(step).argmax())
        assert letter == ("RAS" if step[world] > 0 else "LPI")[world]


def test_dicom_axes_without_rotation_are_lps() -> None:
    # Columns run to the patient's left, rows to the back, slices upwards: -x, -y, +z in RAS.
    assert orientation_code(np.diag([-0.7, -0.7, 3.0, 1.0])) == "LPS"


@given(affine=affines(), shape=st.tuples(*[st.integers(1, 4)] * 3))
@settings(deadline=None)
def test_oblique_volumes_go_there_and_back_too(affine: Affine, shape: tuple[int, int, int]) -> None:
    voxels = np.arange(math.prod(shape)).reshape(1, *shape)

    ras, ras_affine = reorient_to_ras(voxels, affine)

    assert sorted(axis_order(affine)[0]) == [0, 1, 2]
    assert axis_order(ras_affine) == ((0, 1, 2), (False, False, False))
    assert np.array_equal(reorient_like(ras, affine), voxels)
    before, after = places(voxels, affine), places(ras, ras_affine)
    assert all(math.dist(before[value], after[value]) < 1e-9 for value in before)


@given(affine=affines())
@settings(deadline=None)
def test_spacing_does_not_depend_on_rotation(affine: Affine) -> None:
    x, y, z = spacing_mm(affine)

    # A rotation keeps volumes: |det| is the product of the edges.
    assert x * y * z == pytest.approx(abs(np.linalg.det(affine[:3, :3])))


@given(affine=affines())
@settings(deadline=None)
def test_an_orthogonal_affine_is_its_own_nearest(affine: Affine) -> None:
    np.testing.assert_allclose(orthonormalised(affine), affine, atol=1e-9)


def test_a_shear_is_split_evenly_between_the_two_axes() -> None:
    # Unit axes at 90 - 2a degrees: the polar factor turns each by a, in opposite directions.
    a = math.radians(1)
    sheared = np.eye(4)
    sheared[:3, 0] = (math.cos(a), math.sin(a), 0)
    sheared[:3, 1] = (math.sin(a), math.cos(a), 0)

    np.testing.assert_allclose(orthonormalised(sheared), np.eye(4), atol=1e-12)


def test_what_cannot_be_inverted_is_recognised() -> None:
    flat, skew, infinite, projective = (np.eye(4) for _ in range(4))
    flat[2, 2] = 0
    skew[:3, 1] = skew[:3, 0]
    infinite[0, 3] = np.inf
    projective[3, 0] = 1

    assert is_invertible(np.diag([-0.3, 0.3, 10.0, 1.0]))
    assert not any(is_invertible(affine) for affine in (flat, skew, infinite, projective))


def test_a_volume_has_four_dimensions_and_an_affine_in_double_precision() -> None:
    volume = Volume(np.zeros((1, 2, 3, 4)), np.diag([1.0, 2.0, 3.0, 1.0]))

    assert (volume.shape, volume.spacing_mm) == ((2, 3, 4), (1, 2, 3))
    with pytest.raises(ValueError, match="3 dimensions"):
        Volume(np.zeros((2, 3, 4)), np.eye(4))
    with pytest.raises(ValueError, match="float64"):
        Volume(np.zeros((1, 2, 3, 4)), np.eye(4, dtype=np.float32))
