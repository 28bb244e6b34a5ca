"""The walk over elements: every coding, every bound, and nothing decoded on the way."""

import io
import itertools
import struct
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.elements import MAX_DEPTH, is_bare_data_set, walk
from medssl_cli.formats.dicom.headers import dataset_bytes, read_headers, sop_class_of
from medssl_cli.formats.dicom.tags import MODALITY_LUT, RADIOPHARMACEUTICAL, SOP_CLASS, TAGS
from medssl_cli.formats.dicom.window import open_window
from medssl_cli.formats.policy import Policy
from tests.dicom_factory import ct_series, edit

CODINGS = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
UNDEFINED = b"\xff\xff\xff\xff"
ITEM = b"\xfe\xff\x00\xe0"
STUDY_UID = b"\x20\x00\x0d\x00UI"  # private and other long things are put before this element


def test_all_codings_give_the_same_values(tmp_path):
    found = []
    for number, syntax in enumerate(CODINGS):
        path = _written(tmp_path / f"{number}.dcm", syntax)
        elements = _walk(path)
        assert elements.transfer_syntax == syntax
        text = elements.values[TAGS["ImagePositionPatient"]]
        rows = int.from_bytes(elements.values[TAGS["Rows"]], "little" if elements.is_little else "big")
        (tracer,) = elements.values[RADIOPHARMACEUTICAL]
        (header,) = read_headers(path)
        begin = header.pixel_offset
        pixels = dataset_bytes(path, header)[begin : begin + 12]
        found.append((text, rows, tracer, np.frombuffer(pixels, "<u2" if elements.is_little else ">u2").tolist()))

    assert all(values == found[0] for values in found)
    assert found[0] == (b"1.5\\-2\\3", 3, {TAGS["RadionuclideTotalDose"]: b"1e8 "}, [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("syntax", CODINGS, ids=["implicit", "explicit", "big-endian", "deflated"])
def test_only_the_header_is_read(tmp_path, syntax, monkeypatch):
    path = _written(tmp_path / "a.dcm", syntax, pixels=1_000_000 if syntax != CODINGS[3] else 2)

    with open_window(path) as window:
        elements = walk(window)

        assert len(window.buffer) <= 2**16
        assert elements.pixel_length == (2_000_000 if syntax != CODINGS[3] else 4)


def test_a_data_set_whose_coding_is_not_the_stated_one_is_read_as_what_it_is(tmp_path):
    path = _written(tmp_path / "a.dcm", ExplicitVRLittleEndian)
    whole = path.read_bytes()
    lying = b"1.2.840.10008.1.2\0\0\0"
    path.write_bytes(whole.replace(b"1.2.840.10008.1.2.1\0", lying, 1))

    assert not _walk(path).is_implicit


def test_sequences_of_every_build_are_stepped_over(tmp_path):
    """Defined and undefined lengths, empty items, unknown representation (coded implicitly), encapsulated icons."""
    path = ct_series(tmp_path)[0]
    implicit_uid = b"\x08\x00\x50\x11" + (4).to_bytes(4, "little") + b"1.2\0"
    delimiters = _item_end() + _sequence_end()
    for extra in (
        _sequence(b"SQ", 8 + len(_uid()), ITEM + len(_uid()).to_bytes(4, "little") + _uid()),
        _sequence(b"SQ", None, ITEM + UNDEFINED + _uid() + delimiters),
        _sequence(b"SQ", None, ITEM + UNDEFINED + delimiters),
        _sequence(b"SQ", 0, b""),
        _sequence(b"UN", None, ITEM + UNDEFINED + implicit_uid + delimiters),
        _sequence(b"OB", None, ITEM + bytes(4) + ITEM + (2).to_bytes(4, "little") + b"\xff\xd8" + _sequence_end()),
        _sequence(b"SQ", None, ITEM + UNDEFINED + b"\xe0\x7f\x10\x00OW\0\0\x02\0\0\0ab" + delimiters),
    ):
        changed = _insert(path, extra)

        assert _walk(changed).values[TAGS["Rows"]] == (5).to_bytes(2, "little")
        assert _walk(changed).values[TAGS["SOPInstanceUID"]].startswith(b"1.2.826")


def test_damage_in_a_sequence_of_stated_length_that_nobody_reads_is_forgiven(tmp_path):
    """Old devices wrote private sequences implicitly into explicit data sets."""
    path = ct_series(tmp_path)[0]
    value = ITEM + (12).to_bytes(4, "little") + b"\x08\x00\x50\x11" + (4).to_bytes(4, "little") + b"1.2\0"

    assert len(read_headers(_insert(path, _sequence(b"SQ", len(value), value)))) == 1
    assert _code(_insert(path, _sequence(b"SQ", None, value + _sequence_end()))) == "E_DICOM_PARSE"


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 50, 1000, 20_000])
@pytest.mark.parametrize("is_defined", [False, True], ids=["undefined", "defined"])
def test_deep_nesting_is_refused(tmp_path, depth, is_defined):
    path = _insert(ct_series(tmp_path)[0], _nest(depth, is_defined=is_defined))

    assert _code(path) == "E_DICOM_DEPTH"


