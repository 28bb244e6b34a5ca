"""What an item costs in memory between the catalog and the loader, counted at a small scale."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.cache.items import entry_of
from medssl_cli.cache.prepared import MAX_LOADED, prepare
from medssl_cli.cache.store import Cache
from medssl_cli.data.crops import CropDataset
from medssl_cli.engine.runs import Manifest
from tests.bench.catalog import PREPROCESSING, write_records
from tests.small_cache import label_of, stored, volume_of

BUDGET_BYTES = 500_000_000 // 160_000  # 3125 per item


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    root = tmp_path_factory.mktemp("many") / "cache"
    write_records(root, 300)
    return Cache.open(root)


def size_of(value: object, seen: set[int]) -> int:
    """Bytes of a value and of all that only it holds."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    parts = value.items() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sys.getsizeof(value) + sum(size_of(part, seen) for part in parts)


def test_entries_and_manifest_fit_the_budget(many: Cache) -> None:
    entries = many.entries()
    document = Manifest({"train": entries}, {}).document()

    seen: set[int] = set()
    assert len(entries) == 300
    assert size_of(entries, seen) / 300 < 0.4 * BUDGET_BYTES
    assert size_of(document, seen) / 300 < 0.4 * BUDGET_BYTES


def test_a_worker_gets_little_more_than_names(many: Cache) -> None:
    items = prepare(many, many.entries(), PREPROCESSING)
    dataset = CropDataset(items, (8, 8, 8), batch_size=1, seed=0)

    sent = pickle.dumps(dataset)
    assert items[3].shape == (240, 240, 200)

    assert len(sent) < 300 * 30 + 2000
    assert len(pickle.dumps(dataset)) == len(sent)  # what was looked at since stays here


def test_only_the_last_descriptions_stay(many: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medssl_cli.cache.prepared.MAX_LOADED", 2)
    items = prepare(many, many.entries(), PREPROCESSING)

    seen = [items[place] for place in (0, 1, 2, 0)]

    assert MAX_LOADED > 2
    assert seen[0].item_id == seen[3].item_id
    assert items[0] is seen[3]
    assert items[-1].item_id == items[299].item_id
    with pytest.raises(IndexError):
        items[300]


def test_entries_are_those_of_the_records_with_and_without_a_catalog(tmp_path: Path) -> None:
    cache = Cache.open_or_create(tmp_path / "cache")
    first, _ = (stored(cache, volume_of(seed), patient=f"P{seed}") for seed in (0, 1))
    with cache.writing():
        cache.add_label(first.item_id, "seg", label_of(np.ones((6, 5, 4), np.uint8)), {1: "organ"})
    expected = [entry_of(record) for record in cache.records()]

    from_catalog = cache.entries()
    cache.catalog._path.write_bytes(b"no database")

    assert [entry.label_digests.keys() for entry in expected if entry.label_digests] == [{"seg"}]
    assert from_catalog == expected
    assert cache.entries() == expected


def test_the_manifest_of_entries_is_that_of_records(tmp_path: Path) -> None:
    cache = Cache.open_or_create(tmp_path / "cache")
    stored(cache, volume_of(0))

    assert Manifest({"train": cache.entries()}, {}).document() == Manifest({"train": cache.records()}, {}).document()
