"""What is added to an item later neither overwrites nor loses anything, and needs neither locks nor a catalog."""

import sqlite3
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import GateError, InputError, StorageError
from medssl_cli.cache import reading
from medssl_cli.cache.catalog import Catalog
from medssl_cli.cache.items import Box, ItemRecord
from medssl_cli.cache.publish import publish_first
from medssl_cli.cache.store import Cache
from tests.small_cache import label_of, record_of, stored, volume_of

BOX = Box(name="nodule", lower=(0.5, 1.0, 2.0), upper=(2.5, 3.0, 3.5), diameter_mm=4.0)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open_or_create(tmp_path / "cache")


def with_boxes(record: ItemRecord, *, name: str = "lidc", boxes: tuple[Box, ...] = (BOX,)) -> ItemRecord:
    return record.model_copy(update={"boxes": {**record.boxes, name: boxes}})


def with_findings(record: ItemRecord, *, name: str = "csv", value: float = 1.0) -> ItemRecord:
    return record.model_copy(update={"findings": {**record.findings, name: {"effusion": value}}})


def ones() -> np.ndarray:
    return np.ones((6, 5, 4), dtype=np.uint8)


def test_boxes_and_findings_are_added_once_and_read_back(cache):
    record = stored(cache, volume_of())
    before = (cache.item_directory(record.item_id) / "item.json").read_bytes()

    with cache.writing():
        assert cache.update_record(record.item_id, with_boxes)
        assert cache.update_record(record.item_id, with_findings)
        assert not cache.update_record(record.item_id, with_boxes)

    [found] = cache.records()
    assert found == with_findings(with_boxes(record))
    assert found == cache.record(record.item_id)
    assert (cache.item_directory(record.item_id) / "item.json").read_bytes() == before


def test_an_entry_is_never_replaced_or_removed(cache):
    record = stored(cache, volume_of())
    with cache.writing():
        cache.update_record(record.item_id, with_findings)
        with pytest.raises(InputError, match="E_LABEL_CONFLICT"):
            cache.update_record(record.item_id, partial(with_findings, value=0.0))
        with pytest.raises(InputError, match="E_LABEL_CONFLICT"):
            cache.update_record(record.item_id, lambda now: now.model_copy(update={"findings": {}}))
    assert cache.record(record.item_id) == with_findings(record)


@pytest.mark.parametrize("update", [{"modality": "MR"}, {"boxes": {"../outside": ()}}], ids=["kind", "name"])
def test_nothing_but_entries_with_short_names_can_be_added(cache, update):
    record = stored(cache, volume_of())
    before = sorted(cache.root.rglob("*"))

    with pytest.raises(ValueError, match=r"entries|label set"):
        cache.update_record(record.item_id, lambda now: now.model_copy(update=update))

    assert sorted(cache.root.rglob("*")) == before


def test_a_change_is_decided_again_when_another_process_was_faster(cache):
    """The other process adds the same set of boxes between reading and publishing."""
    record = stored(cache, volume_of())
    seen: list[int] = []

    def change(now: ItemRecord) -> ItemRecord:
        seen.append(len(now.boxes))
        if len(seen) == 1:
            other = Cache(cache.root)
            other.update_record(record.item_id, with_boxes)
            other.update_record(record.item_id, with_findings)
        return with_boxes(now) if not now.boxes else now

    assert not cache.update_record(record.item_id, change)
    assert seen == [0, 1]
    assert cache.records() == [with_findings(with_boxes(record))]


def test_a_label_and_boxes_added_at_the_same_time_are_both_kept(cache):
    record = stored(cache, volume_of())

    def change(now: ItemRecord) -> ItemRecord:
        Cache(cache.root).add_label(record.item_id, "seg", label_of(ones()), {1: "a"})
        return with_boxes(now)

    assert cache.update_record(record.item_id, change)
    [found] = cache.records()
    assert set(found.labels) == {"seg"}
    assert set(found.boxes) == {"lidc"}


