"""What is derived is made anew; what lies in a folder is plain data or nothing."""

import os
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import read_regular
from medssl_cli.base.plain_json import MAX_DEPTH, parse_json
from medssl_cli.cache.catalog import Catalog
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.engine.tensor_files import tensor_bytes
from medssl_cli.engine.weights import load_encoder
from medssl_cli.ingest import known_files
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from tests.dicom_factory import ct_series
from tests.toy_cache import toy_cache


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), b"NaN", b"[-Infinity]", b"1e999", b'"\\ud800"',
     b'{"\\udfff": 1}', b"9" * 5000, b"\xff", b"", b"{"],
    ids=["open", "deep", "nan", "infinity", "overflow", "half", "half key", "long", "bytes", "empty", "cut"],
)  # fmt: skip
def test_what_is_no_plain_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any kind
        parse_json(data)


def test_plain_json_is_what_it_says() -> None:
    whole: dict[str, Any] = {"a": [1, -2.5, None, True, "ä\n"], "b": {"c": 2**62}}
    for _ in range(MAX_DEPTH - 3):
        whole = {"x": whole}

    assert parse_json(repr(whole).replace("'", '"').replace("None", "null").replace("True", "true")) == whole


def test_only_regular_files_of_a_limited_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"12345")

    assert read_regular(tmp_path / "file", max_bytes=5) == b"12345"
    for path, size in ((tmp_path / "file", 4), (tmp_path / "pipe", 9), (tmp_path, 9), (Path("/dev/zero"), 9)):
        with pytest.raises(ValueError):  # noqa: PT011 - of any kind
            read_regular(path, max_bytes=size)


def test_the_largest_size_is_not_set_aside(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")

    tracemalloc.start()
    read_regular(tmp_path / "file", max_bytes=2**30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2**22


def garbage(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)


def other_tables(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.executescript("CREATE TABLE files (a); CREATE TABLE fates (a); CREATE TABLE items (a);")
        connection.execute("PRAGMA user_version = 2")


def other_values(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if "fates" in tables:
            connection.execute("UPDATE fates SET warnings = x'00', state = 7, code = 'E_NONE'")
            connection.execute("UPDATE files SET kind = 3.5")
        if "items" in tables:
            connection.execute("UPDATE items SET document = '[1]', x = 'wide', label_sets = x'ff'")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WAYS = [garbage, other_tables, other_values, pipe]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_known_of_sources_is_a_hint_and_made_anew(
    tmp_path: Path, way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_files, "SETTLED_AFTER_NS", -1)
    ct_series(tmp_path / "ct", positions_mm=(0, 5, 10, 15, 20))
    options = IngestOptions(workers=1)
    ingest([tmp_path / "ct"], tmp_path / "cache", options)
    known = tmp_path / "cache" / "sources.sqlite"
    with sqlite3.connect(known) as connection:
        assert connection.execute("SELECT count(*) FROM files").fetchone() == (5,)
    way(known)

    report = ingest([tmp_path / "ct"], tmp_path / "cache", options)

    assert report.exit_code == 0
    assert len(Cache.open(tmp_path / "cache").records()) == 1
    with sqlite3.connect(known) as connection:
        assert connection.execute("SELECT count(*) FROM files").fetchone() == (5,)


@pytest.mark.parametrize("way", WAYS)
def test_a_catalog_is_made_anew_from_the_items(tmp_path: Path, way: Any) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=3, size=8)
    expected = [record.item_id for record in cache.records()]
    way(tmp_path / "cache" / "catalog.sqlite")

    again = Cache.open(tmp_path / "cache")

    assert [row.item_id for row in again.rows()] == expected
    assert [entry.item_id for entry in again.entries()] == expected
    assert [record.item_id for record in again.records()] == expected
    assert again.rebuild() == 3
    assert [row.item_id for row in Catalog(tmp_path / "cache" / "catalog.sqlite").rows()] == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"affine": ()},
        {"affine": ((1.0, 0, 0, 0),) * 4},
        {"affine": ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, float("nan"), 0), (0, 0, 0, 1.0))},
        {"affine": ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 0.0, 0), (0, 0, 0, 1.0))},
        {"shape": (8, -8, 8)},
        {"shape": (8, 0, 8)},
    ],
)
def test_a_record_that_places_no_voxels_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    record = toy_cache(tmp_path / "cache", num_patients=1, size=8).records()[0]

    with pytest.raises(ValueError, match=r"affine|shape"):
        ItemRecord.model_validate({**record.model_dump(), **changes})


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ({}, 1.0),
        ({"backbone": "{"}, 1.0),
        ({"backbone": "[" * 5000}, 1.0),
        ({"backbone": '{"name": 3}'}, 1.0),
        ({"backbone": '{"name": "unet"}', "in_channels": "-1"}, 1.0),
        ({"backbone": '{"name": "unet"}', "in_channels": "9" * 5000}, 1.0),
        ({"backbone": '{"name": "unet"}'}, float("nan")),
        ({"backbone": '{"name": "unet"}'}, float("inf")),
    ],
)
def test_an_encoder_file_says_what_it_is_and_holds_numbers(tmp_path: Path, words: dict[str, str], value: float) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(tensor_bytes({"weight": torch.tensor([value])}, words))

    with pytest.raises(UsageError, match="E_WEIGHTS_FILE"):
        load_encoder(tmp_path / "encoder.safetensors")
