"""Reading headers of untrusted files: strict numbers, named refusals, no crash."""

import hashlib
import os
import pickle
import struct
import sys
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pydicom
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import content_digest, dataset_bytes, is_dicom, read_headers
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Member
from tests.dicom_factory import SERIES_UID, ct_series, edit, edit_raw, load

STORAGE = "1.2.840.10008.5.1.4.1.1."
MR = {"SOPClassUID": f"{STORAGE}4", "Modality": "MR"}


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"SOPClassUID": f"{STORAGE}481.3", "PixelData": None, "Rows": None}, "S_NON_IMAGE"),
        ({"SOPClassUID": f"{STORAGE}66.4"}, "S_NON_IMAGE"),
        ({"SOPClassUID": f"{STORAGE}88.11"}, "S_NON_IMAGE"),
        ({"SOPClassUID": f"{STORAGE}7"}, "S_SECONDARY_CAPTURE"),
        ({"SOPClassUID": f"{STORAGE}7.4", "NumberOfFrames": 9}, "S_SECONDARY_CAPTURE"),
        ({"SOPClassUID": f"{STORAGE}77.1.6"}, "S_UNSUPPORTED_MODALITY"),
        ({"SOPClassUID": f"{STORAGE}20", "Modality": "NM"}, "E_NO_PATIENT_GEOMETRY"),
        ({"SOPClassUID": f"{STORAGE}3.1", "Modality": "US", "NumberOfFrames": 30}, "E_NO_PATIENT_GEOMETRY"),
        ({"SOPClassUID": f"{STORAGE}12.1", "Modality": "XA", "NumberOfFrames": 30}, "E_NO_PATIENT_GEOMETRY"),
        ({"SOPClassUID": f"{STORAGE}12.1.1", "Modality": "XA"}, "E_ENHANCED_UNSUPPORTED"),
        ({"NumberOfFrames": 2}, "E_ENHANCED_UNSUPPORTED"),
        ({"SOPClassUID": "9.9.9", "PixelData": None, "Rows": None}, "E_DICOM_PARSE"),
        ({"PixelData": None}, "E_TRUNCATED"),
        ({"Rows": None}, "E_VALUE_INVALID"),
        ({"SeriesInstanceUID": ""}, "E_NO_SERIES_UID"),
        ({"StudyInstanceUID": None}, "E_NO_SERIES_UID"),
        ({"Modality": "MR"}, "E_VALUE_INVALID"),
        ({"HighBit": 15}, "E_VALUE_INVALID"),
        ({"BitsAllocated": 64}, "E_VALUE_INVALID"),
        ({"PixelRepresentation": 2}, "E_VALUE_INVALID"),
        ({"Rows": 0}, "E_VALUE_INVALID"),
        ({"Columns": 40_000}, "E_VALUE_INVALID"),
        ({"NumberOfFrames": 0}, "E_VALUE_INVALID"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "E_VALUE_INVALID"),
        ({"PixelSpacing": [1, 1, 1]}, "E_VALUE_INVALID"),
    ],
)
def test_objects_that_are_not_for_us_say_so(tmp_path, attributes, code):
    path = ct_series(tmp_path)[0]
    edit(path, **attributes)

    assert _refusal(path).code == code


@pytest.mark.parametrize(
    ("end", "modality"),
    [
        ("1", "CR"), ("1.1", "DX"), ("1.1.1", "DX"), ("1.2", "MG"), ("1.2.1", "MG"), ("12.1", "XA"), ("12.2", "RF"),
        ("6.1", "US"), ("3.1", "US"), ("4", "MR"), ("128", "PT"),
    ],
)  # fmt: skip
def test_every_kind_of_single_picture_is_read(tmp_path, end, modality):
    path = ct_series(tmp_path)[0]
    edit(path, SOPClassUID=STORAGE + end, Modality=modality, ImagerPixelSpacing=[0.1, 0.2])

    (header,) = read_headers(path)

    assert (header.Modality, header.frame, header.tile) == (modality, 0, None)
    assert header.ImagerPixelSpacing == (0.1, 0.2)


@pytest.mark.parametrize("text", [b"NaN ", b"inf ", b"0,7 ", b"1e999 ", b"0x10", b"1_0 ", b"\xd9\xa3  ", b"1 2 "])
def test_numbers_are_read_strictly_and_never_quoted(tmp_path, text):
    path = ct_series(tmp_path)[0]
    edit(path, RescaleSlope="77.12500")
    path.write_bytes(path.read_bytes().replace(b"77.12500", text.ljust(8)))

    refused = _refusal(path)

    assert refused.code == "E_VALUE_INVALID"
    assert "(0028,1053)" in refused.message
    assert text.decode("latin-1").strip() not in refused.message.replace("(0028,1053)", "")


