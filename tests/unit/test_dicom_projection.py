"""Projection X-rays: one item per picture, a spacing that says where it was measured, and no writing unnoticed."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import group_headers, read_headers
from medssl_cli.formats.dicom.projection import spacing_of
from medssl_cli.formats.policy import Policy
from tests.dicom_factory import ct_series, edit, edit_raw, fake_header, group, load, refusal_code

DX_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
XRAY = {
    "Modality": "DX",
    "ImagePositionPatient": None,
    "ImageOrientationPatient": None,
    "PixelSpacing": None,
}


def xray(path, values, **attributes):
    """A digital X-ray of 12 bits stored, made from a CT slice."""
    (source,) = ct_series(path.parent, positions_mm=[0])
    dataset = pydicom.dcmread(source)
    source.unlink()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DX_FOR_PRESENTATION
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{path.stem}"
    dataset.Modality = "DX"
    for name in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "FrameOfReferenceUID",
        "RescaleType",
    ):
        if name in dataset:
            delattr(dataset, name)
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    dataset.PixelData = values.astype("<u2").tobytes() + b"\0" * (values.size * 2 % 2)
    dataset.save_as(path)
    edit(path, **{"BurnedInAnnotation": "NO", "ImagerPixelSpacing": ["0.15", "0.2"], **attributes})
    return path


VALUES = np.arange(20).reshape(4, 5) * 200


def test_a_radiograph_that_keeps_no_identifiers_is_an_image_and_a_study_of_its_own(tmp_path):
    nothing = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID"))
    paths = [xray(tmp_path / f"{number}.dcm", VALUES + number, **nothing) for number in (1, 2)]

    parts, refusals = group(paths)

    assert not refusals
    assert [part.identity.patient for part in parts] == [None, None]
    assert len({part.identity.study for part in parts}) == len({part.identity.series for part in parts}) == 2
    assert all("W_NO_PATIENT_KEY" in part.warnings for part in parts)
    assert [header.Modality for part in parts for header in part.headers] == ["DX", "DX"]


def test_radiographs_whose_headers_are_all_the_same_are_no_two_images(tmp_path):
    nothing = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID"))
    paths = [xray(tmp_path / f"{number}.dcm", VALUES + number, SOPInstanceUID="1.2", **nothing) for number in (1, 2)]

    assert refusal_code(paths) == "E_DUP_SOP_CONFLICT"


MONO1, MONO2 = {"PhotometricInterpretation": "MONOCHROME1"}, {"PhotometricInterpretation": "MONOCHROME2"}


@pytest.mark.parametrize(
    ("attributes", "is_inverted", "is_doubtful"),
    [
        (MONO2, False, False),
        (MONO1, True, False),
        (MONO2 | {"PresentationLUTShape": "IDENTITY"}, False, False),
        (MONO1 | {"PresentationLUTShape": "INVERSE"}, True, False),
        (MONO2 | {"PresentationLUTShape": "INVERSE"}, True, True),
        (MONO1 | {"PresentationLUTShape": "IDENTITY"}, True, True),
        (MONO2 | {"PresentationLUTShape": "LIN OD"}, False, False),
    ],
)
def test_bright_is_bright_whichever_element_says_so(tmp_path, attributes, is_inverted, is_doubtful):
    """PS3.3 C.8.11.3: IDENTITY goes with MONOCHROME2 and INVERSE with MONOCHROME1; together they invert once."""
    image = load([xray(tmp_path / "1.dcm", VALUES, **attributes)])

    np.testing.assert_array_equal(image.volume.voxels[0, :, :, 0].T, 4095 - VALUES if is_inverted else VALUES)
    assert image.inverted == is_inverted
    assert ("W_POLARITY" in image.warnings) == is_doubtful


@pytest.mark.parametrize(
    ("attributes", "padded", "stored"),
    [
        # VALUES run from 0 to 3800 in steps of 200; what is no padding stays, inverted where the picture is.
        ({"PixelPaddingValue": 0}, [0], [0]),
        ({"PixelPaddingValue": 3800}, [3800], [0]),
        ({"PixelPaddingValue": 3800, "PixelPaddingRangeLimit": 3600}, [3600, 3800], [0, 0]),
        (MONO1 | {"PixelPaddingValue": 0}, [0], [4095 - 3800]),
        (MONO1 | {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 400}, [0, 200, 400], [4095 - 3800] * 3),
        (MONO1 | {"PixelPaddingValue": 3800}, [3800], [4095 - 3800]),
        (MONO2 | {"PresentationLUTShape": "INVERSE", "PixelPaddingValue": 0}, [0], [4095 - 3800]),
        (MONO1 | {"PixelPaddingValue": 0, "RescaleSlope": "-1", "RescaleIntercept": "4095"}, [0], [0]),
    ],
)
def test_padding_is_never_the_brightest_tissue(tmp_path, attributes, padded, stored):
    image = load([xray(tmp_path / "1.dcm", VALUES, **attributes)])

    values = image.volume.voxels[0, :, :, 0].T
    is_padding = np.isin(VALUES, padded)
    assert values[is_padding].tolist() == stored
    assert values[is_padding].max() <= values[~is_padding].min()
    no_padding = {"PixelPaddingValue": 9999, "PixelPaddingRangeLimit": 9999}
    plain = load([xray(tmp_path / "2.dcm", VALUES, **(attributes | no_padding))])
    np.testing.assert_array_equal(values[~is_padding], plain.volume.voxels[0, :, :, 0].T[~is_padding])
    assert ("W_PADDING" in image.warnings) == (not np.array_equal(values, plain.volume.voxels[0, :, :, 0].T))


def test_a_picture_of_nothing_but_padding_stays_as_it_is(tmp_path):
    image = load([xray(tmp_path / "1.dcm", VALUES * 0 + 7, PixelPaddingValue=7)])

    assert "W_PADDING" not in image.warnings
    assert image.volume.voxels.max() == 7


def test_what_places_a_projection_must_be_a_number_and_of_a_slice_does_not_matter(tmp_path):
    path = xray(tmp_path / "1.dcm", VALUES)
    (ct, *_) = ct_series(tmp_path / "ct", positions_mm=(0, 5))
    for file in (path, ct):
        edit_raw(file, "EstimatedRadiographicMagnificationFactor", "1,3")

    with pytest.raises(InputError, match=r"E_VALUE_INVALID: element \(0018,1114\)"):
        read_headers(path)
    assert read_headers(ct)[0].EstimatedRadiographicMagnificationFactor is None


def test_a_picture_is_a_volume_of_depth_1_without_a_place(tmp_path):
    image = load([xray(tmp_path / "1.dcm", VALUES)])

    assert image.volume.voxels.shape == (1, 5, 4, 1)
    np.testing.assert_array_equal(image.volume.voxels[0, :, :, 0].T, VALUES)
    # ImagerPixelSpacing is between rows, then between columns.
    np.testing.assert_array_equal(image.volume.affine, np.diag([0.2, 0.15, 1, 1]))
    assert (image.volume.modality, image.volume.units) == ("DX", "a.u.")
    assert (image.spacing_kind, image.burned_in, image.inverted, image.warnings) == ("detector", "no", False, ())


def test_each_picture_of_a_series_is_an_item(tmp_path):
    parts, refusals = group([xray(tmp_path / f"{number}.dcm", VALUES) for number in (1, 2)])

    assert refusals == []
    assert sorted(part.identity.series.partition("#")[2] for part in parts) == ["1.2.3.1", "1.2.3.2"]


@pytest.mark.parametrize("bits", [10, 12])
def test_monochrome1_and_its_mirror_image_are_the_same_picture(tmp_path, bits):
    top = 2**bits - 1
    values = np.minimum(VALUES, top)
    plain = load([xray(tmp_path / "1.dcm", values, BitsStored=bits, HighBit=bits - 1)])
    inverse = load(
        [
            xray(
                tmp_path / "2.dcm",
                top - values,
                BitsStored=bits,
                HighBit=bits - 1,
                PhotometricInterpretation="MONOCHROME1",
            )
        ]
    )

    assert inverse.volume.voxels.tobytes() == plain.volume.voxels.tobytes()
    assert inverse.volume.voxels.dtype == plain.volume.voxels.dtype
    assert (plain.inverted, inverse.inverted) == (False, True)


@pytest.mark.parametrize(
    ("values", "spacing", "kind"),
    [
        ({}, (1.0, 1.0), "unknown"),
        ({"ImagerPixelSpacing": (0.15, 0.2)}, (0.2, 0.15), "detector"),
        ({"ImagerPixelSpacing": (0.15, 0.2), "PixelSpacing": (0.15, 0.2)}, (0.2, 0.15), "detector"),
        ({"ImagerPixelSpacing": (0.15, 0.2), "PixelSpacing": (0.12, 0.16)}, (0.16, 0.12), "patient"),
        (
            {
                "ImagerPixelSpacing": (0.15, 0.2),
                "PixelSpacing": (0.15, 0.2),
                "PixelSpacingCalibrationType": "FIDUCIAL",
            },
            (0.2, 0.15),
            "patient",
        ),
        ({"PixelSpacing": (0.12, 0.16)}, (0.16, 0.12), "patient"),
        (
            {"ImagerPixelSpacing": (0.15, 0.2), "EstimatedRadiographicMagnificationFactor": 1.25},
            (0.16, 0.12),
            "patient",
        ),
    ],
    ids=["none", "imager", "repeated", "corrected", "calibrated", "pixel-only", "magnified"],
)
def test_where_the_spacing_was_measured(values, spacing, kind):
    found, found_kind = spacing_of(fake_header(0, **{**XRAY, **values}))

    assert found == pytest.approx(spacing)
    assert found_kind == kind


@pytest.mark.parametrize(
    "values",
    [
        {"PixelSpacing": (0.0, 0.1)},
        {"ImagerPixelSpacing": (-0.1, 0.1)},
        {"ImagerPixelSpacing": (0.1, 0.1), "EstimatedRadiographicMagnificationFactor": 0.0},
    ],
)
def test_an_impossible_spacing_is_refused(values):
    with pytest.raises(InputError, match="E_SPACING_INVALID"):
        spacing_of(fake_header(0, **{**XRAY, **values}))


@pytest.mark.parametrize(
    ("modality", "says", "policy", "outcome"),
    [
        ("DX", "NO", None, "no"),
        ("DX", "NO", "refuse", "no"),
        ("CR", "", None, "unknown"),
        ("MG", "", "accept", "unknown"),
        ("DX", "", "refuse", "E_BURNED_IN"),
        ("DX", "YES", None, "E_BURNED_IN"),
        ("DX", "YES", "accept", "E_BURNED_IN"),
        ("DX", "YES", "accept-risk", "accepted_risk"),
        ("US", "", None, "E_BURNED_IN"),
        ("XA", "NO", "accept", "E_BURNED_IN"),
        ("US", "NO", "accept-risk", "accepted_risk"),
    ],
)
def test_what_may_carry_writing_is_taken_by_the_rule_of_its_kind(modality, says, policy, outcome):
    header = fake_header(0, **{**XRAY, "Modality": modality, "BurnedInAnnotation": says})

    parts, refusals = group_headers([header], Policy(burned_in=policy))

    assert [part.burned_in for part in parts] + [refusal.code for refusal in refusals] == [outcome]
    assert all(("W_BURNED_IN_UNKNOWN" in part.warnings) == (outcome == "unknown") for part in parts)


def test_slices_with_declared_writing_are_refused_and_others_not_expected_to_have_any():
    headers = [fake_header(k, BurnedInAnnotation="YES") for k in range(5)]

    assert group_headers(headers)[1][0].code == "E_BURNED_IN"
    (part,), _ = group_headers([replace(header, BurnedInAnnotation="") for header in headers])
    assert part.burned_in == "not_expected"
    (part,), _ = group_headers(headers, Policy(burned_in="accept-risk"))
    assert part.burned_in == "accepted_risk"


@pytest.mark.parametrize(
    "attributes", [{"PhotometricInterpretation": "RGB"}, {"PhotometricInterpretation": "PALETTE COLOR"}]
)
def test_colour_is_refused(tmp_path, attributes):
    with pytest.raises(InputError, match="E_PHOTOMETRIC"):
        load([xray(tmp_path / "1.dcm", VALUES, **attributes)])


def test_film_loops_and_tomosynthesis_are_no_volumes():
    frames = [
        fake_header(
            k, **{**XRAY, "SOPInstanceUID": "1.2.3", "NumberOfFrames": 3, "frame": k, "BurnedInAnnotation": "NO"}
        )
        for k in range(3)
    ]

    parts, (refusal,) = group_headers(frames)

    assert (parts, refusal.code) == ([], "E_NO_PATIENT_GEOMETRY")


@pytest.mark.parametrize("modality", ["CR", "DX", "MG"])
def test_an_x_ray_in_a_secondary_capture_is_taken_at_the_risk_of_the_site_only(tmp_path, modality):
    path = xray(tmp_path / "1.dcm", VALUES, SOPClassUID=CAPTURE, Modality=modality)

    image = load([path], Policy(burned_in="accept-risk"))

    np.testing.assert_array_equal(image.volume.voxels[0, :, :, 0].T, VALUES)
    assert (image.burned_in, image.spacing_kind, image.volume.modality) == ("accepted_risk", "detector", modality)
    for burned_in in (None, "accept", "refuse"):
        with pytest.raises(InputError, match="S_SECONDARY_CAPTURE"):
            read_headers(path, Policy(burned_in=burned_in))


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"Modality": "CT"}, "S_SECONDARY_CAPTURE"),
        ({"Modality": "OT"}, "S_SECONDARY_CAPTURE"),
        ({"SOPClassUID": f"{CAPTURE}.2"}, "S_SECONDARY_CAPTURE"),
        ({"NumberOfFrames": 2}, "E_ENHANCED_UNSUPPORTED"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "S_SECONDARY_CAPTURE"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "E_PHOTOMETRIC"),
    ],
    ids=["slice", "other", "film", "frames", "screen", "colour"],
)
def test_no_other_secondary_capture_is_taken(tmp_path, attributes, code):
    path = xray(tmp_path / "1.dcm", VALUES, **{"SOPClassUID": CAPTURE, **attributes})

    with pytest.raises(InputError, match=code):
        load([path], Policy(burned_in="accept-risk"))


def test_a_saved_screen_is_a_secondary_capture(tmp_path):
    path = xray(tmp_path / "1.dcm", VALUES, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])

    assert refusal_code([path]) == "S_SECONDARY_CAPTURE"
