"""Who leaves is gone; what is left is only what the allow-list allows, and an audit of every file proves it."""

import json
import os
import sqlite3
from pathlib import Path

import blosc2
import numpy as np
import pytest

from medssl_cli.base.errors import Exit, InputError, UsageError
from medssl_cli.cache.audit import audit_cache
from medssl_cli.cache.clear_text import kinds_in_json, kinds_in_report, kinds_of_identity
from medssl_cli.cache.forget import forget_patient
from medssl_cli.cache.prepared import prepare
from medssl_cli.cache.store import Cache
from medssl_cli.preprocessing import Preprocessing
from tests import command
from tests.small_cache import record_of, stored, volume_of
from tests.toy_cache import toy_cache

COARSE = Preprocessing(zscore=True, spacing_mm=(4.0, 4.0, 4.0))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Three labelled patients with prepared views and a report of an ingest each."""
    monkeypatch.chdir(tmp_path)
    cache = toy_cache(tmp_path / "cache", num_patients=3, size=12)
    prepare(cache, cache.records(), COARSE, label_set="seg", num_workers=1)
    (cache.root / "reports").mkdir(mode=0o700)
    for number, record in enumerate(cache.records()):
        report = cache.root / "reports" / f"ingest-{number:016x}.json"
        report.write_text(json.dumps({"started": "2026-11-21T03:00:00Z", "items": [{"item": record.item_id}]}))
        report.chmod(0o600)
    return cache


def medssl(*arguments: object) -> tuple[int, str]:
    done = command.medssl(*arguments)
    return done.exit_code, done.stdout


def mentions(folder: Path, word: str) -> list[str]:
    """Files that hold a word, or are named after it."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in paths if word in str(path) or word.encode() in path.read_bytes()]


def test_forgetting_removes_all_that_was_made_of_a_patient(cache):
    gone, *rest = cache.records()
    expected = {path: path.read_bytes() for record in rest for path in cache.item_directory(record.item_id).iterdir()}
    assert len(mentions(cache.root, gone.item_id)) >= 6

    done = forget_patient(cache, gone.patient_key)

    assert (done.items, done.num_reports, done.num_unreadable, done.runs) == ((gone.item_id,), 1, 0, ())
    assert mentions(cache.root, gone.item_id) == []
    assert mentions(cache.root, gone.patient_key) == [gone.patient_key]
    assert Cache.open(cache.root).records() == rest
    assert {path: path.read_bytes() for path in expected} == expected
    assert list(cache.verify()) == [None, None]
    assert audit_cache(cache.root).problems == {}


def test_who_is_forgotten_is_not_taken_again(cache):
    volume = volume_of()
    record = record_of(cache, volume, "P")
    forget_patient(cache, record.patient_key)

    assert cache.is_forgotten(record.patient_key)
    with pytest.raises(InputError, match="E_FORGOTTEN"):
        cache.add(volume, record)
    assert len(cache.records()) == 3


def test_runs_that_saw_the_patient_are_named(cache, tmp_path):
    gone, other, _ = cache.records()
    for name, record in (("saw", gone), ("did-not", other), ("folds/fold1", gone)):
        entry = {"item": record.item_id, "patient": record.patient_key, "image_sha256": record.image_sha256}
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "manifest.json").write_text(json.dumps({"splits": {"train": [entry], "val": []}}))

    code, out = medssl("cache", "forget", "--patient", gone.patient_key[:10], "--cache", cache.root)

    assert code == Exit.OK
    assert "runs/saw was trained on the patient" in out
    assert "runs/folds/fold1 was trained on the patient" in out
    assert "did-not" not in out