ODD = {
    "InstanceNumber": ("1.5", "1\\\\2", "one"),
    "AcquisitionNumber": ("1\\\\2", "x"),
    "EchoTime": ("2.4\\\\4.8", "short", "1,5"),
    "TriggerTime": ("--", "nan"),
    "InversionTime": ("1.2.3",),
    "TemporalPositionIdentifier": ("3 of 4",),
    "NumberOfTemporalPositions": ("none",),
    "FrameReferenceTime": ("?",),
    "ImagerPixelSpacing": ("0.2", "0,2\\\\0,2"),
    "SliceThickness": ("thin",),
    "RepetitionTime": ("x",),
    "ConvolutionKernel": ("B" * 5000,),
    "EchoNumbers": ("1" * 5000,),
    "FrameOfReferenceUID": ("1." * 3000,),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in ODD.items() for text in texts])
def test_no_image_is_refused_for_an_element_that_neither_places_nor_scales_a_voxel(tmp_path, name, text):
    series = ct_series(tmp_path)
    for path in series:
        edit(path, **MR)
    expected = load(series).volume
    for path in series:
        edit_raw(path, name, text.replace("\\\\", "\\"))

    image = load(series)

    assert np.array_equal(image.volume.voxels, expected.voxels)
    assert np.array_equal(image.volume.affine, expected.affine)


@pytest.mark.parametrize("text", ["12.5", " 12.5", "+12.5", "1.25e1", "12.5\0", "1.25E+01 ", "012.50", "12.5\n"])
def test_a_number_may_be_spelled_in_many_ways(tmp_path, text):
    path = ct_series(tmp_path)[0]
    edit_raw(path, "RescaleIntercept", text)

    assert read_headers(path)[0].RescaleIntercept == 12.5


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("+7", 7), (" 07 ", 7), ("7.0", 7), ("7.", 7), ("7.5", None)])
def test_a_whole_number_may_be_spelled_with_a_point(tmp_path, text, number):
    path = ct_series(tmp_path)[0]
    edit_raw(path, "InstanceNumber", text)

    assert read_headers(path)[0].InstanceNumber == number


def test_an_instance_without_an_identifier_of_its_own_is_read(tmp_path):
    """The meta information repeats it; without that the header's bytes tell slices apart."""
    series = ct_series(tmp_path)
    for path in series:
        dataset = pydicom.dcmread(path)
        del dataset.SOPInstanceUID
        dataset.save_as(path)
    in_meta = [read_headers(path)[0].SOPInstanceUID for path in series]
    for path in series:
        dataset = pydicom.dcmread(path)
        del dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.save_as(path, enforce_file_format=False)

    assert in_meta == [f"{SERIES_UID}.{number}" for number in range(1, 6)]
    assert len({read_headers(path)[0].SOPInstanceUID for path in series}) == 5
    assert load(series).volume.voxels[0, 0, 0].tolist() == [0, 5, 10, 15, 20]
    series[2].with_name("copy.dcm").write_bytes(series[2].read_bytes())
    assert load([*series, series[2].with_name("copy.dcm")]).num_files == 5


