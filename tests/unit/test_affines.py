"""Which affines are taken, straightened, resampled or refused."""

import numpy as np
import pytest

from medssl_cli.base.errors import InputError, UsageError
from medssl_cli.formats.affines import assumed_affine, placed
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.imaging.geometry import corner_displacement_mm, corner_indices, orthonormalised
from tests.orientations import orientation_code

SHAPE = (20, 16, 12)
RESAMPLE = Policy(shear="resample")
PLAIN = np.array([[1.0, 0, 0, -5], [0, 1.5, 0, 7], [0, 0, 2, 11], [0, 0, 0, 1]])


def sheared(amount: float, *, of_axis: int = 2, along: int = 1) -> np.ndarray:
    """Each step along one axis also goes `amount` mm along another one: a leaning stack."""
    affine = PLAIN.copy()
    affine[along, of_axis] = amount
    return affine


def places(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World coordinates `[3, X, Y, Z]` of all voxels."""
    return np.tensordot(affine[:3, :3], np.indices(shape), axes=1) + affine[:3, 3].reshape(3, 1, 1, 1)


def test_orthogonal_axes_are_taken_as_they_are():
    placement = placed(PLAIN, SHAPE, STRICT)

    assert placement.affine is PLAIN
    assert (placement.warnings, placement.repairs, placement.stored) == ((), (), None)


@pytest.mark.parametrize(
    ("shear_mm_per_step", "outcome"),
    [(1e-5, "taken"), (1e-3, "taken"), (4e-3, "straightened"), (0.1, "refused"), (0.3, "refused")],
)
def test_a_shear_is_judged_by_how_far_it_moves_a_corner(shear_mm_per_step, outcome):
    # Steps of 2 mm lean by shear / 2, and the polar decomposition turns both axes by half of that: a corner moves by
    # 22 mm * shear / 4 along y and 22.5 mm * shear / 4 along z, together 7.9 * shear. Taken up to 0.01 mm,
    # straightened up to 5 % of the smallest edge, which is 0.05 mm.
    affine = sheared(shear_mm_per_step)
    if outcome == "refused":
        with pytest.raises(InputError, match="E_AFFINE_SHEAR"):
            placed(affine, SHAPE, STRICT)
        return
    placement = placed(affine, SHAPE, STRICT)
    is_straight = np.array_equal(placement.affine, orthonormalised(affine))
    assert placement.warnings == (("W_AFFINE_ORTHONORMALISED",) if outcome == "straightened" else ())
    assert is_straight == (outcome == "straightened")


def test_labels_are_never_resampled():
    with pytest.raises(InputError, match="E_AFFINE_SHEAR"):
        placed(sheared(0.5), SHAPE, RESAMPLE, is_label=True)


@pytest.mark.parametrize("of_axis", range(3))
@pytest.mark.parametrize("along", range(3))
@pytest.mark.parametrize("amount", [-0.7, 0.4])
def test_resampling_keeps_every_value_where_it_was(of_axis, along, amount):
    """A value that is a linear function of its place is interpolated exactly; 1000 keeps it above what is outside."""
    if of_axis == along:
        return
    affine = sheared(amount, of_axis=of_axis, along=along)
    gradient = np.array([2.0, -3.0, 5.0]).reshape(3, 1, 1, 1)
    voxels = ((places(affine, SHAPE) * gradient).sum(axis=0) + 1000).astype(np.float64)

    placement = placed(affine, SHAPE, RESAMPLE)
    result = placement.apply(voxels)

    axes = placement.affine[:3, :3]
    assert placement.repairs == ("shear=resample",)
    assert result.shape == placement.shape
    assert np.allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-9)
    expected = (places(placement.affine, placement.shape) * gradient).sum(axis=0) + 1000
    index = np.tensordot(np.linalg.inv(affine)[:3, :3], places(placement.affine, placement.shape), axes=1)
    index += np.linalg.inv(affine)[:3, 3].reshape(3, 1, 1, 1)
    ends = np.array(SHAPE).reshape(3, 1, 1, 1)
    inside = ((index >= 0) & (index <= ends - 1)).all(axis=0)
    outside = ((index < -0.51) | (index > ends - 0.49)).any(axis=0)
    assert inside.sum() > 1000
    assert np.allclose(result[inside], expected[inside], atol=1e-3)
    assert (result[outside] == voxels.min()).all()


def test_the_upright_grid_holds_every_voxel_and_keeps_the_planes_of_a_leaning_stack():
    affine = sheared(0.7)

    placement = placed(affine, SHAPE, RESAMPLE)

    corners = (np.linalg.inv(placement.affine) @ affine @ corner_indices(SHAPE))[:3]
    assert (corners >= -1e-5).all()
    assert (corners <= np.array(placement.shape)[:, None] - 1 + 1e-5).all()
    assert placement.shape[2] == SHAPE[2]
    assert placement.affine[2, 2] == pytest.approx(2)  # planes stay 2 mm apart: z is where the lean is not
    assert np.allclose(placement.affine[:3, :2], PLAIN[:3, :2])


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_integers_are_resampled_like_the_same_numbers_as_floats(dtype):
    placement = placed(sheared(0.4), SHAPE, RESAMPLE)
    voxels = np.random.default_rng(0).integers(0, 9, SHAPE).astype(dtype)

    assert np.array_equal(placement.apply(voxels), placement.apply(voxels.astype(np.float32)))


def test_slices_that_lean_less_than_is_accepted_are_straightened_however_wide_they_are():
    """A lean of 0.09 mm over 30 mm: turning the axes by half of it would move the corners of 600 mm by 0.9 mm."""
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[0, 2] = 0.09 / 6
    shape = (300, 300, 7)

    placement = placed(affine, shape, STRICT)

    assert placement.warnings == ("W_AFFINE_ORTHONORMALISED",)
    assert corner_displacement_mm(affine, placement.affine, shape) == pytest.approx(0.09)
    assert np.allclose(placement.affine, np.diag([2.0, 2.0, 5.0, 1.0]))
    affine[0, 2] = 0.11 / 6
    with pytest.raises(InputError, match="E_AFFINE_SHEAR"):
        placed(affine, shape, STRICT)


def test_a_shear_that_needs_a_far_larger_grid_is_refused():
    affine = np.eye(4)
    affine[0, 2] = 100.0

    with pytest.raises(InputError, match="E_AFFINE_SHEAR"):
        placed(affine, (2, 2, 300), RESAMPLE)


def test_the_upright_grid_keeps_the_size_limit():
    small = Policy(shear="resample", max_volume_bytes=8 * 20 * 16 * 12)  # 64-bit numbers on the grid of the file

    with pytest.raises(InputError, match="E_TOO_BIG"):
        placed(sheared(0.7), SHAPE, small)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, 1e300, -1e10])
def test_affines_without_places_are_refused(bad):
    affine = PLAIN.copy()
    affine[1, 1] = bad

    with pytest.raises(InputError, match="E_AFFINE_INVALID"):
        placed(affine, SHAPE, RESAMPLE)


@pytest.mark.parametrize("letters", ["RAS", "LPS", "ASL", "IRP"])
def test_an_assumed_orientation_is_the_one_that_was_asked_for(letters):
    affine = assumed_affine(Policy(assume_orientation=letters), (2.0, 3.0, 4.0))

    assert orientation_code(affine) == letters
    assert np.linalg.norm(affine[:3, :3], axis=0).tolist() == [2, 3, 4]


@pytest.mark.parametrize("letters", ["", "RA", "RRS", "RLS", "ras", "RASR"])
def test_an_orientation_must_name_three_axes(letters):
    with pytest.raises(UsageError, match="E_USAGE"):
        assumed_affine(Policy(assume_orientation=letters), (1, 1, 1))


@pytest.mark.parametrize("spacing", [(1, 0, 1), (1, -1, 1), (1, np.nan, 1), (1, np.inf, 1), ()])
def test_an_assumed_orientation_needs_a_spacing(spacing):
    with pytest.raises(InputError, match="E_SPACING_INVALID"):
        assumed_affine(Policy(assume_orientation="RAS"), spacing)
    with pytest.raises(InputError, match="E_NO_ORIENTATION"):
        assumed_affine(STRICT, spacing)