def test_after_a_kill_the_same_command_finishes_the_work(cache, monkeypatch):
    gone = cache.records()[0]
    with monkeypatch.context() as killed:
        killed.setattr(
            "medssl_cli.cache.forget.remove_item", lambda directory: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            forget_patient(cache, gone.patient_key)
    assert cache.is_forgotten(gone.patient_key)

    assert forget_patient(cache, gone.patient_key).items == (gone.item_id,)
    assert mentions(cache.root, gone.item_id) == []


@pytest.mark.parametrize("patient", ["", "1"], ids=["ambiguous", "unknown"])
def test_forgetting_needs_one_patient(cache, patient):
    with pytest.raises(UsageError, match="E_NOT_FOUND"):
        forget_patient(cache, patient)
    assert len(cache.records()) == 3


def test_a_cache_that_we_wrote_passes_the_audit_and_its_names_are_listed(cache):
    code, out = medssl("cache", "audit", "--cache", cache.root, "--json")

    document = json.loads(out)
    assert (code, document["problems"]) == (Exit.OK, {})
    assert document["names"] == ["ball_1", "ball_2", "seg"]
    assert document["files"] > 20


def _row(cache: Cache, text: str) -> None:
    with sqlite3.connect(cache.root / "catalog.sqlite") as connection:
        connection.execute("UPDATE items SET modality = ?", (text,))
    connection.close()


def _class_name(cache: Cache, text: str) -> None:
    from tests.small_cache import label_of

    record = stored(cache, volume_of(), "P")
    cache.add_label(record.item_id, "seg", label_of(np.ones((6, 5, 4), np.uint8)), {1: text})


def _report(cache: Cache, text: str) -> None:
    path = next(cache.root.glob("reports/*.json"))
    path.write_text(json.dumps({"items": [{"hint": [text]}]}))


def _page(cache: Cache, text: str) -> None:
    path = cache.root / "reports" / f"ingest-{'0' * 16}.html"
    path.write_text(f"<p>{text}</p>")
    path.chmod(0o600)


@pytest.mark.parametrize("plant", [_row, _class_name, _report, _page])
@pytest.mark.parametrize(
    "text", ["DOE^JOHN", "1.2.840.113619.2.55.3", "1943-02-17", "19430217", "17.02.1943", "j.doe@example.org"]
)
def test_an_identity_in_clear_fails_the_audit(cache, plant, text):
    plant(cache, text)

    code, out = medssl("cache", "audit", "--cache", cache.root, "--json")

    assert code == Exit.GATE
    problems = json.loads(out)["problems"]
    assert len(problems) == 1 or plant is _class_name
    assert text not in " ".join(problems)


def _field(cache: Cache) -> None:
    """A field that is not on the list, in a record whose digest is right."""
    from medssl_cli.cache.records import _sealed

    path = next(cache.root.glob("items/*/*/item.json"))
    document = json.loads(path.read_text())
    del document["record_sha256"]
    path.write_bytes(_sealed({**document, "PatientName": "x"}))


def _unknown_file(cache: Cache) -> None:
    path = cache.root / "items" / "notes.txt"
    path.write_text("x")
    path.chmod(0o600)


def _link(cache: Cache) -> None:
    (cache.root / "reports" / f"ingest-{'1' * 16}.json").symlink_to("/etc/hostname")


def _open_door(cache: Cache) -> None:
    next(cache.root.glob("items/*/*/image.b2nd")).chmod(0o644)


def _array_metadata(cache: Cache) -> None:
    path = next(cache.root.glob("items/*/*/image.b2nd"))
    array = blosc2.open(str(path), mode="a")
    array.schunk.vlmeta["name"] = "x"


@pytest.mark.parametrize("plant", [_field, _unknown_file, _link, _open_door, _array_metadata])
def test_what_is_not_on_the_list_fails_the_audit(cache, plant):
    plant(cache)

    code, out = medssl("cache", "audit", "--cache", cache.root)

    assert code == Exit.GATE
    assert out.count("E_PRIVACY") == 1


def test_other_folders_can_be_searched_too(cache, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "environment.json").write_text('{"who": "DOE^JOHN"}')

    code, out = medssl("cache", "audit", tmp_path / "runs", "--cache", cache.root)

    assert code == Exit.GATE
    assert "outside of the cache" in out
    assert "DOE" not in out


def test_only_the_owner_can_read_anything_whatever_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        cache = toy_cache(tmp_path / "made" / "cache", num_patients=1, size=12)
        prepare(cache, cache.records(), COARSE, label_set="seg", num_workers=1)
        forget_patient(cache, cache.pseudonyms.of("patient", "nobody"))
        found = [cache.root, *cache.root.rglob("*")]
        assert len(found) > 12
        assert {path.stat().st_mode & 0o777 for path in found if path.is_dir()} == {0o700}
        assert {path.stat().st_mode & 0o777 for path in found if path.is_file()} == {0o600}
    finally:
        os.umask(before)


def test_paths_in_a_cache_are_short_and_the_same_on_every_file_system(cache):
    names = [path.relative_to(cache.root).as_posix() for path in cache.root.rglob("*")]

    assert max(map(len, names)) <= 120
    assert len({name.lower() for name in names}) == len(names)
    assert all(name == name.lower() for name in names)


@pytest.mark.parametrize(
    "text", ["7qk4u2vx7qk4u2vx7qk4u2vx7q", "0" * 64, "gaps=interpolate", "3.0.2", "left upper lobe", "E_IO", "a-1.5"]
)
def test_keys_numbers_and_words_are_no_identities(text):
    assert kinds_of_identity(text) == set()


def test_numbers_our_own_clock_and_pictures_are_no_identities():
    assert kinds_in_json('{"affine": [0.19870926, 19430217.0], "started": "2026-11-21T03:00:00Z"}') == set()
    assert kinds_in_json('{"a": 1}\n{"who": "A^B"}\n') == {"person's name"}
    assert kinds_in_report('<img src="data:image/png;base64,A19430217+A/1.2.3"/> 2026-11-21T03:00:00Z') == set()
    assert kinds_in_report("<p>1943/02/17</p>") == {"date"}