@pytest.mark.parametrize("is_defined", [False, True], ids=["undefined", "defined"])
def test_nesting_within_the_limit_is_accepted(tmp_path, is_defined):
    path = _insert(ct_series(tmp_path)[0], _nest(MAX_DEPTH, is_defined=is_defined))

    assert len(read_headers(path)) == 1


@pytest.mark.parametrize("where", ["top", "nested", "forgiven"])
def test_too_many_elements_are_refused(tmp_path, where):
    many = b"\x21\x00\x01\x10UI\0\0" * 200_001
    extra = many if where == "top" else _sequence(b"SQ", None, ITEM + UNDEFINED + many)
    if where == "forgiven":  # damage at the end of each sequence does not make its elements uncounted
        value = ITEM + UNDEFINED + many[: 8 * 100_000] + b"????????"
        extra = _sequence(b"SQ", len(value), value) * 3
    path = _insert(ct_series(tmp_path)[0], extra)

    assert _code(path) == "E_DICOM_TOO_BIG"


def test_a_long_header_is_refused_before_it_is_read(tmp_path):
    path = ct_series(tmp_path)[0]
    whole = path.read_bytes()
    at = whole.index(STUDY_UID)
    with path.open("r+b") as stream:  # a file with a hole: the 70 MiB are never written
        stream.seek(at)
        stream.write(b"\x19\x00\x01\x10OB\0\0" + (70 * 2**20).to_bytes(4, "little"))
        stream.seek(70 * 2**20, io.SEEK_CUR)
        stream.write(whole[at:])

    assert _code(path) == "E_DICOM_TOO_BIG"


@pytest.mark.parametrize("length", [0xFFFFFFF0, 0x7FFFFFFF, 1_000_000])
@pytest.mark.parametrize("where", ["top", "item", "sequence", "pixels"])
def test_lengths_beyond_the_file_are_refused(tmp_path, length, where):
    path = ct_series(tmp_path)[0]
    value = length.to_bytes(4, "little")
    extra = {
        "top": b"\x19\x00\x01\x10OB\0\0" + value,
        "item": _sequence(b"SQ", None, ITEM + value),
        "sequence": _sequence(b"SQ", length, b""),
        "pixels": b"",
    }[where]
    path = _insert(path, extra)
    if where == "pixels":
        whole = path.read_bytes()
        at = whole.index(b"\xe0\x7f\x10\x00OW")
        path.write_bytes(whole[: at + 8] + value + whole[at + 12 :])

    assert _code(path) == "E_DICOM_LENGTH"


def test_a_cut_at_every_element_and_within_is_refused_with_a_code(tmp_path):
    """Values have even lengths, so every element begins at an even byte."""
    path = ct_series(tmp_path)[0]
    whole = path.read_bytes()
    (header,) = read_headers(path)
    codes = set()
    for length in itertools.chain(range(0, header.pixel_offset, 2), range(header.pixel_offset, len(whole), 7)):
        path.write_bytes(whole[:length])
        codes.add(_code(path))

    assert codes == {"E_TRUNCATED", "E_DICOM_PARSE"}


@pytest.mark.parametrize("syntax", CODINGS, ids=["implicit", "explicit", "big-endian", "deflated"])
def test_a_cut_in_any_coding_is_refused_with_a_code(tmp_path, syntax):
    path = _written(tmp_path / "a.dcm", syntax)
    whole = path.read_bytes()
    for length in range(132, len(whole) - 1, 2):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as refused:
            dataset_bytes(path, read_headers(path)[0])  # a cut behind a deflated header shows when it is inflated
        assert refused.value.code in {"E_TRUNCATED", "E_DICOM_LENGTH", "E_DICOM_PARSE", "E_VALUE_INVALID"}


