"""The geometry gate: what is accepted sits where its header says, everything else has a name."""

import pickle
import random
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import SeriesPart, group_headers, mcd_mm
from medssl_cli.formats.nifti import read_nifti, write_nifti
from medssl_cli.imaging.geometry import corner_displacement_mm
from tests.dicom_factory import SERIES_UID, ct_series, edit, fake_header, group, load, refusal_code


def test_slices_are_ordered_by_position_not_by_instance_number(tmp_path):
    series = ct_series(tmp_path, positions_mm=[10, 0, 15, 5])  # the voxel value is its height in mm

    assert load(series).volume.voxels[0, 0, 0, :].tolist() == [0, 5, 10, 15]


def test_the_order_of_the_input_changes_nothing(tmp_path):
    series = ct_series(tmp_path)

    assert pickle.dumps(group(series)) == pickle.dumps(group(reversed(series)))


def test_the_affine_is_the_analytic_one(tmp_path):
    part = group(ct_series(tmp_path, positions_mm=[0, 5, 10, 15], spacing_mm=(0.9, 0.7)))[0][0]

    # Rows run along LPS x, columns along LPS y: RAS turns both signs. Written at RAS (40, 30, 0).
    expected = [[-0.9, 0, 0, 40], [0, -0.7, 0, 30], [0, 0, 5, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(part.affine, expected, atol=1e-9)
    assert part.mcd_mm <= 1e-9


def test_warnings_name_what_is_odd_but_harmless(tmp_path):
    series = ct_series(tmp_path)
    edit(series[2], ImagePositionPatient=[-40, -30, 10.02])
    edit(series[4], InstanceNumber=9)
    for path in series:
        edit(path, PatientID="anon")

    (part,) = group(series)[0]

    assert part.warnings == ("W_NO_PATIENT_KEY", "W_INSTANCE_GAP", "W_SLICE_JITTER")
    assert part.identity.patient is None
    assert part.mcd_mm == pytest.approx(0.02)


CORRUPTIONS = {
    "E_MISSING_SLICES": lambda series: series.pop(2),
    "E_SPACING_NOT_UNIFORM": lambda series: edit(series[2], ImagePositionPatient=[-40, -30, 11.3]),
    "E_GEOM_MISSING": lambda series: edit(series[2], ImagePositionPatient=None),
    "E_SPACING_INVALID": lambda series: edit(series[2], PixelSpacing=[0, 0.9]),
    "E_PIXEL_SPACING_VARIES": lambda series: edit(series[2], PixelSpacing=[0.8, 0.9]),
    "E_IOP_NOT_ORTHONORMAL": lambda series: edit(series[2], ImageOrientationPatient=[1.01, 0, 0, 0, 1.01, 0]),
    "E_ORIENTATION_VARIES": lambda series: edit(series[2], ImageOrientationPatient=[0, 1, 0, 0, 0, 1]),
    "E_FRAME_OF_REFERENCE_VARIES": lambda series: edit(series[2], FrameOfReferenceUID="1.2.3"),
    "E_PATIENT_MIX": lambda series: edit(series[2], PatientID="P2"),
    "E_DUP_SOP_CONFLICT": lambda series: edit(series[2], SOPInstanceUID=f"{SERIES_UID}.1"),
    "E_DUP_POSITION": lambda series: edit(series[2], ImagePositionPatient=[-40, -30, 5]),
    "E_GEOMETRY_INEXACT": lambda series: edit(series[2], ImagePositionPatient=[-39.8, -30, 10]),
    "E_TOO_FEW_SLICES": lambda series: series.__delitem__(slice(3, None)),
}


@pytest.mark.parametrize("code", CORRUPTIONS)
def test_one_wrong_slice_refuses_the_series_by_name(tmp_path, code):
    series = ct_series(tmp_path)
    CORRUPTIONS[code](series)

    assert refusal_code(series) == code


def test_more_slices_than_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr("medssl_cli.formats.dicom.gate.MAX_SLICES", 6)

    assert len(group_headers([fake_header(k) for k in range(6)])[0]) == 1
    assert group_headers([fake_header(k) for k in range(7)])[1][0].code == "E_TOO_BIG"


def test_a_slice_of_another_matrix_refuses_the_series(tmp_path):
    series = [*ct_series(tmp_path / "a"), *ct_series(tmp_path / "b", positions_mm=[25], size=(5, 6))]
    edit(series[-1], SOPInstanceUID=f"{SERIES_UID}.99")

    assert refusal_code(series) == "E_MATRIX_VARIES"


def test_two_stacks_of_different_matrix_are_two_images(tmp_path):
    first, second = ct_series(tmp_path / "a"), ct_series(tmp_path / "b", size=(5, 6))
    for number, path in enumerate(second):
        edit(path, SOPInstanceUID=f"{SERIES_UID}.{number + 100}")

    parts, refusals = group(first + second)

    assert refusals == []
    assert sorted(part.identity.series for part in parts) == [f"{SERIES_UID}#p0", f"{SERIES_UID}#p1"]


@pytest.mark.parametrize("degrees", [0.5, 5.0, 20.0])
def test_gantry_tilt_is_refused_with_its_angle(tmp_path, degrees):
    heights = [0, 20, 40, 60, 80]
    series = ct_series(tmp_path, positions_mm=heights)
    for path, height in zip(series, heights, strict=True):
        edit(path, ImagePositionPatient=[-40, -30 + round(height * np.tan(np.radians(degrees)), 9), height])

    parts, (refusal,) = group(series)

    assert (parts, refusal.code) == ([], "E_GANTRY_TILT")
    assert f"{degrees:.1f} degrees" in refusal.message


def test_a_tenth_of_a_milliradian_in_one_slice_is_harmless(tmp_path):
    series = ct_series(tmp_path)
    edit(series[2], ImageOrientationPatient=[1, 1e-4, 0, -1e-4, 1, 0])

    (part,) = group(series)[0]

    # The far corner lies 5 columns of 0.9 mm and 4 rows of 0.7 mm from the position.
    assert part.mcd_mm == pytest.approx(1e-4 * np.hypot(5 * 0.9, 4 * 0.7), rel=1e-3)


def test_the_same_bytes_twice_are_one_slice(tmp_path):
    series = ct_series(tmp_path)
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(series[0].read_bytes())

    parts, (duplicate,) = group([*series, copy])

    assert len(parts[0].headers) == 5
    assert (duplicate.code, len(duplicate.files)) == ("DUPLICATE", 1)


@pytest.mark.parametrize(
    ("attribute", "first", "second"),
    [("AcquisitionNumber", 1, 2), ("TemporalPositionIdentifier", 1, 2), ("EchoTime", 2.3, 4.6)],
)
def test_phases_become_parts_of_one_grid(tmp_path, attribute, first, second):
    series = _two_phases(tmp_path, attribute, (first, second))

    parts, refusals = group(series)

    assert refusals == []
    assert [len(part.headers) for part in parts] == [5, 5]
    assert [{getattr(header, attribute) for header in part.headers} for part in parts] == [{first}, {second}]
    assert [part.identity.series for part in parts] == [f"{SERIES_UID}#p0", f"{SERIES_UID}#p1"]


def test_phases_of_unequal_length_are_refused(tmp_path):
    series = _two_phases(tmp_path, "AcquisitionNumber", (1, 2))

    assert refusal_code(series[:-1]) == "E_DUP_POSITION"


def test_a_localizer_is_set_aside_and_the_rest_accepted(tmp_path):
    series = ct_series(tmp_path)
    edit(series[4], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])

    parts, (refusal,) = group(series)

    assert [len(part.headers) for part in parts] == [4]
    assert (refusal.code, refusal.files) == ("S_LOCALIZER", [series[4]])


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "S_SECONDARY_CAPTURE"),
        ({"BurnedInAnnotation": "YES"}, "E_BURNED_IN"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "E_MOSAIC_UNSUPPORTED"),
    ],
)
def test_pictures_that_are_no_slices_are_named(tmp_path, attributes, code):
    series = ct_series(tmp_path)
    for path in series:
        edit(path, **attributes)

    assert refusal_code(series) == code


