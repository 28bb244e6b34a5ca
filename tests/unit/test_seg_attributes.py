"""What a DICOM SEG repeats of its source is valid, or is not there; what was changed is told by keyword."""

import io
import struct
import warnings

import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword

from medssl_cli.formats.seg_attributes import (
    TYPE_2,
    UNKNOWN_METHOD,
    clean_attributes,
    clean_date,
    clean_time,
    usable_uid,
    valid_uid,
    whole_number,
)


def source_of(*elements: tuple[str, str, bytes]) -> Dataset:
    """A data set as it is read from a file that holds any bytes: keyword, representation and value of each element."""
    encoded = []
    for keyword, representation, value in sorted(elements, key=lambda element: tag_for_keyword(element[0]) or 0):
        tag = tag_for_keyword(keyword) or 0
        length = struct.pack("<xxI" if representation in ("UN", "SQ", "OB") else "<H", len(value))
        encoded.append(struct.pack("<HH", tag >> 16, tag & 0xFFFF) + representation.encode() + length + value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcmread(io.BytesIO(b"".join(encoded)), force=True)


def text_of(keyword: str, value: str) -> tuple[str, str, bytes]:
    return keyword, dictionary_VR(keyword), value.encode()


UTF_8 = text_of("SpecificCharacterSet", "ISO_IR 192")


@pytest.mark.parametrize(
    ("keyword", "given", "kept"),
    [
        ("PatientAge", "045Y", "045Y"),
        ("PatientAge", "0Y", "000Y"),
        ("PatientAge", "45y", "045Y"),
        ("PatientAge", "45", None),
        ("PatientSex", "f", "F"),
        ("PatientSex", "female", ""),
        ("PatientBirthDate", "1960.02.29", "19600229"),
        ("PatientBirthDate", "19590229", ""),
        ("PatientBirthDate", "00000000", ""),
        ("StudyTime", "12:30:01.5", "123001.5"),
        ("StudyTime", "250000", ""),
        ("StudyID", "12345678901234567890", ""),
        ("AccessionNumber", "A\\B", ""),
        ("PatientID", "P" * 64, "P" * 64),
        ("PatientID", "P" * 65, ""),
        ("PatientName", "Ä" * 70 + "^B", "Ä" * 32),  # 64 bytes
        ("PatientName", "A" * 30 + "=" + "B" * 30 + "=" + "C" * 30, "A" * 30 + "=" + "B" * 30),
        ("PatientName", "山田^太郎", "山田^太郎"),
        ("PatientName", "A^^^^", "A^^^^"),
        ("PatientName", "A^B^C^D^E^F^G", "A^B^C^D^E"),
        ("PatientName", "A=B=C=D", "A=B=C"),
        ("PatientName", "A\x1b\nB", "AB"),
        ("StudyDescription", "x" * 70, "x" * 64),
        ("PatientWeight", "75.5", "75.5"),
        ("PatientWeight", "70,5", None),
        ("PatientSize", "1e400", None),
        ("PatientIdentityRemoved", "maybe", None),
    ],
)
def test_values_are_repaired_where_that_is_certain_and_left_out_otherwise(
    keyword: str, given: str, kept: str | None
) -> None:
    attributes, changed = clean_attributes(source_of(UTF_8, text_of(keyword, given)))

    assert attributes.get(keyword) == kept
    assert changed == ([] if kept == given else [keyword])


def test_what_must_be_there_is_there_and_empty() -> None:
    attributes, changed = clean_attributes(Dataset())

    assert attributes == dict.fromkeys(TYPE_2, "")
    assert not changed


def test_a_value_that_cannot_be_read_is_left_out() -> None:
    class Hostile(Dataset):
        def get(self, key: object, default: object = None) -> object:
            raise LookupError("unknown encoding: no such set")

    attributes, _ = clean_attributes(Hostile())

    assert attributes == dict.fromkeys(TYPE_2, "")


@pytest.mark.parametrize(
    ("representation", "value"),
    [("AS", b"001Y\\002Y"), ("US", b"\x05\0"), ("UN", b"\xff\xfe"), ("SQ", b""), ("FD", b"\0" * 8), ("DS", b"x")],
)
def test_values_of_another_kind_do_no_harm(representation: str, value: bytes) -> None:
    assert "PatientAge" not in clean_attributes(source_of(("PatientAge", representation, value)))[0]


@pytest.mark.parametrize("charset", ["ISO_IR 999", "nonsense", "ISO 2022 IR 87", ""])
def test_a_name_in_a_wrong_character_set_is_a_valid_name(charset: str) -> None:
    name = clean_attributes(
        source_of(text_of("SpecificCharacterSet", charset), ("PatientName", "PN", b"M\xfcller^\x1b$B\xff"))
    )[0]["PatientName"]

    assert name.startswith("M")
    assert name.isprintable()


def test_removed_identity_says_how() -> None:
    code = Dataset()
    code.CodeMeaning = "Basic Profile"
    removed = text_of("PatientIdentityRemoved", "YES")
    coded = source_of(removed)
    coded.DeidentificationMethodCodeSequence = [code]

    with_method, _ = clean_attributes(source_of(removed, text_of("DeidentificationMethod", "a\\" + "b" * 70)))
    with_code, _ = clean_attributes(coded)
    with_none, changed = clean_attributes(source_of(removed))

    assert with_method["DeidentificationMethod"] == ["a", "b" * 64]
    assert with_code["DeidentificationMethod"] == ["Basic Profile"]
    assert with_none["DeidentificationMethod"] == [UNKNOWN_METHOD]
    assert changed == ["DeidentificationMethod"]


@pytest.mark.parametrize(
    ("uid", "is_valid", "is_usable"),
    [
        ("1.2.840.10008.1.2", True, True),
        ("2.25.329800735698586629295641978511506172918", True, True),
        ("2.999.0", True, True),
        ("1.39", True, True),
        ("1.40.1", False, True),
        ("9999.1", False, True),
        ("1.2.03.4", False, True),
        ("1.2.", False, True),
        ("1", False, True),
        ("1." + "2" * 63, False, False),
        ("", False, False),
        ("1.2.x", False, False),
    ],
)
def test_uids_are_valid_usable_or_neither(uid: str, is_valid: bool, is_usable: bool) -> None:
    assert (valid_uid(uid), usable_uid(uid)) == (is_valid, is_usable)


def test_days_times_and_numbers() -> None:
    assert clean_date("2020-02-29") == "20200229"
    assert clean_date("2020-02.29") is None
    assert clean_time("1230") == "1230"
    assert clean_time("126000") is None
    assert whole_number(source_of(text_of("SeriesNumber", "7 ")), "SeriesNumber") == 7
    assert whole_number(source_of(text_of("SeriesNumber", "-7")), "SeriesNumber") is None
    assert whole_number(Dataset(), "SeriesNumber") is None
