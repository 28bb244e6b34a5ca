"""The client of DICOMweb: addresses, credentials, queries, and bodies of many parts."""

from datetime import date
from typing import Any

import pytest

from medssl_cli.base.errors import InputError, UsageError
from medssl_cli.formats.dicomweb import Address, Credentials, PacsQuery, is_pacs_url
from medssl_cli.formats.dicomweb.multipart import CutError, MalformedError, boundary_of, read_parts
from medssl_cli.formats.dicomweb.query import count_of, is_uid, text_of
from tests.fake_pacs import BOUNDARY, multipart

PARTS = [b"first", b"", b"\r\n--b0undar\r\n\r\nlooks like a boundary and is none\r\n", b"\0" * 100]
BODY = multipart(PARTS)


def parts_of(body: bytes, *, step: int = 1, max_part_bytes: int = 1000) -> list[bytes]:
    chunks = (body[first : first + step] for first in range(0, len(body), step))
    return list(read_parts(chunks, BOUNDARY.encode(), max_part_bytes=max_part_bytes))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
def test_parts_do_not_depend_on_how_the_body_arrives(step: int) -> None:
    assert parts_of(BODY, step=step) == PARTS


def test_a_body_cut_anywhere_gives_only_parts_that_are_complete_and_says_that_it_was_cut() -> None:
    end = len(BODY) - len(b"\r\n")
    for length in range(end):
        received: list[bytes] = []
        with pytest.raises(CutError):
            received.extend(read_parts([BODY[:length]], BOUNDARY.encode(), max_part_bytes=1000))
        assert received == PARTS[: len(received)]
    assert parts_of(BODY[:end]) == PARTS


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(multipart(PARTS, boundary="another"), id="another boundary"),
        pytest.param(b"<html>log in</html>", id="html"),
        pytest.param(b"preamble\r\n" + BODY, id="text before the first boundary"),
        pytest.param(BODY.replace(b"b0undary\r\n", b"b0undary-and-more\r\n", 1), id="text behind a boundary"),
        pytest.param(BODY.replace(b"Length: 5", b"Length: 4", 1), id="length too small"),
        pytest.param(BODY.replace(b"Length: 5", b"Length: 999999999999", 1), id="length too large"),
        pytest.param(BODY.replace(b"Length: 5", b"Length: " + b"9" * 5000, 1), id="length of 5000 digits"),
        pytest.param(BODY.replace(b"Length: 5", b"Length: -5", 1), id="negative length"),
        pytest.param(multipart(PARTS, kind="text/html"), id="parts of another kind"),
        pytest.param(BODY.replace(b"Content-Type: application/dicom\r\n", b"", 1), id="part of no kind"),
        pytest.param(b"--b0undary\r\n\r\nfirst\r\n--b0undary--", id="part without header"),
        pytest.param(BODY.replace(b"Content-Type", b"Content Type without colon" * 1000, 1), id="endless header"),
    ],
)
def test_what_breaks_the_grammar_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError):
        parts_of(body, step=100)


def test_a_part_without_length_is_read_up_to_its_boundary() -> None:
    assert parts_of(BODY.replace(b"Content-Length: 5\r\n", b"")) == PARTS


def test_a_part_beyond_the_limit_is_refused_while_it_arrives() -> None:
    consumed = 0

    def endless() -> Any:
        nonlocal consumed
        yield BODY[: BODY.index(b"first")]
        while True:
            consumed += 100
            yield b"x" * 100

    with pytest.raises(InputError, match="E_TOO_BIG"):
        list(read_parts(endless(), BOUNDARY.encode(), max_part_bytes=1000))
    assert consumed < 2000


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', b"abc"),
        ('Multipart/Related; boundary="a b:c"; type="application/dicom"', b"a b:c"),
    ],
    ids=["bare", "quoted"],
)
def test_the_boundary_is_read_from_the_header(kind: str, boundary: bytes) -> None:
    assert boundary_of(kind) == boundary


@pytest.mark.parametrize(
    "kind",
    ["", "text/html", "application/dicom", "multipart/related", "multipart/related; boundary=" + "x" * 71,
     'multipart/related; boundary=""', 'multipart/related; boundary="é"'],
    ids=["nothing", "html", "single part", "no boundary", "71 characters", "empty", "not ascii"],
)  # fmt: skip
def test_other_kinds_of_answer_have_no_boundary(kind: str) -> None:
    with pytest.raises(MalformedError):
        boundary_of(kind)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("dicomweb://pacs.example/dicom-web/", "https://pacs.example/dicom-web"),
        ("dicomweb://pacs.example:8443/a/b", "https://pacs.example:8443/a/b"),
        ("dicomweb+http://127.0.0.1:8042/dicom-web", "http://127.0.0.1:8042/dicom-web"),
        ("dicomweb://[::1]:8042/x", "https://[::1]:8042/x"),
    ],
)
def test_an_address_is_encrypted_unless_it_says_otherwise(text: str, url: str) -> None:
    assert Address.parse(text).url == url
    assert Address.parse(text).is_encrypted is url.startswith("https")
    assert is_pacs_url(text)