@pytest.mark.parametrize("seed", range(150))
def test_mutated_files_are_refused_by_code_or_still_in_place(tmp_path, seed):
    series = ct_series(tmp_path)
    draw = random.Random(seed)
    content = bytearray(series[2].read_bytes())
    for _ in range(draw.choice([1, 2, 4])):
        at = draw.randrange(132, len(content) - 60)
        kind = draw.randrange(4)
        if kind == 0:
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            content[at : at + 4] = draw.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]).to_bytes(4, "little")
        elif kind == 2:
            del content[at : at + draw.randrange(1, 40)]
        else:
            content[at:at] = content[at : at + draw.randrange(1, 40)]
    series[2].write_bytes(content)

    try:
        image = load(series)
    except InputError as refused:
        assert refused.code in CODES  # noqa: PT017 - which code depends on the mutation
    else:
        (part,) = group(series)[0]
        assert image.volume.shape == (6, 5, 5)
        assert _worst_error_mm(part) <= 0.10


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_clean_oblique_series_are_accepted_with_their_own_affine(data):
    headers, affine = _oblique(data)

    parts, refusals = group_headers(data.draw(st.permutations(headers)))

    assert refusals == []
    assert parts[0].mcd_mm <= 1e-3
    assert corner_displacement_mm(parts[0].affine, affine, (64, 48, len(headers))) <= 1e-3


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_one_corrupt_number_is_refused_or_harmless(data):
    headers, _ = _oblique(data)
    field, count = data.draw(
        st.sampled_from([("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)])
    )
    victim = data.draw(st.integers(0, len(headers) - 1))
    place = data.draw(st.integers(0, count - 1))
    values = list(getattr(headers[victim], field))
    values[place] = data.draw(
        st.one_of(
            st.floats(-1e3, 1e3),
            st.floats(-1, 1).map(lambda change: values[place] + change),
            st.floats(-1e-3, 1e-3).map(lambda change: values[place] + change),
            st.just(-values[place]),
        )
    )
    headers[victim] = replace(headers[victim], **{field: tuple(values)})

    parts, refusals = group_headers(headers)

    assert len(parts) + len(refusals) == 1
    for refusal in refusals:
        assert refusal.code in CODES
        assert len(refusal.files) == len(headers)
    for part in parts:
        assert _worst_error_mm(part) <= 0.10
        assert mcd_mm(part.headers, part.affine) == pytest.approx(_worst_error_mm(part), abs=1e-9)


def _worst_error_mm(part: SeriesPart) -> float:
    """Independent of the gate: PS3.3 C.7.6.2.1.1, equation 1, for the corners of each slice on its own."""
    worst = 0.0
    for k, header in enumerate(part.headers):
        x, y = header.ImageOrientationPatient[:3], header.ImageOrientationPatient[3:]
        row_mm, column_mm = header.PixelSpacing
        for i in (0, header.Columns - 1):
            for j in (0, header.Rows - 1):
                place = [
                    header.ImagePositionPatient[axis] + x[axis] * column_mm * i + y[axis] * row_mm * j
                    for axis in range(3)
                ]
                ras = np.array([-place[0], -place[1], place[2], 1.0])
                worst = max(worst, float(np.linalg.norm(part.affine @ [i, j, k, 1] - ras)))
    return worst


def _oblique(data):
    """Headers of a random oblique series with numbers as a scanner prints them (8 decimals), and its affine."""
    matrix = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=9, max_size=9))).reshape(3, 3)
    rotation, _ = np.linalg.qr(matrix + 3 * np.eye(3))
    rotation *= np.sign(np.linalg.det(rotation))
    spacing = data.draw(st.tuples(st.floats(0.3, 3), st.floats(0.3, 3), st.floats(0.5, 8)))
    origin = np.array(data.draw(st.tuples(*[st.floats(-500, 500)] * 3)))
    count = data.draw(st.integers(4, 12))
    lps = np.eye(4)
    lps[:3, :3] = rotation * spacing
    lps[:3, 3] = origin
    headers = [
        fake_header(
            k,
            ImagePositionPatient=tuple(np.round(lps[:3] @ [0, 0, k, 1], 8)),
            ImageOrientationPatient=tuple(np.round([*rotation[:, 0], *rotation[:, 1]], 8)),
            PixelSpacing=(round(spacing[1], 8), round(spacing[0], 8)),
        )
        for k in range(count)
    ]
    return headers, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _two_phases(folder: Path, attribute: str, values: tuple[float, float]) -> list[Path]:
    series = []
    for phase, value in enumerate(values):
        for number, path in enumerate(ct_series(folder / str(phase))):
            instance = phase * 5 + number + 1
            edit(path, **{attribute: value, "SOPInstanceUID": f"{SERIES_UID}.{instance}", "InstanceNumber": instance})
            series.append(path)
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in series}) == 10
    return series


@pytest.mark.parametrize("lean_mm", [0.0, 0.02, 0.06, 0.09])
@pytest.mark.parametrize("size", [(6, 5), (400, 300)], ids=["narrow", "wide"])
def test_what_is_accepted_of_a_leaning_stack_can_be_written_as_nifti(tmp_path, size, lean_mm):
    series = ct_series(tmp_path / "ct", size=size, spacing_mm=(2.0, 2.0))
    for number, path in enumerate(series):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x + lean_mm / 4 * number, y, z])
    volume = load(series).volume

    write_nifti(tmp_path / "a.nii.gz", volume.voxels[0], volume.affine)

    assert np.allclose(nib.load(tmp_path / "a.nii.gz").affine, volume.affine, atol=1e-4)
    place = read_nifti(tmp_path / "a.nii.gz").image.volume.affine
    assert corner_displacement_mm(place, volume.affine, volume.shape) <= 0.1