@pytest.mark.parametrize("field", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_enormous_coordinates_are_refused(tmp_path, field):
    path = ct_series(tmp_path)[0]
    edit(path, **{field: [1e300, *pydicom.dcmread(path)[field].value[1:]]})

    assert _refusal(path).code == "E_VALUE_INVALID"


def test_a_text_of_kilobytes_is_refused(tmp_path):
    path = ct_series(tmp_path)[0]
    edit(path, PatientID="7" * 5000)

    assert _refusal(path).code == "E_VALUE_INVALID"


def test_the_signature_is_behind_the_preamble(tmp_path):
    path = ct_series(tmp_path)[0]

    assert is_dicom(path.read_bytes()[:132])
    assert not is_dicom(b"DICM")
    assert not read_headers(path)[0].has_preamble
    path.write_bytes(b"MZ" + path.read_bytes()[2:])
    assert read_headers(path)[0].has_preamble


def test_a_header_says_which_bytes_it_came_from(tmp_path):
    path = ct_series(tmp_path)[0]
    data = path.read_bytes()
    (header,) = read_headers(path)

    assert header.digest == hashlib.sha256(data[: header.pixel_offset]).hexdigest()
    assert (header.size_bytes, header.mtime_ns) == (len(data), path.stat().st_mtime_ns)
    assert header.pixel_offset + header.pixel_length == len(data)
    assert dataset_bytes(path, header) == data
    assert content_digest(path) == hashlib.sha256(data).hexdigest()


def test_other_pixels_change_the_content_but_not_the_header(tmp_path):
    path = ct_series(tmp_path)[0]
    before = (read_headers(path)[0].digest, content_digest(path))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")

    assert read_headers(path)[0].digest == before[0]
    assert content_digest(path) != before[1]


def test_a_member_of_an_archive_is_read_like_a_file(tmp_path):
    path = ct_series(tmp_path / "ct")[0]
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/1.dcm", path.read_bytes())
    member = Member(tmp_path / "a.zip", 0, PurePosixPath("x/1.dcm"))

    (header,) = read_headers(member)

    assert (header.source, header.mtime_ns) == (member, 0)
    assert header.digest == read_headers(path)[0].digest
    assert header.size_bytes == path.stat().st_size


def test_files_that_cannot_be_opened_say_why(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    assert _refusal(tmp_path / "absent").code == "E_IO"
    assert _refusal(tmp_path / "pipe").code == "S_SPECIAL_FILE"
    assert _refusal(tmp_path).code == "S_SPECIAL_FILE"


def test_100_000_headers_stay_small(tmp_path):
    """Texts, tuples and the allow-list that repeat are shared, also after a header came from another process."""
    headers = [read_headers(path)[0] for path in ct_series(tmp_path)]
    travelled = [pickle.loads(pickle.dumps(header)) for header in headers]

    assert travelled == headers
    assert headers[0].SeriesInstanceUID is headers[1].SeriesInstanceUID
    assert travelled[0].SeriesInstanceUID is travelled[1].SeriesInstanceUID is headers[0].SeriesInstanceUID
    assert headers[0].ImageOrientationPatient is headers[1].ImageOrientationPatient
    assert headers[0].acquisition is headers[1].acquisition
    assert travelled[0].acquisition is travelled[1].acquisition
    assert not hasattr(headers[0], "__dict__")
    assert _own_bytes(headers[0], headers[1]) < 2000


@pytest.mark.parametrize(
    ("creator", "group", "element", "value", "b_value"),
    [
        ("SIEMENS MR HEADER", 0x0019, 0x0C, ("IS", "1000"), 1000),
        ("GEMS_PARM_01", 0x0043, 0x39, ("IS", ["1000", "8", "0", "0"]), 1000),
        ("GEMS_PARM_01", 0x0043, 0x39, ("IS", ["1000000800", "8", "0", "0"]), 800),  # marked by 10^9
        ("GEMS_PARM_01", 0x0043, 0x39, ("IS", ["0", "8", "0", "0"]), None),  # in every GE image
        ("Philips Imaging DD 001", 0x2001, 0x03, ("FL", 700.0), 700),
        ("SOMEBODY ELSE", 0x2001, 0x03, ("FL", 700.0), None),
    ],
)
@pytest.mark.parametrize("block", [0x10, 0x1F])
def test_vendors_diffusion_weightings_are_found_wherever_their_block_is(
    tmp_path, creator, group, element, value, b_value, block
):
    path = ct_series(tmp_path)[0]
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID, dataset.Modality = MR.values()
    dataset.add_new((group, block), "LO", creator)
    dataset.add_new((group, block << 8 | element), *value)
    dataset.save_as(path)

    (header,) = read_headers(path)

    assert header.DiffusionBValue == header.acquisition.b_value == b_value


@pytest.mark.parametrize(
    ("creator", "group", "first", "values"),
    [
        ("SIEMENS MR HEADER", 0x0019, 0x0E, [("FD", [0.6, -0.8, 0.0])]),
        ("GEMS_ACQU_01", 0x0019, 0xBB, [("DS", "0.6"), ("DS", "-0.8"), ("DS", "0")]),
        ("Philips MR Imaging DD 001", 0x2005, 0xB0, [("FL", 0.6), ("FL", -0.8), ("FL", 0.0)]),
    ],
)
def test_vendors_directions_of_diffusion_are_found_where_there_is_a_weighting(tmp_path, creator, group, first, values):
    path = ct_series(tmp_path)[0]
    edit(path, **MR)
    dataset = pydicom.dcmread(path)
    block = dataset.private_block(group, creator, create=True)
    for place, (kind, value) in enumerate(values):
        block.add_new(first + place, kind, value)
    dataset.save_as(path)
    without = read_headers(path)[0].DiffusionGradientOrientation
    dataset.DiffusionBValue = 1000.0
    dataset.save_as(path)
    private = read_headers(path)[0].DiffusionGradientOrientation
    dataset.DiffusionGradientOrientation = [0.0, 0.0, 1.0]
    dataset.save_as(path)

    assert (without, private) == (None, (0.6, -0.8, 0.0))
    assert read_headers(path)[0].DiffusionGradientOrientation == (0.0, 0.0, 1.0)


def test_the_public_diffusion_weighting_goes_first(tmp_path):
    path = ct_series(tmp_path)[0]
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID, dataset.Modality = MR.values()
    dataset.DiffusionBValue = 500.0
    dataset.add_new((0x2001, 0x10), "LO", "Philips Imaging DD 001")
    dataset.add_new((0x2001, 0x1003), "FL", 700.0)
    dataset.save_as(path)

    assert read_headers(path)[0].DiffusionBValue == 500


@pytest.mark.parametrize(
    ("number", "position", "point"),
    [(1, 1, 1), (4, 4, 1), (5, 1, 2), (8, 4, 2), (5, 2, None), (9, 1, None), (0, 4, None)],
)
def test_time_points_of_ge_are_runs_through_the_stack(tmp_path, number, position, point):
    """4 locations, 2 time points; believed only where the position within the stack agrees."""
    path = ct_series(tmp_path)[0]
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID, dataset.Modality = MR.values()
    dataset.InstanceNumber, dataset.InStackPositionNumber, dataset.NumberOfTemporalPositions = number, position, 2
    dataset.add_new((0x0021, 0x10), "LO", "GEMS_RELA_01")
    dataset.add_new((0x0021, 0x104F), "SS", 4)
    dataset.save_as(path)

    assert read_headers(path)[0].TemporalPositionIdentifier == point


def test_what_uptake_values_need_is_read_and_faults_in_it_refuse_nothing(tmp_path):
    path = ct_series(tmp_path)[0]
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID, dataset.Modality = f"{STORAGE}128", "PT"
    dataset.Units, dataset.DecayCorrection, dataset.PatientWeight = "BQML", "START", "70.5"
    dataset.CorrectedImage = ["ATTN", "DECY"]
    tracer = pydicom.Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = "3.7e8", "6586.2"
    tracer.RadiopharmaceuticalStartTime = "101500"
    dataset.RadiopharmaceuticalInformationSequence = [tracer]
    dataset.add_new((0x7053, 0x10), "LO", "Philips PET Private Group")
    dataset.add_new((0x7053, 0x1000), "DS", "0.5")
    dataset.save_as(path)

    (header,) = read_headers(path)

    assert (header.PatientWeight, header.RadionuclideTotalDose, header.RadionuclideHalfLife) == (70.5, 3.7e8, 6586.2)
    assert (header.RadiopharmaceuticalStartTime, header.CorrectedImage) == ("101500", ("ATTN", "DECY"))
    assert (header.philips_suv_factor, header.acquisition.half_life_s) == (0.5, 6586.2)
    path.write_bytes(path.read_bytes().replace(b"70.5", b"70,5"))
    assert read_headers(path)[0].PatientWeight is None
    dataset.RadiopharmaceuticalInformationSequence = [tracer, tracer]
    dataset.save_as(path)
    assert read_headers(path)[0].RadionuclideTotalDose is None


@pytest.mark.parametrize("is_signed", [0, 1])
def test_padding_has_the_sign_of_the_pixels(tmp_path, is_signed):
    path = ct_series(tmp_path)[0]
    edit(path, PixelRepresentation=is_signed)
    whole = path.read_bytes()
    at = whole.index(b"\x28\x00\x52\x10")  # before RescaleIntercept
    path.write_bytes(whole[:at] + b"\x28\x00\x20\x01US\x02\x00" + struct.pack("<H", 0xF830) + whole[at:])

    assert read_headers(path)[0].PixelPaddingValue == (-2000 if is_signed else 63536)


def test_demographics_are_kept_on_request_only(tmp_path):
    path = ct_series(tmp_path)[0]
    edit(path, PatientSex="F", PatientAge="063Y")

    shy, open_ = (read_headers(path, policy)[0].acquisition for policy in (Policy(), Policy(keep_demographics=True)))

    assert (shy.sex, shy.age_from_years) == (None, None)
    assert (open_.sex, open_.age_from_years) == ("F", 60)


def _refusal(path):
    with pytest.raises(InputError) as refused:
        read_headers(path)
    return refused.value


def _own_bytes(header, other):
    """Bytes of a header that its neighbour does not share."""
    own = sys.getsizeof(header)
    for name in header.__dataclass_fields__:
        value = getattr(header, name)
        if name == "source" or value is getattr(other, name):
            continue
        own += sys.getsizeof(value)
        own += sum(map(sys.getsizeof, value)) if isinstance(value, tuple) else 0
    return own
