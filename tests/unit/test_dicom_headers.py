"""Reading headers of untrusted files: strict numbers, named refusals, no crash."""

import pydicom
import pytest

from medssl_cli.errors import InputError
from medssl_cli.formats.dicom import is_dicom, read_header
from tests.dicom_factory import ct_series, edit, load


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3", "PixelData": None, "Rows": None}, "S_NON_IMAGE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "S_NON_IMAGE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "S_SECONDARY_CAPTURE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1"}, "S_UNSUPPORTED_MODALITY"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "E_ENHANCED_UNSUPPORTED"),
        ({"NumberOfFrames": 2}, "E_ENHANCED_UNSUPPORTED"),
        ({"PixelData": None}, "E_TRUNCATED"),
        ({"Rows": None}, "E_VALUE_INVALID"),
        ({"Modality": "MR"}, "E_VALUE_INVALID"),
        ({"HighBit": 15}, "E_VALUE_INVALID"),
    ],
)
def test_objects_that_are_not_for_us_say_so(tmp_path, attributes, code):
    path = ct_series(tmp_path)[0]
    edit(path, **attributes)

    with pytest.raises(InputError) as refused:
        read_header(path)

    assert refused.value.code == code


@pytest.mark.parametrize("text", [b"NaN ", b"inf ", b"0,7 ", b"1e999 ", b"0x10", b"1_0 ", b"\xd9\xa3  ", b"1 2 "])
def test_numbers_are_read_strictly_and_never_quoted(tmp_path, text):
    path = ct_series(tmp_path)[0]
    edit(path, RescaleSlope="77.12500")
    path.write_bytes(path.read_bytes().replace(b"77.12500", text.ljust(8)))

    with pytest.raises(InputError) as refused:
        read_header(path)

    assert refused.value.code == "E_VALUE_INVALID"
    assert "(0028,1053)" in refused.value.message
    assert text.decode("latin-1").strip() not in refused.value.message.replace("(0028,1053)", "")


def test_every_truncation_is_refused_with_a_code(tmp_path):
    series = ct_series(tmp_path)
    whole = series[0].read_bytes()
    codes = set()
    for length in range(132, len(whole), 7):
        series[0].write_bytes(whole[:length])
        with pytest.raises(InputError) as refused:
            load(series)
        codes.add(refused.value.code)

    assert codes <= {"E_TRUNCATED", "E_DICOM_PARSE", "E_VALUE_INVALID"}


def test_deep_nesting_is_refused_not_fatal(tmp_path):
    path = ct_series(tmp_path)[0]
    whole = path.read_bytes()
    at = whole.index(b"\x20\x00\x0d\x00UI")  # before StudyInstanceUID, group 0020
    nest = b"\x18\x00\x06\x90SQ\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(whole[:at] + nest * 20_000 + whole[at:])

    with pytest.raises(InputError) as refused:
        read_header(path)

    assert refused.value.code == "E_DICOM_PARSE"


def test_the_signature_is_behind_the_preamble(tmp_path):
    path = ct_series(tmp_path)[0]

    assert is_dicom(path.read_bytes()[:132])
    assert not is_dicom(b"DICM")


@pytest.mark.parametrize("field", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_enormous_coordinates_are_refused(tmp_path, field):
    path = ct_series(tmp_path)[0]
    edit(path, **{field: [1e300, *pydicom.dcmread(path)[field].value[1:]]})

    with pytest.raises(InputError, match="E_VALUE_INVALID"):
        read_header(path)