@pytest.mark.parametrize("place", ["header", "pixels", "behind"])
def test_a_deflate_bomb_is_refused_in_little_memory(tmp_path, place):
    path = _written(tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)
    whole = path.read_bytes()
    (header,) = read_headers(path)
    plain = dataset_bytes(path, header)[header.data_set_offset :]
    at = plain.index(STUDY_UID)
    pixels = header.pixel_offset - header.data_set_offset
    size = 100 * 2**20
    pieces = {
        "header": [plain[:at] + b"\x19\x00\x01\x10OB\0\0" + size.to_bytes(4, "little"), plain[at:]],
        "pixels": [plain[: pixels - 4] + size.to_bytes(4, "little"), b""],
        "behind": [plain, b""],
    }[place]
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    stream = deflater.compress(pieces[0])
    stream += b"".join(deflater.compress(bytes(2**20)) for _ in range(size // 2**20))
    stream += deflater.compress(pieces[1]) + deflater.flush()
    path.write_bytes(whole[: header.data_set_offset] + stream)

    with pytest.raises(InputError, match="E_DEFLATE_BOMB"):
        dataset_bytes(path, read_headers(path)[0])


def test_a_damaged_deflated_stream_is_refused(tmp_path):
    path = _written(tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)
    (header,) = read_headers(path)
    whole = bytearray(path.read_bytes())
    whole[header.data_set_offset] ^= 0x07  # the type of the first block
    path.write_bytes(whole)

    assert _code(path) == "E_DICOM_PARSE"


@pytest.mark.parametrize("syntax", CODINGS[:3], ids=["implicit", "explicit", "big-endian"])
def test_a_bare_data_set_is_read_where_the_site_allows_it(tmp_path, syntax):
    path = _written(tmp_path / "a.dcm", syntax)
    (with_head,) = read_headers(path)
    path.write_bytes(path.read_bytes()[with_head.data_set_offset :])

    assert is_bare_data_set(path.read_bytes()[:132])
    assert _code(path) == "E_DICOM_PARSE"
    (bare,) = read_headers(path, Policy(allow_headerless=True))
    assert bare.TransferSyntaxUID == syntax
    assert (bare.ImagePositionPatient, bare.Rows) == (with_head.ImagePositionPatient, with_head.Rows)


@pytest.mark.parametrize("missing", ["SOPClassUID", "SOPInstanceUID"])
def test_a_bare_data_set_must_say_what_it_is(tmp_path, missing):
    path = _written(tmp_path / "a.dcm", ImplicitVRLittleEndian)
    (header,) = read_headers(path)
    dataset = pydicom.dcmread(path)
    delattr(dataset, missing)
    dcmwrite(path, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
    path.write_bytes(path.read_bytes()[header.data_set_offset :])

    with pytest.raises(InputError, match="S_NOT_AN_IMAGE"):
        read_headers(path, Policy(allow_headerless=True))


@pytest.mark.parametrize(
    "head", [b"", b"DICM", b"plain text, long enough to look at", bytes(200), b"\x08\x00\x05\x00ZZ\xff\xff"]
)
def test_what_is_no_data_set_does_not_look_like_one(head):
    assert not is_bare_data_set(head)


def test_the_kind_of_object_is_read_from_the_first_bytes(tmp_path):
    path = ct_series(tmp_path)[0]
    edit(path, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\x08\x00\x18\x00UI")])

    assert sop_class_of(path) == "1.2.840.10008.5.1.4.1.1.66.4"


def test_values_that_are_not_asked_for_are_not_kept(tmp_path):
    path = _written(tmp_path / "a.dcm", ExplicitVRLittleEndian)
    with open_window(path) as window:
        elements = walk(window, wanted=frozenset((SOP_CLASS,)))

    assert set(elements.values) == {SOP_CLASS, 0x00020002, 0x00020003, 0x00020010}
    assert MODALITY_LUT not in _walk(path).values


def _written(path, syntax, *, pixels=6):
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    dataset.Modality = "PT"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.ImagePositionPatient = ["1.5", "-2", "3"]
    dataset.Rows, dataset.Columns = (3, pixels // 3) if pixels < 1000 else (1000, pixels // 1000)
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
    dataset.PixelRepresentation = 0
    tracer = Dataset()
    tracer.RadionuclideTotalDose = "1e8"
    dataset.RadiopharmaceuticalInformationSequence = [tracer]
    is_little = syntax != ExplicitVRBigEndian
    dataset.PixelData = np.arange(pixels).astype("<u2" if is_little else ">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dcmwrite(
        path, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=is_little, enforce_file_format=True
    )
    return path


def _walk(path):
    with open_window(path) as window:
        return walk(window)


def _code(path):
    with pytest.raises(InputError) as refused:
        read_headers(path)
    return refused.value.code


def _insert(path, extra):
    whole = path.read_bytes()
    at = whole.index(STUDY_UID)
    changed = path.with_name("changed.dcm")
    changed.write_bytes(whole[:at] + extra + whole[at:])
    return changed


def _sequence(kind, length, value):
    size = UNDEFINED if length is None else struct.pack("<I", length)
    return b"\x18\x00\x06\x90" + kind + b"\0\0" + size + value


def _nest(depth, *, is_defined):
    if not is_defined:
        ends = (_item_end() + _sequence_end()) * depth
        return (_sequence(b"SQ", None, ITEM + UNDEFINED)) * depth + ends
    head = 20  # bytes of one sequence and its item
    return b"".join(
        _sequence(b"SQ", head * (depth - level) - 12, ITEM + (head * (depth - level) - head).to_bytes(4, "little"))
        for level in range(depth)
    )


def _uid():
    return b"\x08\x00\x50\x11UI\x04\x001.2\0"


def _item_end():
    return b"\xfe\xff\x0d\xe0\0\0\0\0"


def _sequence_end():
    return b"\xfe\xff\xdd\xe0\0\0\0\0"