@pytest.mark.parametrize(
    "text",
    ["dicomweb://user:zqsecret@pacs/x", "dicomweb://zqsecret@pacs/x", "dicomweb:///x", "dicomweb://pacs:99999/zqsecret",
     "dicomweb://pacs/x?token=zqsecret", "dicomweb://pa cs/zqsecret", "dicomweb://[::1/zqsecret", "https://pacs/zqsecret"],
    ids=["user and password", "user", "no host", "port", "query", "space", "bracket", "https"],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError, match="E_USAGE") as caught:
        Address.parse(text)
    assert "zqsecret" not in str(caught.value) + caught.value.hint


def test_files_are_no_addresses() -> None:
    assert not is_pacs_url("dicomweb")
    assert not is_pacs_url("/data/dicomweb:/x")
    assert not is_pacs_url("https://pacs/x")


def test_credentials_do_not_print() -> None:
    assert "zq" not in repr(Credentials(token="zqtoken")) + str(Credentials(user="zquser", password="zqpassword"))


@pytest.mark.parametrize(
    "fields",
    [{"token": "zq\nX-Header: 1"}, {"token": "zqä"}, {"user": "zq"}, {"password": "zq"}, {"user": "z:q",
     "password": "x"}, {"token": "zq", "user": "zq", "password": "zq"}],
    ids=["line break", "not ascii", "no password", "no user", "colon", "both"],
)  # fmt: skip
def test_credentials_that_cannot_be_sent_are_refused_without_repeating_them(fields: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="E_USAGE") as caught:
        Credentials(**fields)
    assert "zq" not in str(caught.value)


@pytest.mark.parametrize(
    "conditions",
    [{}, {"modality": "ct"}, {"modality": "*"}, {"date_from": date(2020, 2, 1), "date_to": date(2020, 1, 1)},
     {"patients": ("P*",)}, {"patients": ("A\\B",)}, {"patients": ("",)}],
    ids=["everything", "lower case", "any modality", "dates", "wildcard", "list", "empty patient"],
)  # fmt: skip
def test_a_query_that_asks_for_more_than_it_says_is_refused(conditions: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="E_USAGE"):
        PacsQuery(**conditions)


def test_conditions_are_written_as_the_standard_says() -> None:
    query = PacsQuery("CT", date(2020, 1, 1), date(2020, 12, 31))

    assert query.filters(None) == {"ModalitiesInStudy": "CT", "StudyDate": "20200101-20201231"}
    assert PacsQuery(date_from=date(2020, 1, 1)).filters("P1") == {"PatientID": "P1", "StudyDate": "20200101-"}
    assert PacsQuery(date_to=date(2020, 1, 1)).filters(None) == {"StudyDate": "-20200101"}


@pytest.mark.parametrize(
    ("day", "patient", "is_taken"),
    [("20200615", "P1", True), ("2020.06.15", "P1 ", True), ("20210101", "P1", False), ("", "P1", False),
     ("20200615", "P10", False)],
    ids=["fits", "old notation", "another year", "no date", "another patient"],
)  # fmt: skip
def test_a_server_that_ignores_conditions_does_not_widen_the_query(day: str, patient: str, is_taken: bool) -> None:
    query = PacsQuery("CT", date(2020, 1, 1), date(2020, 12, 31), patients=("P1",))
    study = {"00080020": {"vr": "DA", "Value": [day]}, "00100020": {"vr": "LO", "Value": [patient]}}

    assert query.takes_study(study, "P1") is is_taken


@pytest.mark.parametrize("text", ["1.2.840.1", "0", "1" * 64])
def test_these_are_uids(text: str) -> None:
    assert is_uid(text)


@pytest.mark.parametrize("text", ["", "..", ".", "1..2", "1.", "../../x", "1.2/3", "1.2 ", "1" * 65, "１.２", "1.2\n"])
def test_these_are_not_and_never_reach_a_path_or_an_address(text: str) -> None:
    assert not is_uid(text)


@pytest.mark.parametrize(
    "element",
    [None, 3, [], {}, {"Value": None}, {"Value": []}, {"Value": [None]}, {"Value": [{"a": 1}]}, {"Value": [-1]},
     {"Value": [True]}, {"Value": [1.5]}],
    ids=repr,
)  # fmt: skip
def test_elements_of_an_answer_may_be_anything(element: Any) -> None:
    assert text_of({"0020000D": element}, "0020000D") == ""
    assert count_of({"00201209": element}) is None


@pytest.mark.parametrize("value", [17, "17", " 17 "], ids=repr)
def test_counts_come_as_numbers_or_texts(value: Any) -> None:
    assert count_of({"00201209": {"vr": "IS", "Value": [value]}}) == 17
