"""Multi-frame objects: every frame is placed by its functional groups, whatever the order of the frames."""

import copy

import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import read_headers
from tests.dicom_factory import analytic_phantom, group, load, refusal_code, write_volume

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
HEIGHTS_MM = (0.0, 2.5, 5.0, 7.5)


@pytest.mark.filterwarnings("ignore")
def test_a_legacy_converted_object_with_shuffled_frames_is_the_series_that_it_was(tmp_path):
    phantom = analytic_phantom()
    sources = [pydicom.dcmread(path) for path in write_volume(tmp_path / "ct", phantom)]
    np.random.default_rng(0).shuffle(sources)
    converted = LegacyConvertedEnhancedCTImage(sources, "1.2.9", 1, "1.2.9.1", 1)
    converted.save_as(tmp_path / "enhanced.dcm")
    _shuffle_frames(tmp_path / "enhanced.dcm")

    image = load([tmp_path / "enhanced.dcm"])

    np.testing.assert_array_equal(image.volume.voxels, phantom.voxels)
    np.testing.assert_allclose(image.volume.affine, phantom.affine, atol=1e-6)
    assert (image.num_files, image.volume.units) == (1, "HU")


def test_frames_say_where_they_are_and_how_they_were_made(tmp_path):
    path = _enhanced_mr(tmp_path / "a.dcm", b_values=(0, 700))
    headers = read_headers(path)

    assert [header.frame for header in headers] == list(range(8))
    assert [header.ImagePositionPatient[2] for header in headers] == [*HEIGHTS_MM, *HEIGHTS_MM]
    assert [header.DiffusionBValue for header in headers] == [0] * 4 + [700] * 4
    assert {header.ImageOrientationPatient for header in headers} == {(1, 0, 0, 0, 1, 0)}
    assert {header.PixelSpacing for header in headers} == {(1.5, 1.25)}
    first = headers[0]
    assert (first.NumberOfFrames, first.StackID, first.TemporalPositionIdentifier) == (8, "1", 2)
    assert (first.EchoTime, first.RescaleSlope, first.RescaleIntercept, first.RescaleType) == (30.5, 2, 1, "US")
    assert (first.AcquisitionTime, first.AcquisitionNumber, first.TriggerTime) == ("101502.5", 7, 120)
    assert first.ImageType == ("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE")
    assert first.acquisition.image_type == ("ORIGINAL", "PRIMARY", "DIFFUSION")
    assert (first.acquisition.echo_time_ms, first.acquisition.flip_angle_deg) == (30.5, 90)
    assert (first.acquisition.slice_thickness_mm, headers[4].acquisition.b_value) == (2, 700)


def test_diffusion_weightings_of_one_object_become_parts(tmp_path):
    parts, refusals = group([_enhanced_mr(tmp_path / "a.dcm", b_values=(0, 700))])

    assert not refusals
    assert [{header.DiffusionBValue for header in part.headers} for part in parts] == [{0}, {700}]


