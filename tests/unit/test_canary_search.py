"""The search for canaries sees through encodings and packing; without it the release gate would guard nothing."""

import base64
import gzip
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest

from tests.canaries import ACCENTED, Canaries, canaries_below, canaries_in
from tests.zip_factory import Raw, zip_bytes

WORD = Canaries().word()
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "lower": bytes.lower,
    "utf-16-le": lambda data: data.decode().encode("utf-16-le"),
    "utf-16-be": lambda data: data.decode().encode("utf-16-be"),
    "gzip": gzip.compress,
    "zip": lambda data: zip_bytes(Raw(b"a", data)),
    "zip-name": lambda data: zip_bytes(Raw(data, b"a")),
    "zip-comment": lambda data: zip_bytes(comment=data),
    "gzip-in-zip": lambda data: zip_bytes(Raw(b"a", gzip.compress(data))),
    "page": lambda data: b'<img src="data:image/png;base64,' + base64.b64encode(data) + b'">',
}


@pytest.mark.parametrize("form", PACKED)
def test_a_word_is_found_in_every_form(tmp_path: Path, form: str) -> None:
    (tmp_path / "file").write_bytes(b"\1\2" * (form in ("plain", "lower")) + PACKED[form](WORD.encode()))

    assert canaries_below(tmp_path) == {WORD.lower()}


@pytest.mark.parametrize("code", ["utf-8", "latin-1", "utf-16-le", "utf-16-be"])
def test_an_accented_name_is_found_in_every_encoding(code: str) -> None:
    assert canaries_in(ACCENTED.encode(code)) == {"accented"}


@pytest.mark.parametrize("date", ["19430217", "1943-02-17", "17.02.1943", "1943/02/17", "17/02/1943"])
def test_a_date_is_found_however_it_is_written(date: str) -> None:
    assert canaries_in(date.encode()) == {"date"}


def test_names_of_files_and_metadata_of_arrays_are_searched(tmp_path: Path) -> None:
    first, second = Canaries(count=1).word(), Canaries(count=2).word()
    array = blosc2.asarray(np.zeros(8, np.uint8), urlpath=str(tmp_path / f"{first}.b2nd"))
    array.schunk.vlmeta["note"] = second

    assert canaries_below(tmp_path) == {first.lower(), second.lower()}


def test_nothing_is_found_where_there_is_nothing() -> None:
    assert canaries_in(np.random.default_rng(0).bytes(2**20)) == set()
