"""Verification finds what is damaged, missing or too much; repair removes it, and the source brings it back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import Exit, GateError, UsageError
from medssl_cli.cache.items import Box
from medssl_cli.cache.store import Cache
from medssl_cli.cache.verify import read_manifest, repair_cache
from tests import command
from tests.small_cache import label_of, record_of, stored, volume_of


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Three items of three patients, each with a label and a set of boxes."""
    cache = Cache.open_or_create(tmp_path / "cache")
    fill(cache)
    (cache.root / "sources.sqlite").write_bytes(b"hints")
    return cache


def fill(cache: Cache) -> None:
    """What an ingest of the source does: nothing where nothing is missing."""
    boxes = (Box(name="nodule", lower=(0, 0, 0), upper=(1, 1, 1)),)
    with cache.writing():
        for seed in range(3):
            volume = volume_of(seed)
            record = record_of(cache, volume, f"P{seed}")
            cache.add(volume, record)
            cache.add_label(record.item_id, "seg", label_of(np.ones((6, 5, 4), dtype=np.uint8)), {1: "a"})
            cache.update_record(record.item_id, lambda now: now.model_copy(update={"boxes": {"lidc": boxes}}))


def content(cache: Cache) -> dict[str, bytes]:
    files = [path for path in sorted(cache.root.glob("items/**/*")) if path.is_file()]
    return {str(path.relative_to(cache.root)): path.read_bytes() for path in files}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def medssl(*arguments: object) -> tuple[int, str]:
    done = command.medssl(*arguments)
    return done.exit_code, done.stdout


@pytest.mark.parametrize("name", ["image.b2nd", "item.json"])
def test_a_damaged_item_goes_whole_and_comes_back(cache, name):
    before = content(cache)
    victim = cache.records()[1].item_id
    damage(cache.item_directory(victim) / name)

    with cache.writing():
        assert repair_cache(cache.root) == (1, 0)
        cache.rebuild()

    assert not cache.item_directory(victim).exists()
    assert list(cache.verify()) == [None, None]
    assert len(cache.records()) == 2
    assert not (cache.root / "sources.sqlite").exists()
    fill(cache)
    assert content(cache) == before


@pytest.mark.parametrize("name", ["label-seg-*.b2nd", "label-seg.json", "boxes-lidc.json"])
def test_a_damaged_addition_goes_alone_and_comes_back(cache, name):
    before = content(cache)
    record = cache.records()[1]
    [path] = cache.item_directory(record.item_id).glob(name)
    damage(path)

    [problem] = [problem for problem in cache.verify() if problem]
    assert (problem.item_id, problem.fault) == (record.item_id, "entry")
    with cache.writing():
        assert repair_cache(cache.root) == (0, 1)
        cache.rebuild()

    assert list(cache.verify()) == [None] * 3
    assert sum(len(record.labels) + len(record.boxes) for record in cache.records()) == 5
    fill(cache)
    assert content(cache) == before


def test_several_faults_of_one_item_are_all_repaired(cache):
    directory = cache.item_directory(cache.records()[0].item_id)
    damage(directory / "boxes-lidc.json")
    damage(next(directory.glob("label-*.b2nd")))
    damage(directory / "image.b2nd")

    with cache.writing():
        num_items, num_entries = repair_cache(cache.root)
        cache.rebuild()

    assert (num_items, num_entries) == (1, 1)
    assert list(cache.verify()) == [None, None]


def test_a_label_whose_voxels_are_missing_is_found(cache):
    next(cache.item_directory(cache.records()[0].item_id).glob("label-*.b2nd")).unlink()

    assert [problem.entry for problem in cache.verify() if problem] == ["label-seg.json"]


def test_a_file_that_does_not_belong_is_reported_and_left_alone(cache):
    extra = cache.item_directory(cache.records()[0].item_id) / "notes.txt"
    extra.write_text("x")

    [problem] = [problem for problem in cache.verify() if problem]
    with cache.writing():
        assert repair_cache(cache.root) == (0, 0)

    assert problem.fault == "unknown"
    assert "notes" not in problem.detail
    assert extra.exists()


def test_a_folder_under_another_name_is_damage(cache):
    directory = cache.item_directory(cache.records()[0].item_id)
    shutil.copytree(directory, directory.with_name("a" * 26))

    assert {problem.item_id for problem in cache.verify() if problem} == {"a" * 26}


def test_a_manifest_names_what_a_copy_lacks_has_too_much_or_has_otherwise(cache, tmp_path):
    code, _ = medssl("cache", "manifest", tmp_path / "m.json", "--cache", cache.root)
    assert code == Exit.OK
    assert medssl("cache", "verify", "--manifest", tmp_path / "m.json", "--cache", cache.root)[0] == Exit.OK
    gone, changed, _ = cache.records()
    shutil.rmtree(cache.item_directory(gone.item_id))
    extra = stored(cache, volume_of(9), "P9")
    cache.add_label(changed.item_id, "other", label_of(np.zeros((6, 5, 4), dtype=np.uint8)), {1: "b"})

    code, out = medssl("cache", "verify", "--manifest", tmp_path / "m.json", "--cache", cache.root, "--json")

    assert code == Exit.GATE
    document = json.loads(out)
    assert [(problem["item_id"], problem["detail"]) for problem in document["problems"]] == [
        (gone.item_id, "its folder is gone")
    ]
    assert {entry["item_id"]: entry["detail"].split()[-1] for entry in document["manifest"]} == {
        gone.item_id: "cache",
        extra.item_id: "manifest",
        changed.item_id: "manifest",
    }


def test_a_damaged_manifest_proves_nothing(cache, tmp_path):
    medssl("cache", "manifest", tmp_path / "m.json", "--cache", cache.root)
    text = (tmp_path / "m.json").read_text()
    digest = cache.records()[0].image_sha256
    (tmp_path / "m.json").write_text(text.replace(digest, "0" * 64))

    with pytest.raises(GateError, match="E_CACHE_CORRUPT"):
        read_manifest(tmp_path / "m.json")
    with pytest.raises(UsageError, match="E_NOT_FOUND"):
        read_manifest(tmp_path / "none.json")


def test_verify_says_what_it_repaired_and_is_content_the_next_time(cache):
    damage(cache.image_path(cache.records()[0]))

    code, out = medssl("cache", "verify", "--repair", "--cache", cache.root, "--json")
    again, _ = medssl("cache", "verify", "--cache", cache.root)

    document = json.loads(out)
    assert (code, again) == (Exit.GATE, Exit.OK)
    assert (document["checked"], document["removed_items"], document["removed_entries"]) == (3, 1, 0)
