"""What a cache knows of channels and cases: recorded, added later, never replaced, read where there were none."""

import json
import sqlite3
from functools import partial
from pathlib import Path

import pytest

from medssl_cli.base.files import json_bytes, sha256_json
from medssl_cli.cache.audit import audit_cache
from medssl_cli.cache.items import ItemRecord, entry_of
from medssl_cli.cache.store import Cache
from medssl_cli.cache.transfer import export_items
from medssl_cli.cache.verify import compare_with_manifest, read_manifest, repair_cache, write_manifest
from medssl_cli.ingest.channels import add_channel
from tests.small_cache import record_of, stored, volume_of


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open_or_create(tmp_path / "cache")


def with_case(record: ItemRecord, channel: str | None = "flair", example: str | None = "e" * 26) -> ItemRecord:
    return record.model_copy(update={"channel": channel, "example_key": example})


def files_of(cache: Cache, record: ItemRecord) -> list[str]:
    return sorted(path.name for path in cache.item_directory(record.item_id).iterdir())


def rewritten(cache: Cache, record: ItemRecord, **change: object) -> None:
    """`item.json` with other fields and a right digest, as another version would have written it."""
    path = cache.item_directory(record.item_id) / "item.json"
    document = {name: value for name, value in json.loads(path.read_bytes()).items() if name != "record_sha256"}
    document |= change
    path.write_bytes(json_bytes({**document, "record_sha256": sha256_json(document)}))


def test_a_record_without_channel_and_case_is_written_as_before_there_were_any(cache):
    stored(cache, volume_of())

    (path,) = cache.root.glob("items/*/*/item.json")
    assert {"channel", "example_key"}.isdisjoint(json.loads(path.read_bytes()))


def test_channel_and_case_are_recorded_with_the_image(cache):
    volume = volume_of()
    with cache.writing():
        cache.add(volume, with_case(record_of(cache, volume)))

    (record,), (entry,) = cache.records(), cache.entries()
    assert (record.channel, record.example_key) == (entry.channel, entry.example_key) == ("flair", "e" * 26)
    assert entry == entry_of(record)
    assert files_of(cache, record) == ["image.b2nd", "item.json"]


def test_what_was_not_known_is_added_and_what_is_known_stays(cache):
    record = stored(cache, volume_of())
    before = (cache.item_directory(record.item_id) / "item.json").read_bytes()

    with cache.writing():
        assert add_channel(cache, record.item_id, "flair", None)
        assert add_channel(cache, record.item_id, "flair", "e" * 26)
        assert not add_channel(cache, record.item_id, "t1", "e" * 26)
        assert not add_channel(cache, record.item_id, "flair", "f" * 26)

    assert cache.records() == [with_case(record)]
    assert cache.entries() == [entry_of(with_case(record))]
    assert (cache.item_directory(record.item_id) / "item.json").read_bytes() == before
    assert files_of(cache, record) == ["channel.json", "example.json", "image.b2nd", "item.json"]
    assert list(cache.verify()) == [None]
    assert not audit_cache(cache.root).problems


def test_of_two_processes_that_name_a_channel_the_first_wins(cache):
    record = stored(cache, volume_of())

    def change(now: ItemRecord) -> ItemRecord:
        if now.channel is None:
            add_channel(Cache(cache.root), record.item_id, "t1", None)
        return now if now.channel else with_case(now, example=None)

    with cache.writing():
        cache.update_record(record.item_id, change)

    assert [one.channel for one in cache.records()] == ["t1"]


@pytest.mark.parametrize("channel", ["jane_doe", "T1", "p1234567", "", "a" * 40])
def test_a_word_that_is_not_allowed_cannot_be_added(cache, channel):
    record = stored(cache, volume_of())

    with pytest.raises(ValueError, match="channel"):
        cache.update_record(record.item_id, partial(with_case, channel=channel))

    assert files_of(cache, record) == ["image.b2nd", "item.json"]


def test_a_known_channel_cannot_be_changed_by_an_update(cache):
    record = stored(cache, volume_of())
    with cache.writing():
        cache.update_record(record.item_id, with_case)

    with pytest.raises(ValueError, match="only entries"):
        cache.update_record(record.item_id, partial(with_case, channel="t1"))


def test_caches_of_earlier_versions_are_read_and_learn(cache):
    """They knew words of the list as they were written, and no cases; their catalogs hold those words too."""
    first, second = stored(cache, volume_of(1), "P1"), stored(cache, volume_of(2), "P2")
    rewritten(cache, first, channel="t1w")
    with sqlite3.connect(cache.root / "catalog.sqlite") as connection:
        for record, known in ((first, {"channel": "t1w"}), (second, {})):
            document = {**json.loads(record.model_dump_json()), **known}
            connection.execute(
                "UPDATE items SET document = ? WHERE item_id = ?", (json.dumps(document), record.item_id)
            )
    connection.close()

    opened = Cache.open(cache.root)
    found = {record.item_id: (record.channel, record.example_key) for record in opened.records()}

    assert found == {first.item_id: ("t1", None), second.item_id: (None, None)}
    assert {entry.item_id: (entry.channel, entry.example_key) for entry in opened.entries()} == found
    assert list(opened.verify()) == [None, None]
    with opened.writing():
        assert add_channel(opened, first.item_id, "t1", "e" * 26)
    assert opened.record(first.item_id).example_key == "e" * 26


def test_a_damaged_entry_is_found_and_removed_alone(cache):
    record = stored(cache, volume_of())
    with cache.writing():
        cache.update_record(record.item_id, with_case)
    path = cache.item_directory(record.item_id) / "channel.json"
    path.write_bytes(path.read_bytes().replace(b"flair", b"flaix"))

    assert [(problem.entry, problem.fault) for problem in cache.verify() if problem] == [("channel.json", "entry")]
    with cache.writing():
        assert repair_cache(cache.root) == (0, 1)
    assert cache.record(record.item_id).example_key == "e" * 26


def test_a_manifest_tells_cases_apart_and_is_that_of_before_where_there_are_none(cache, tmp_path):
    record = stored(cache, volume_of())
    write_manifest(tmp_path / "before.json", cache.scan())
    with cache.writing():
        cache.update_record(record.item_id, with_case)

    assert set(read_manifest(tmp_path / "before.json")[record.item_id]) == {"image", "annotations"}
    found = list(compare_with_manifest(read_manifest(tmp_path / "before.json"), cache.scan()))
    assert [problem.detail for problem in found] == ["differs from the manifest"]


def test_an_export_says_which_file_is_which_channel(cache, tmp_path):
    plain, channel = stored(cache, volume_of(1), "P1"), stored(cache, volume_of(2), "P2")
    with cache.writing():
        cache.update_record(channel.item_id, with_case)

    before = export_items(cache, tmp_path / "plain", [cache.record(plain.item_id)])
    written = export_items(cache, tmp_path / "both", cache.records())

    assert [path.name for path in before] == [f"{plain.item_id}.nii.gz"]
    assert len(written) == 3
    assert json.loads((tmp_path / "both/channels.json").read_text()) == {
        "items": [
            {
                "file": f"{channel.item_id}.nii.gz",
                "channel": "flair",
                "example": "e" * 26,
                "patient": channel.patient_key,
            }
        ]
    }
