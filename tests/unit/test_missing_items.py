"""Items that vanish from a cache's folder are named: nobody trains on 9 of 12 patients without a word."""

import json
import shutil
from pathlib import Path

import pytest

from medssl_cli.cache.store import Cache
from tests.command import medssl
from tests.toy_cache import toy_cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return toy_cache(tmp_path / "cache", num_patients=3, size=12)


def folder_of(cache: Cache, item: str) -> Path:
    return next((cache.root / "items").glob(f"*/{item}"))


@pytest.mark.parametrize("gone", ["one item", "all items", "the folder", "a file in its place"])
def test_items_that_are_gone_are_named_by_ls_verify_and_rebuild(cache: Cache, gone: str) -> None:
    items = [record.item_id for record in cache.records()]
    lost = items[:1] if gone == "one item" else items
    if gone == "one item":
        shutil.rmtree(folder_of(cache, items[0]))
    else:
        shutil.rmtree(cache.root / "items")
    if gone == "all items":
        (cache.root / "items").mkdir()
    elif gone == "a file in its place":
        (cache.root / "items").write_text("x")

    for command, code in (("ls", 3), ("verify", 5), ("rebuild", 3)):
        done = medssl("cache", command, "--cache", cache.root)

        assert done.exit_code == code, command
        assert all(f"item {item}" in done.output for item in lost), command
    assert medssl("cache", "rebuild", "--cache", cache.root).exit_code == 0  # said once


def test_a_superseded_or_forgotten_item_is_not_missing(cache: Cache) -> None:
    patient = cache.records()[0].patient_key
    done = medssl("cache", "forget", "--patient", patient, "--cache", cache.root)

    assert done.exit_code == 0
    assert cache.missing_items() == []


def test_a_manifest_names_the_items_that_it_says_nothing_of(cache: Cache, tmp_path: Path) -> None:
    item = cache.records()[0].item_id
    (folder_of(cache, item) / "item.json").write_text("{}")
    file = tmp_path / "manifest.json"

    done = medssl("cache", "manifest", file, "--cache", cache.root)

    assert done.exit_code == 3
    assert f"item {item} is damaged" in done.output
    assert len(json.loads(file.read_text())["items"]) == 2
