"""An object that is not whole is refused before the parser sees it."""

import io
import struct

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import whole
from medssl_cli.formats.labels.whole import check_whole, read_meta

PIXELS = b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff"
ITEM = b"\xfe\xff\0\xe0"
END = b"\xfe\xff\xdd\xe0"


def nested(syntax: str, *, is_open: bool) -> bytes:
    """Sequences in sequences, of defined or undefined length."""
    inner, middle, outer = Dataset(), Dataset(), Dataset()
    inner.ContourData = [1, 2, 3]
    middle.ContourSequence = [inner, inner]
    outer.ROIContourSequence = [middle, middle]
    outer.ApprovalStatus = "APPROVED"
    for dataset in (outer, middle):
        for element in dataset:
            if element.VR == "SQ":
                element.is_undefined_length = is_open
    outer.file_meta = FileMetaDataset()
    outer.file_meta.TransferSyntaxUID = syntax
    outer.file_meta.MediaStorageSOPClassUID = outer.file_meta.MediaStorageSOPInstanceUID = "1.2"
    stream = io.BytesIO()
    outer.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def check(data: bytes) -> None:
    syntax, start = read_meta(data)
    check_whole(data, start, is_implicit=syntax == whole.IMPLICIT)


def _code(data: bytes) -> str:
    try:
        check(data)
    except InputError as error:
        return error.code
    return ""


@pytest.mark.parametrize("is_open", [True, False], ids=["undefined", "defined"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_a_whole_object_passes_and_every_shorter_one_ends_between_elements_or_is_refused(
    syntax: str, is_open: bool
) -> None:
    data = nested(syntax, is_open=is_open)
    _, start = read_meta(data)
    check(data)

    codes = [_code(data[:length]) for length in range(start + 1, len(data))]
    # The object has two elements at its top level; only a cut exactly between them looks whole.
    assert codes.count("") == 1
    assert set(codes) == {"", "E_TRUNCATED"}


@pytest.mark.parametrize(
    ("tail", "code"),
    [
        (b"\xfe\xff\x0d\xe0\0\0\0\0", "E_LABEL_FORMAT"),
        (b"\x10\x30\x01\0??\0\0", "E_LABEL_FORMAT"),
        (PIXELS, "E_TRUNCATED"),
        (PIXELS + ITEM + b"\4\0\0\0abc", "E_TRUNCATED"),
        (PIXELS + ITEM + b"\4\0\0\0abcd????????", "E_LABEL_FORMAT"),
        (b"\x10\x30\x01\0SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 80, "E_DICOM_DEPTH"),
        (b"\x10\x30\x01\0SQ\0\0\xff\xff\xff\xff", "E_TRUNCATED"),
        (b"\x10\x30\x01\0LO\x10\0abc", "E_TRUNCATED"),
    ],
    ids=[
        "stray-delimiter", "no-representation", "no-fragment", "short-fragment", "no-delimiter", "deep", "open",
        "short",
    ],
)  # fmt: skip
def test_a_malformed_object_is_refused(tail: bytes, code: str) -> None:
    data = nested(ExplicitVRLittleEndian, is_open=True) + tail

    with pytest.raises(InputError, match=code):
        check(data)


def test_compressed_pixels_are_stepped_over_fragment_by_fragment() -> None:
    """What looks like a delimiter inside of a fragment is none."""
    fragment = ITEM + b"\x08\0\0\0" + END + bytes(4)

    check(nested(ExplicitVRLittleEndian, is_open=True) + PIXELS + ITEM + bytes(4) + fragment * 2 + END + bytes(4))


def test_objects_of_elements_without_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "MAX_ELEMENTS", 10)
    data = nested(ExplicitVRLittleEndian, is_open=True) + b"\x10\x30\x01\0LO\0\0" * 20

    with pytest.raises(InputError, match="E_DICOM_TOO_BIG"):
        check(data)


def test_a_file_without_transfer_syntax_is_refused() -> None:
    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read_meta(b"\0" * 128 + b"DICM" + struct.pack("<HH2sH", 8, 0x16, b"UI", 0))
