"""Repairs: only when asked for, recorded, and right to within what a linear function allows."""

import numpy as np
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.repair import slots_of, upright
from medssl_cli.formats.policy import Policy
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import analytic_phantom, ct_series, edit, load, refusal_code, write_volume

GAPS = Policy(gaps="interpolate")
TILT = Policy(tilt="resample")


def test_a_missing_slice_is_interpolated_on_request_and_recorded(tmp_path):
    series = ct_series(tmp_path)  # the voxel value is the height in mm: 0, 5, 10, 15, 20
    series.pop(2)

    image = load(series, GAPS)

    assert image.volume.voxels[0, 0, 0].tolist() == [0, 5, 10, 15, 20]
    assert image.volume.affine[:3, 2] == pytest.approx([0, 0, 5])
    assert image.repairs == ("gaps=interpolate",)
    assert refusal_code(series) == "E_MISSING_SLICES"


def test_several_missing_slices_divide_their_gap_evenly(tmp_path):
    series = ct_series(tmp_path, positions_mm=[0, 3, 6, 15, 18, 21])

    assert load(series, GAPS).volume.voxels[0, 0, 0].tolist() == [0, 3, 6, 9, 12, 15, 18, 21]


@pytest.mark.parametrize("heights", [[0, 5, 10, 17, 22], [0, 1, 2, 3, 40]], ids=["no-multiple", "mostly-missing"])
def test_gaps_that_cannot_be_filled_stay_refused(tmp_path, heights):
    code = refusal_code(ct_series(tmp_path, positions_mm=heights), GAPS)

    assert code in ("E_SPACING_NOT_UNIFORM", "E_MISSING_SLICES")


def test_slots_count_multiples_of_the_smallest_gap():
    assert slots_of(np.array([2.0, 2.0, 4.0, 2.001])) == (0, 1, 2, 4, 5)
    assert slots_of(np.array([2.0, 2.0, 3.0])) == ()
    assert slots_of(np.array([2.0, 2.0, 2.0, 2e6])) == ()


@pytest.mark.parametrize("degrees", [-20.0, -3.0, 3.0, 20.0])
@pytest.mark.parametrize("plane", ["rows", "columns", "oblique"])
def test_a_leaning_stack_becomes_upright_and_keeps_a_linear_ramp_exactly(tmp_path, degrees, plane):
    """The value of each voxel is a linear function of its place in the world; whatever is resampled keeps it."""
    series, ramp = _leaning_ramp(tmp_path, degrees, plane)

    image = load(series, TILT)

    affine = image.volume.affine
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    index = np.indices(image.volume.shape).reshape(3, -1)
    expected = ramp(affine[:3, :3] @ index + affine[:3, 3:]).reshape(image.volume.shape)
    background = image.volume.voxels.min()
    inside = image.volume.voxels[0] != background
    assert inside.mean() > 0.3
    # The ramp is stored in whole numbers: its rounding, half a unit at most, is all that may remain.
    assert np.abs(image.volume.voxels[0][inside] - expected[inside]).max() <= 0.5 + 1e-3
    assert image.repairs == ("tilt=resample",)
    assert refusal_code(series) == "E_GANTRY_TILT"


def test_a_sphere_in_a_leaning_stack_stays_where_it_is(tmp_path):
    """Analytic phantom: the centre of mass moves by at most 0.1 mm."""
    centre = np.array([-6.2, -54.1, 85.7])
    series = _leaning(
        tmp_path,
        degrees=15.0,
        plane="rows",
        shape=(40, 44, 24),
        value=lambda world: 1000 * np.clip(12.5 - np.linalg.norm(world - centre[:, None], axis=0), 0, 1),
    )

    volume = load(series, TILT).volume

    weights = volume.voxels[0].astype(np.float64)
    index = np.array([(weights * axis).sum() for axis in np.indices(weights.shape)]) / weights.sum()
    assert np.linalg.norm(volume.affine[:3, :3] @ index + volume.affine[:3, 3] - centre) <= 0.1


def test_a_shift_by_whole_pixels_moves_voxels_and_changes_none():
    leaning = np.diag([1.0, 2.0, 3.0, 1.0])
    leaning[:3, 2] = (2.0, -2.0, 3.0)  # two columns forward and one row back per slice

    affine, step = upright(leaning, 5)

    assert step == pytest.approx((2.0, -1.0))
    # Rows are added where the stack leans to: the first row moves back by 4 rows of 2 mm.
    np.testing.assert_allclose(affine, [[1, 0, 0, 0], [0, 2, 0, -8], [0, 0, 3, 0], [0, 0, 0, 1]], atol=1e-12)


def test_gaps_and_tilt_together(tmp_path):
    series, ramp = _leaning_ramp(tmp_path, 10.0, "rows")
    del series[3]

    image = load(series, Policy(gaps="interpolate", tilt="resample"))

    index = np.indices(image.volume.shape).reshape(3, -1)
    affine = image.volume.affine
    expected = ramp(affine[:3, :3] @ index + affine[:3, 3:]).reshape(image.volume.shape)
    # A missing slice is interpolated between pixels of one index, which lie at two places: the slice in between lies
    # between them, so a linear function is still kept.
    inside = image.volume.voxels[0] != image.volume.voxels.min()
    assert np.abs(image.volume.voxels[0][inside] - expected[inside]).max() <= 0.5 + 1e-3
    assert image.repairs == ("gaps=interpolate", "tilt=resample")


def test_a_stack_that_leans_by_more_than_half_a_right_angle_is_no_gantry(tmp_path):
    series, _ = _leaning_ramp(tmp_path, 50.0, "rows")

    with pytest.raises(InputError, match="E_GANTRY_TILT"):
        load(series, TILT)


def test_a_straight_series_needs_no_repair(tmp_path):
    image = load(ct_series(tmp_path), Policy(gaps="interpolate", tilt="resample"))

    assert image.repairs == ()
    assert image.volume.voxels.dtype == np.uint8  # 0 to 20: nothing was resampled


def _leaning_ramp(folder, degrees, plane):
    gradient = np.array([3.0, -2.0, 5.0])

    def ramp(world):
        return gradient @ world + 400

    return _leaning(folder, degrees=degrees, plane=plane, shape=(20, 24, 8), value=ramp), ramp


def _leaning(folder, *, degrees, plane, shape, value):
    """A series whose slices each lie further along a direction of their own plane; values come from the world."""
    affine = analytic_phantom().affine.copy()
    if plane == "oblique":
        turn, _ = np.linalg.qr(np.array([[2.0, 0.3, 0.1], [0.2, 1.7, -0.4], [0.3, 0.2, 1.9]]))
        affine[:3, :3] = turn * np.sign(np.diag(turn)) * [0.9, 0.7, 2.5]
    columns, rows = affine[:3, 0] / 0.9, affine[:3, 1] / 0.7
    along = {"rows": rows, "columns": columns, "oblique": (rows + columns) / np.sqrt(2)}[plane]
    drift = along * 2.5 * np.tan(np.radians(degrees))
    leaning = affine.copy()
    leaning[:3, 2] += drift
    index = np.indices(shape).reshape(3, -1)
    world = leaning[:3, :3] @ index + leaning[:3, 3:]
    voxels = np.rint(value(world)).astype(np.int16).reshape(1, *shape)
    series = write_volume(folder, Volume(voxels, affine, "CT", "HU"))
    for k, path in enumerate(series):
        place = leaning[:3] @ [0, 0, k, 1]
        edit(path, ImagePositionPatient=[round(float(x), 6) for x in (-place[0], -place[1], place[2])])
    return series