PLACING = {
    "PixelMeasuresSequence": {"PixelSpacing": ["3", "4"]},
    "PlaneOrientationSequence": {"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]},
    "PixelValueTransformationSequence": {"RescaleSlope": "3", "RescaleIntercept": "1", "RescaleType": "US"},
}


@pytest.mark.parametrize("name", PLACING)
def test_a_group_that_stands_in_both_places_must_say_the_same_twice(tmp_path, name):
    """PS3.3 C.7.6.16.1.1: shared or per frame, never both."""
    path = _enhanced_mr(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    frame = dataset.PerFrameFunctionalGroupsSequence[2]
    setattr(frame, name, [copy.deepcopy(getattr(dataset.SharedFunctionalGroupsSequence[0], name)[0])])
    dataset.save_as(path)
    assert len(read_headers(path)) == len(HEIGHTS_MM)

    for element in getattr(frame, name)[0]:
        if element.VR == "DS":
            element.value = [f"{float(number):+.3e}" for number in np.atleast_1d(element.value)]
    dataset.save_as(path)
    assert len(read_headers(path)) == len(HEIGHTS_MM)

    setattr(frame, name, [_item(**PLACING[name])])
    dataset.save_as(path)

    with pytest.raises(InputError, match="E_VALUE_INVALID"):
        read_headers(path)


@pytest.mark.parametrize("is_equal", [True, False])
@pytest.mark.parametrize("where", ["shared", "frame"])
@pytest.mark.parametrize("name", [*PLACING, "PlanePositionSequence", "FrameContentSequence"])
def test_two_items_where_one_is_allowed_are_refused(tmp_path, name, where, is_equal):
    path = _enhanced_mr(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    groups = dataset.SharedFunctionalGroupsSequence if where == "shared" else dataset.PerFrameFunctionalGroupsSequence
    one = _item(**PLACING.get(name, {"ImagePositionPatient": [0, 0, 1]}))
    setattr(groups[0], name, [one, copy.deepcopy(one) if is_equal else _item(RescaleSlope="9")])
    dataset.save_as(path)

    with pytest.raises(InputError, match=r"E_VALUE_INVALID: element \(\w{4},\w{4}\) has 2 items"):
        read_headers(path)


def test_two_items_of_what_all_frames_share_are_refused(tmp_path):
    path = _enhanced_mr(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    dataset.SharedFunctionalGroupsSequence.append(copy.deepcopy(dataset.SharedFunctionalGroupsSequence[0]))
    dataset.save_as(path)

    with pytest.raises(InputError, match=r"E_VALUE_INVALID: element \(5200,9229\) has 2 items"):
        read_headers(path)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("where", ["frame", "shared", "object"])
def test_the_scale_slope_of_philips_is_that_of_each_frame(tmp_path, where, syntax):
    """Frame n has the slope n + 2, in the item of its private sequence; or all have that of the object."""
    path = _enhanced_mr(tmp_path / "a.dcm", syntax=syntax)
    dataset = pydicom.dcmread(path)
    if where == "frame":
        for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            _philips_item(groups, 0x0F, number + 2.0)
    elif where == "shared":
        _philips_item(dataset.SharedFunctionalGroupsSequence[0], 0x0E, 5.0)
    else:
        dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", 5.0)
    dataset.save_as(path)

    expected = [2.0, 3.0, 4.0, 5.0] if where == "frame" else [5.0] * 4
    assert [header.philips_scale_slope for header in read_headers(path)] == expected


def test_a_plain_private_value_under_the_number_of_the_sequence_is_no_sequence(tmp_path):
    """In block DD 001 (2005,xx0F) is a plain number."""
    path = _enhanced_mr(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    block = dataset.PerFrameFunctionalGroupsSequence[0].private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0F, "DS", "1070")
    dataset.save_as(path)

    assert [header.philips_scale_slope for header in read_headers(path)] == [None] * 4


def _philips_item(groups, low, slope):
    inner = _item(ImageType=["DERIVED"], RescaleSlope="77")  # repeats of public elements count for nothing
    inner.private_block(0x2005, "Philips MR Imaging DD 004", create=True).add_new(0x01, "FL", 99.0)
    inner.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", slope)
    groups.private_block(0x2005, "Philips MR Imaging DD 003", create=True).add_new(0x01, "FL", 99.0)
    groups.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(low, "SQ", Sequence([inner]))


@pytest.mark.parametrize("lost", ["PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"])
def test_frames_without_a_place_are_refused(tmp_path, lost):
    path = _enhanced_mr(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    # What stands outside of the functional groups is not the place of any frame.
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [1, 1]
    for item in (*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence):
        if lost in item:
            delattr(item, lost)
    dataset.save_as(path)

    assert refusal_code([path]) == "E_GEOM_MISSING"


def test_an_object_without_functional_groups_has_no_place(tmp_path):
    path = _enhanced_mr(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    del dataset.SharedFunctionalGroupsSequence
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(path)

    assert refusal_code([path]) == "E_GEOM_MISSING"


@pytest.mark.parametrize(("count", "code"), [(3, "E_VALUE_INVALID"), (5, "E_VALUE_INVALID"), (2**31 - 1, "E_TOO_BIG")])
def test_the_number_of_frames_is_that_of_the_groups(tmp_path, count, code):
    path = _enhanced_mr(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = count
    dataset.save_as(path)

    with pytest.raises(InputError, match=code):
        read_headers(path)


@pytest.mark.parametrize("element", ["ImagePositionPatient", "DiffusionBValue", "EffectiveEchoTime"])
def test_numbers_that_place_a_frame_are_read_strictly_and_others_left_out(tmp_path, element):
    path = _enhanced_mr(tmp_path / "a.dcm")
    old, new = {
        "ImagePositionPatient": (b"\\2.5", b"\\NaN"),
        "DiffusionBValue": (np.float64(500).tobytes(), np.float64("nan").tobytes()),
        "EffectiveEchoTime": (np.float64(30.5).tobytes(), np.float64("inf").tobytes()),
    }[element]
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))

    if element == "ImagePositionPatient":
        with pytest.raises(InputError, match="E_VALUE_INVALID"):
            read_headers(path)
    else:
        assert getattr(read_headers(path)[0], element.removeprefix("Effective")) is None


def _enhanced_mr(path, *, b_values=(500,), syntax=ExplicitVRLittleEndian):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = ENHANCED_MR, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.2"
    dataset.Modality, dataset.PatientID, dataset.PhotometricInterpretation = "MR", "P1", "MONOCHROME2"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "MIXED", "NONE"]
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 12, 11
    dataset.PixelRepresentation, dataset.Rows, dataset.Columns = 0, 4, 6
    dataset.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[_item(PixelSpacing=["1.5", "1.25"], SliceThickness=2)],
            PlaneOrientationSequence=[_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelValueTransformationSequence=[_item(RescaleSlope=2, RescaleIntercept=1, RescaleType="US")],
            MREchoSequence=[_item(EffectiveEchoTime=30.5)],
            MRTimingAndRelatedParametersSequence=[_item(FlipAngle=90)],
            CardiacSynchronizationSequence=[_item(NominalCardiacTriggerDelayTime=120.0)],
            MRImageFrameTypeSequence=[_item(FrameType=["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"])],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=["0", "0", f"{height:g} "])],
            MRDiffusionSequence=[_item(DiffusionBValue=float(b_value))],
            FrameContentSequence=[
                _item(
                    StackID="1",
                    TemporalPositionIndex=2,
                    FrameAcquisitionDateTime="20200102101502.5",
                    FrameAcquisitionNumber=7,
                )
            ],
        )
        for b_value in b_values
        for height in HEIGHTS_MM
    ]
    frames = len(dataset.PerFrameFunctionalGroupsSequence)
    dataset.NumberOfFrames = frames
    dataset.PixelData = np.arange(frames * 24, dtype="<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def _item(**attributes):
    item = Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return item


def _shuffle_frames(path):
    dataset = pydicom.dcmread(path)
    order = np.random.default_rng(1).permutation(int(dataset.NumberOfFrames))
    dataset.PixelData = dataset.pixel_array[order].tobytes()
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    dataset.PerFrameFunctionalGroupsSequence = [groups[index] for index in order]
    dataset.save_as(path)