def test_the_loser_of_a_race_for_a_label_set_damages_nothing(cache, monkeypatch):
    """Both have looked and found no label; the other publishes first."""
    record = stored(cache, volume_of())
    is_first = True

    def late(path: Path, data: bytes) -> bool:
        nonlocal is_first
        if is_first:
            is_first = False
            Cache(cache.root).add_label(record.item_id, "seg", label_of(ones()), {1: "a"})
        return publish_first(path, data)

    monkeypatch.setattr("medssl_cli.cache.store.publish_first", late)
    with pytest.raises(InputError, match="E_LABEL_CONFLICT"):
        cache.add_label(record.item_id, "seg", label_of(ones() * 2), {2: "b"})

    [found] = cache.records()
    assert list(cache.verify()) == [None]
    assert np.array_equal(cache.read_label(found, "seg").voxels[0], ones())


def test_a_file_system_without_links_gets_renames(cache, monkeypatch):
    record = stored(cache, volume_of())

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)

    assert cache.update_record(record.item_id, with_boxes)
    assert cache.add_label(record.item_id, "seg", label_of(ones()), {1: "a"})
    assert not cache.update_record(record.item_id, with_boxes)
    assert list(cache.verify()) == [None]


def test_an_entry_of_another_item_is_damage(cache):
    first, second = stored(cache, volume_of(1), "P1"), stored(cache, volume_of(2), "P2")
    cache.update_record(first.item_id, with_boxes)
    entry = cache.item_directory(first.item_id) / "boxes-lidc.json"
    (cache.item_directory(second.item_id) / entry.name).write_bytes(entry.read_bytes())

    with pytest.raises(GateError, match="E_CACHE_CORRUPT"):
        cache.record(second.item_id)
    assert [problem.entry for problem in cache.verify() if problem] == ["boxes-lidc.json"]


@pytest.mark.parametrize("text", ["database is locked", "disk I/O error", "unable to open database file"])
def test_a_catalog_that_cannot_be_opened_costs_time_only(cache, monkeypatch, text):
    first = stored(cache, volume_of(1), "P1")

    def refuse(*arguments: object, **options: object) -> None:
        raise sqlite3.OperationalError(text)

    with monkeypatch.context() as broken:
        broken.setattr("medssl_cli.cache.catalog.sqlite3.connect", refuse)
        with cache.writing():
            second = stored(cache, volume_of(2), "P2")
            assert cache.update_record(first.item_id, with_boxes)
            assert not cache.add(volume_of(2), record_of(cache, volume_of(2), "P2"))
        expected = sorted([with_boxes(first), second], key=lambda record: record.item_id)
        reopened = Cache.open(cache.root)
        assert reopened.records() == expected
        assert [row.item_id for row in reopened.rows()] == [record.item_id for record in expected]
        with pytest.raises(StorageError, match="E_IO"):
            reopened.rebuild()

    assert Cache.open(cache.root).records() == expected
    assert not (cache.root / "catalog-is-behind").exists()
    assert cache.catalog.records() == expected


def test_a_catalog_that_fails_halfway_is_finished_from_the_items(cache, monkeypatch):
    expected = sorted((stored(cache, volume_of(seed), f"P{seed}") for seed in range(4)), key=lambda item: item.item_id)

    def half(self: Catalog, series_key: str | None = None) -> object:
        yield from expected[:2]
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(reading.Catalog, "iterate", half)

    assert cache.records() == expected


def test_a_catalog_of_an_older_version_is_made_anew(cache):
    record = stored(cache, volume_of())
    connection = sqlite3.connect(cache.root / "catalog.sqlite")
    connection.execute("PRAGMA user_version = 1")
    connection.close()

    assert cache.records() == [record]
    assert cache.catalog.records() == [record]


def test_rows_say_what_lists_and_splits_need(cache):
    record = stored(cache, volume_of())
    cache.add_label(record.item_id, "seg", label_of(ones()), {1: "a"})

    [row] = cache.rows()

    assert (row.item_id, row.patient_key, row.series_key) == (record.item_id, record.patient_key, record.series_key)
    assert (row.shape, row.fingerprint, row.label_sets) == (record.shape, record.fingerprint, ("seg",))
