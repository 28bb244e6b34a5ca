"""The cache keeps what it is given, exactly and once, and notices every changed byte."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medssl_cli.base.errors import GateError, InputError, NothingUsableError, UsageError
from medssl_cli.cache import splits
from medssl_cli.cache.arrays import encode
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.cache.marker import make_cache, read_marker
from medssl_cli.cache.store import Cache
from medssl_cli.cache.transfer import export_items
from medssl_cli.imaging.volume import Volume
from tests.small_cache import AFFINE, label_of, record_of, stored, volume_of

FLIPS = int(os.environ.get("MEDSSL_FLIPS", "250"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open_or_create(tmp_path / "cache")


def tree(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted((root / "items").rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_an_image_comes_back_as_it_went_in(cache, dtype):
    volume = volume_of(dtype=dtype)

    back = cache.read_image(stored(cache, volume))

    assert back.voxels.dtype == volume.voxels.dtype
    assert np.array_equal(back.voxels, volume.voxels)
    assert np.array_equal(back.affine, volume.affine)
    assert (back.modality, back.units) == ("CT", "HU")


def test_the_same_image_twice_is_one_item_and_writes_nothing(cache):
    volume = volume_of()
    stored(cache, volume)
    before = tree(cache.root)

    with cache.writing():
        assert not cache.add(volume, record_of(cache, volume, patient="somebody else"))

    assert tree(cache.root) == before


def test_content_place_and_modality_make_the_identity(cache):
    volume = volume_of()
    moved = Volume(volume.voxels, volume.affine + np.eye(4)[:, [3]] @ [[0, 0, 0, 0]], "CT", "HU")
    shifted = AFFINE.copy()
    shifted[0, 3] += 1e-5
    others = [
        volume_of(seed=1),
        volume_of(dtype="int32"),
        volume_of(modality="MR"),
        Volume(volume.voxels, shifted, "CT", "HU"),
        Volume(volume.voxels.reshape(1, 5, 6, 4), AFFINE, "CT", "HU"),
    ]

    assert cache.item_id(moved) == cache.item_id(volume)
    assert len({cache.item_id(other) for other in [volume, *others]}) == 1 + len(others)


def test_a_cache_of_the_first_format_keeps_the_identities_that_it_has(cache):
    volume = volume_of()
    new = cache.item_id(volume)
    marker = cache.root / "cache.json"
    marker.write_text(marker.read_text().replace('"format_version": 2', '"format_version": 1'))
    old = Cache.open(cache.root)
    header = f"int16|{volume.voxels.shape}|CT|HU|v1"
    place = (np.round(volume.affine, 6) + 0.0).tobytes()

    assert old.item_id(volume) == old.pseudonyms.of(
        "item", hashlib.sha256(volume.voxels.tobytes()).digest(), header, place
    )
    assert old.item_id(volume) != new
    assert stored(old, volume).item_id == old.item_id(volume)


def test_two_sites_give_unrelated_keys():
    first, second = Pseudonyms(b"1" * 32), Pseudonyms(b"2" * 32)

    assert first.of("patient", "42") != second.of("patient", "42")
    assert first.of("patient", "42") != first.of("study", "42")
    assert first.of("patient", "4", "2") != first.of("patient", "42")
    assert first.key_id != second.key_id


def test_the_key_is_private_and_stays(cache):
    path = cache.root / "site.key"

    assert path.stat().st_mode & 0o777 == 0o600
    assert Cache.open(cache.root).pseudonyms.key_id == cache.pseudonyms.key_id


def test_a_label_is_added_once_and_another_of_the_set_is_refused(cache):
    record = stored(cache, volume_of())
    values = np.zeros((6, 5, 4), dtype=np.uint8)
    values[:2], values[2, 0, 0] = 1, 2

    with cache.writing():
        assert cache.add_label(record.item_id, "seg", label_of(values), {1: "heart", 2: "lung"})
        before = tree(cache.root)
        assert not cache.add_label(record.item_id, "seg", label_of(values), {1: "heart", 2: "lung"})
        with pytest.raises(InputError, match="E_LABEL_CONFLICT"):
            cache.add_label(record.item_id, "seg", label_of(values * 0), {1: "heart"})
    [with_label] = cache.records(label_set="seg")

    assert tree(cache.root) == before
    assert with_label.labels["seg"].voxels_per_class == {1: 40, 2: 1}
    assert with_label.labels["seg"].classes == {1: "heart", 2: "lung"}
    assert np.array_equal(cache.read_label(with_label, "seg").voxels[0], values)


def test_regions_are_kept_with_a_label_and_one_from_before_there_were_any_is_the_same_label(cache):
    old, new = stored(cache, volume_of(1)), stored(cache, volume_of(2))
    label, names, regions = label_of(np.ones((6, 5, 4), np.uint8)), {1: "class_1", 2: "core"}, {"whole": (1, 2)}

    with cache.writing():
        cache.add_label(old.item_id, "seg", label, names)
        assert not cache.add_label(old.item_id, "seg", label, names, regions=regions)
        assert cache.add_label(new.item_id, "seg", label, names, regions=regions)
        assert not cache.add_label(new.item_id, "seg", label, names, regions=regions)
        with pytest.raises(InputError, match="E_LABEL_CONFLICT"):
            cache.add_label(new.item_id, "seg", label, names, regions={"whole": (1, 3)})

    assert "regions" not in cache.record(old.item_id).labels["seg"].model_dump()
    assert Cache.open(cache.root).record(new.item_id).labels["seg"].regions == regions


def test_the_catalog_is_rebuilt_from_the_items(cache):
    expected = [stored(cache, volume_of(seed), f"P{seed}") for seed in range(3)]
    by_id = sorted(expected, key=lambda record: record.item_id)

    (cache.root / "catalog.sqlite").write_bytes(b"not a database")
    assert cache.records() == by_id

    for path in cache.root.glob("catalog.sqlite*"):
        path.unlink()
    assert Cache.open(cache.root).records() == by_id


def test_a_writer_that_died_leaves_a_mark_and_the_next_reader_rebuilds(cache):
    record = stored(cache, volume_of())
    cache.catalog.replace_all(list)
    (cache.root / "writing-999999999").touch()

    reopened = Cache.open(cache.root)

    assert reopened.records() == [record]
    assert list(cache.root.glob("writing-*")) == []


def test_temporaries_of_dead_writers_are_removed_and_never_read(cache):
    record = stored(cache, volume_of())
    leftover = cache.item_directory(record.item_id).parent / ".tmp-999999999-0123456789ab"
    leftover.mkdir()
    (leftover / "item.json").write_text("{}")

    assert cache.rebuild() == 1
    assert list(cache.verify()) == [None]
    with cache.writing():
        assert not leftover.exists()


@pytest.mark.parametrize("name", ["image.b2nd", "label-seg-*.b2nd", "item.json", "label-seg.json"])
def test_verification_finds_any_flipped_bit(cache, name):
    record = stored(cache, volume_of())
    with cache.writing():
        cache.add_label(record.item_id, "seg", label_of(np.ones((6, 5, 4), dtype=np.uint8)), {1: "a"})
    [path] = cache.item_directory(record.item_id).glob(name)
    sound = path.read_bytes()
    assert list(cache.verify()) == [None]

    for position in np.random.default_rng(0).integers(0, 8 * len(sound), FLIPS):
        damaged = bytearray(sound)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        [problem] = cache.verify()
        assert problem is not None
        assert (problem.item_id, problem.code) == (record.item_id, "E_CACHE_CORRUPT")


def test_verification_finds_a_missing_file(cache):
    record = stored(cache, volume_of())
    cache.image_path(record).unlink()

    [problem] = cache.verify()

    assert problem is not None
    assert problem.code == "E_CACHE_CORRUPT"


def test_a_damaged_array_is_an_error_and_not_a_picture(cache):
    record = stored(cache, volume_of())
    cache.image_path(record).write_bytes(b"damaged")

    with pytest.raises(GateError, match="E_CACHE_CORRUPT"):
        cache.read_image(record)


def test_a_folder_that_holds_something_else_is_not_taken_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")

    with pytest.raises(UsageError, match="E_NO_CACHE"):
        Cache.open_or_create(tmp_path)
    with pytest.raises(UsageError, match="E_NO_CACHE"):
        Cache.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_cache_that_another_process_has_just_made_and_filled_is_taken(tmp_path):
    record = stored(Cache.open_or_create(tmp_path / "cache"), volume_of())
    before = read_marker(tmp_path / "cache")
    make_cache(tmp_path / "cache", None)
    assert read_marker(tmp_path / "cache") == before
    assert [one.item_id for one in Cache.open(tmp_path / "cache").records()] == [record.item_id]


def test_a_cache_that_another_process_makes_between_two_looks_is_taken(tmp_path, monkeypatch):
    before = read_marker(Cache.open_or_create(tmp_path / "cache").root)
    with monkeypatch.context() as once:
        once.setattr(os, "listdir", lambda _: [])  # as it was at the first look
        make_cache(tmp_path / "cache", None)
    assert read_marker(tmp_path / "cache") == before


def test_a_cache_of_a_newer_version_is_not_touched(cache):
    (cache.root / "cache.json").write_text('{"format_version": 99}')

    with pytest.raises(UsageError, match="E_CACHE_VERSION"):
        Cache.open(cache.root)


def test_asking_for_what_is_not_there_says_what_is_missing(cache):
    with pytest.raises(NothingUsableError, match="E_CACHE_EMPTY"):
        cache.require_records()
    record = stored(cache, volume_of())
    with pytest.raises(NothingUsableError, match="E_NO_LABELS"):
        cache.require_records(label_set="seg")
    with pytest.raises(NothingUsableError, match="E_CACHE_EMPTY"):
        cache.require_records(modality="MR")
    assert cache.require_records(modality="CT") == [record]


def test_nothing_but_the_allow_list_can_be_recorded(cache):
    document = record_of(cache, volume_of()).model_dump()

    with pytest.raises(ValueError, match="PatientName"):
        ItemRecord.model_validate({**document, "PatientName": "DOE^JOHN"})


def test_an_export_is_read_by_nibabel_as_it_is_in_the_cache(cache, tmp_path):
    volume = volume_of()
    record = stored(cache, volume)
    values = (volume.voxels[0] > 50).astype(np.uint8)
    with cache.writing():
        cache.add_label(record.item_id, "seg", label_of(values), {1: "a"})

    written = export_items(cache, tmp_path / "out", cache.records())

    image, label = (nib.load(path) for path in written)
    assert [path.name for path in written] == [f"{record.item_id}.nii.gz", f"{record.item_id}_seg.nii.gz"]
    assert np.array_equal(np.asanyarray(image.dataobj), volume.voxels[0])
    assert np.array_equal(np.asanyarray(label.dataobj), values)
    assert np.allclose(image.affine, AFFINE, rtol=1e-6, atol=1e-5)
    assert np.array_equal(image.affine, label.affine)


def test_an_item_that_cannot_be_exported_is_named_and_stops_no_other(cache, tmp_path):
    items = [stored(cache, volume_of(seed)) for seed in (1, 2, 3)]
    (cache.item_directory(items[1].item_id) / "image.b2nd").write_bytes(b"damaged")

    with pytest.raises(GateError, match=f"E_CACHE_CORRUPT: {items[1].item_id}: .*2 files are written"):
        export_items(cache, tmp_path / "out", items)

    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{items[k].item_id}.nii.gz" for k in (0, 2)}


def patients(records: tuple[ItemRecord, ...]) -> set[str]:
    return {record.patient_key for record in records}


@pytest.fixture
def cohort(cache) -> list[ItemRecord]:
    """Twenty patients with two items each, no label file behind the records."""
    template = record_of(cache, volume_of())
    label = {"sha256": "0" * 64, "classes": {1: "a"}, "voxels_per_class": {1: 1}}
    return [
        ItemRecord.model_validate(
            {
                **template.model_dump(),
                "item_id": cache.pseudonyms.of("item", str(number), str(copy)),
                "patient_key": cache.pseudonyms.of("patient", str(number)),
                "labels": {"seg": label},
                "fingerprint": None,
            }
        )
        for number in range(20)
        for copy in range(2)
    ]


@pytest.mark.parametrize("fold", range(5))
def test_no_patient_is_in_two_parts_of_a_split_and_none_is_lost(cohort, fold):
    split = splits.split_items(cohort, cohort, seed=0, fold=fold)

    parts = [patients(split.train), patients(split.val), patients(split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20
    assert len(parts[2]) == 20 // splits.TEST_EVERY
    assert len(split.train) + len(split.val) + len(split.test) == len(cohort)


def test_every_patient_outside_of_the_test_set_validates_in_exactly_one_fold(cohort):
    validated = [patients(splits.split_items(cohort, cohort, seed=0, fold=fold).val) for fold in range(5)]

    assert sum(map(len, validated)) == len(set.union(*validated)) == 16


@pytest.mark.parametrize(
    ("fold", "num_folds", "told"), [(0, 17, "too few for 17 folds"), (9, 9, "ask for|take a lower")]
)
def test_more_folds_than_patients_are_refused(cohort, fold, num_folds, told):
    few = cohort if num_folds == 17 else cohort[:20]

    with pytest.raises(NothingUsableError, match="E_TOO_FEW_PATIENTS") as refused:
        splits.split_items(few, few, seed=0, fold=fold, num_folds=num_folds)

    assert re.search(told, f"{refused.value.message} {refused.value.hint}")


def test_a_split_depends_on_patients_and_seed_and_not_on_the_order(cohort):
    split = splits.split_items(cohort, cohort, seed=0, fold=0)
    again = splits.split_items(cohort[::-1], cohort[::-1], seed=0, fold=0)

    assert patients(split.test) == patients(again.test)
    assert patients(split.train) == patients(again.train)
    assert patients(split.test) != patients(splits.split_items(cohort, cohort, seed=1, fold=0).test)


def test_a_fraction_shrinks_training_only_and_smaller_ones_are_contained(cohort):
    whole, half, one = (
        splits.split_items(cohort, cohort, seed=0, fold=0, fraction=fraction) for fraction in (1.0, 0.5, 0.001)
    )

    assert patients(one.train) < patients(half.train) < patients(whole.train)
    assert len(patients(one.train)) == 1
    assert (half.val, half.test) == (whole.val, whole.test)


def test_patients_without_labels_are_never_tested_on(cohort):
    unlabelled = [record.model_copy(update={"labels": {}}) for record in cohort]

    assert splits.held_out_patients(unlabelled, seed=0) == set()


def test_too_few_patients_are_an_error(cohort):
    with pytest.raises(NothingUsableError, match="E_TOO_FEW_PATIENTS"):
        splits.split_items(cohort[:2], cohort[:2], seed=0, fold=0)


def test_the_same_image_gives_the_same_bytes_whatever_the_environment(tmp_path):
    code = (
        "import hashlib, numpy\n"
        "from medssl_cli.cache.arrays import encode\n"
        "from medssl_cli.cli.boundary import guarded\n"
        "voxels = numpy.arange(60000, dtype='int16').reshape(100, 20, 30)\n"
        "guarded(lambda: print(hashlib.sha256(encode(voxels)).hexdigest()))()"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "BLOSC_NTHREADS": threads}, check=True, capture_output=True
        ).stdout
        for threads in ("1", "3")
    }
    here = hashlib.sha256(encode(np.arange(60000, dtype=np.int16).reshape(100, 20, 30))).hexdigest()

    assert answers == {f"{here}\n".encode()}
