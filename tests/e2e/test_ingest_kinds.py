"""Every kind of image and label through the command line: what a hospital types, and what it finds afterwards."""

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.ingest.report import report_schema
from tests import command, warm
from tests import every_kind as kinds
from tests.dicom_factory import SERIES_UID

OPTIONS = ("--modality", "MR", "--burned-in", "accept-risk")


def medssl(*arguments: object, exit_code: int = 0) -> Any:
    """Run a command in this process, as `medssl ARGUMENTS`."""
    result = command.medssl(*arguments)
    assert result.exit_code == exit_code, result.stderr
    return result


def ingest(*arguments: object, exit_code: int = 0) -> Any:
    """The report of an ingest."""
    command = ("ingest", *arguments, "--json", "--workers", 1)
    document = json.loads(medssl(*command, exit_code=exit_code).stdout)
    jsonschema.validate(document, report_schema())
    return document


def tree(root: Path) -> dict[str, tuple[str, int]]:
    """Content and time of everything in a cache but the table of known files, which is a hint only."""
    return {
        str(path.relative_to(root)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(("sources.sqlite", "catalog.sqlite"))
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Everything ingested at once by two workers, in a process of its own, after a dry run."""
    root = tmp_path_factory.mktemp("every-kind")
    images, labels, cache = root / "in", root / "labels", root / "cache"
    kinds.build_images(images)
    kinds.build_labels(labels, images)
    place = SimpleNamespace(root=root, images=images, labels=labels, cache=cache)
    place.dry = ingest(images, labels, "--cache", cache, *OPTIONS, "--dry-run")
    assert not cache.exists()
    command = ["ingest", images, labels, "--cache", cache, *OPTIONS, "--workers", "2"]
    command += ["--report", root / "report.json", "--private-map", root / "map.json"]
    place.run = warm.run(*command, kind="reading", folder=root)
    place.report = json.loads((root / "report.json").read_text())
    place.map = json.loads((root / "map.json").read_text())
    return place


def record_of(place: SimpleNamespace, name: str, nth: int = 0) -> ItemRecord:
    """The item that a source became, by the private map."""
    ids = {key for key, sources in place.map.items() if any(source.endswith(name) for source in sources)}
    items = [entry["item"] for entry in place.report["items"] if entry["id"] in ids and entry["state"] == "accepted"]
    return Cache.open(place.cache).find(items[nth])


def in_world(cache: Cache, record: ItemRecord, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels of an item where the grid of its source has them, found by position in the patient."""
    stored = cache.read_image(record)
    return on_grid(stored.voxels[0], stored.affine, affine, shape)


def on_grid(voxels: np.ndarray, own: np.ndarray, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.indices(shape).reshape(3, -1)
    there = np.linalg.inv(own) @ affine @ np.vstack([index, np.ones(index.shape[1])])
    assert np.abs(there - np.rint(there)).max() < 1e-4
    return voxels[tuple(np.rint(there).astype(int)[:3])].reshape(shape)


def test_every_file_is_accounted_for_and_nothing_is_refused(done):
    report = done.report
    num_files = sum(kinds.IMAGE_FILES.values()) + kinds.LABEL_FILES

    assert done.run.returncode == 0, done.run.stderr
    jsonschema.validate(report, report_schema())
    # 14 members of the archive repeat the series; dataset.json only describes.
    assert report["counts"] == {
        "seen": num_files, "accepted": num_files - 15, "duplicate": 14, "skipped": 1, "quarantined": 0,
        "not_reached": 0,
    }  # fmt: skip
    # 7 marks on pictures and series lie apart; 5 label maps beside images (two channels share one, two organs are one).
    assert report["stored"] == {"images": kinds.NUM_IMAGES, "labels": 7 + 6}
    assert {code: n for code, n in report["by_code"].items() if code[0] != "W"} == {"S_SIDECAR": 1}
    assert sum(map(len, done.map.values())) == num_files


def test_a_dry_run_says_the_same_before(done):
    for name in ("counts", "by_code"):
        assert done.dry[name] == done.report[name]
    assert done.dry["stored"] == {"images": 0, "labels": 0}
    assert done.dry["status"] == "dry-run"
    states = [Counter((entry["state"], entry["files"]) for entry in one["items"]) for one in (done.dry, done.report)]
    assert states[0] == states[1]


@pytest.mark.parametrize("name", ["ct/ct-0003.dcm", "enhanced/e.dcm"])
def test_voxels_of_ct_lie_where_they_were(done, name):
    source = kinds.CT if name.startswith("ct") else kinds.ENHANCED
    record = record_of(done, name)

    assert (record.modality, record.units, record.is_volume) == ("CT", "HU", True)
    stored = in_world(Cache.open(done.cache), record, source.affine, kinds.SHAPE)
    assert np.array_equal(stored, source.voxels[0])


@pytest.mark.parametrize(
    ("name", "seed", "modality"),
    [("case_5.nii.gz", 5, "MR"), ("sub-01_T1w.nii.gz", 11, "MR"), ("brain_21_0001.nii.gz", 22, "MR"),
     ("organs/s0001/ct.nii.gz", 31, "CT")],
)  # fmt: skip
def test_voxels_of_files_lie_where_they_were(done, name, seed, modality):
    record = record_of(done, name)

    assert record.modality == modality
    assert np.array_equal(in_world(Cache.open(done.cache), record, kinds.MR_AFFINE, (8, 7, 6)), kinds.noise(seed))


@pytest.mark.parametrize(("name", "seed"), [("scan_8.nrrd", 8), ("scan_9.mha", 9)])
def test_voxels_of_nrrd_and_metaimage_lie_where_they_were(done, name, seed):
    stored = Cache.open(done.cache).read_image(record_of(done, name))
    lps = np.diag([0.7, 0.9, 2.5, 1.0])  # the defaults of `write_with_simpleitk`
    lps[:3, 3] = (-12.25, 34.5, 100.125)

    voxels = on_grid(stored.voxels[0], stored.affine, np.diag([-1, -1, 1, 1]) @ lps, (8, 7, 6))
    assert np.array_equal(voxels, kinds.noise(seed))


def test_pictures_are_stored_with_what_is_known_of_their_spacing(done):
    x_ray, ultrasound, png = (record_of(done, name) for name in ("dx/1.dcm", "us/1.dcm", "x2.png"))
    pixels = np.random.default_rng(1).integers(0, 4096, (16, 20))

    assert np.array_equal(Cache.open(done.cache).read_image(x_ray).voxels[0, :, :, 0].T, pixels)
    assert (x_ray.spacing_kind, x_ray.burned_in) == ("detector", "no")
    assert np.array_equal(x_ray.affine_array, np.diag([0.2, 0.15, 1, 1]))
    assert (ultrasound.modality, ultrasound.spacing_kind, ultrasound.burned_in) == ("US", "unknown", "accepted_risk")
    assert (png.shape, png.spacing_kind) == ((*kinds.XRAY_SIZE, 1), "unknown")


def test_a_segmentation_object_marks_the_voxels_it_was_drawn_on(done):
    cache, record = Cache.open(done.cache), record_of(done, "ct/ct-0003.dcm")
    label = cache.read_label(record, "seg")

    assert record.labels["seg"].classes == kinds.STRUCTURES
    assert np.array_equal(on_grid(label.voxels[0], label.affine, kinds.CT.affine, kinds.SHAPE), kinds.blocks())
    assert not record_of(done, "enhanced/e.dcm").labels


def test_a_nodule_is_a_box_around_its_place(done):
    record = record_of(done, "ct/ct-0003.dcm")
    [box] = record.boxes["seg"]
    middle = (np.array(box.lower) + box.upper) / 2
    reach = (np.array(box.upper) - box.lower) / 2

    assert record.affine_array[:3, :3] @ middle + record.affine_array[:3, 3] == pytest.approx(
        kinds.world(kinds.NODULE_INDEX)
    )
    assert reach == pytest.approx(3.15 / np.array([0.9, 0.7, 2.5]))
    assert (box.name, box.diameter_mm) == ("nodule", 6.3)


@pytest.mark.parametrize(
    ("name", "nth", "classes"),
    [("images/case_5.nii.gz", 0, ["class_1", "class_2"]), ("sub-01_T1w.nii.gz", 0, ["class_1", "class_2"]),
     ("brain_21_0000.nii.gz", 0, ["edema", "core"]), ("brain_21_0001.nii.gz", 0, ["edema", "core"]),
     ("organs/s0001/ct.nii.gz", 0, ["aorta", "heart"])],
)  # fmt: skip
def test_label_maps_beside_images_keep_their_voxels_and_names(done, name, nth, classes):
    seed = {"case": 5, "sub-": 11, "brai": 21, "ct.n": 31}[Path(name).name[:4]]
    expected = kinds.two_classes(kinds.noise(seed))
    if classes[0] == "aorta":  # numbered in order of their names; the heart was written as 1, the aorta as 2
        expected = np.array([0, 2, 1], np.uint8)[expected]
    record = record_of(done, name, nth)
    label = Cache.open(done.cache).read_label(record, "seg")

    assert list(record.labels["seg"].classes.values()) == classes
    assert np.array_equal(on_grid(label.voxels[0], label.affine, kinds.MR_AFFINE, (8, 7, 6)), expected)


def test_findings_and_boxes_reach_their_pictures(done):
    first, second, third = (record_of(done, f"x{number}.png") for number in (1, 2, 3))

    assert first.findings["seg"] == {"Mass": 1, "Nodule": 1}
    assert second.findings["seg"] == {"Mass": 0, "Nodule": 0}
    assert third.findings["seg"] == {"Mass": 1, "Nodule": 0}
    [box] = first.boxes["seg"]
    assert (box.name, box.lower[:2], box.upper[:2]) == ("opacity", (2.5, 4.5), (12.5, 12.5))
    assert second.boxes["seg"] == ()
    assert "seg" not in third.boxes


def test_the_page_has_a_picture_of_every_item_and_names_nobody(done):
    [page] = (done.cache / "reports").glob("*.html")
    html = page.read_text()
    records = Cache.open(done.cache).records()

    assert len(records) == kinds.NUM_IMAGES
    assert html.count("<img") == len(records)
    assert all(record.item_id[:10] in html for record in records)
    for name in ("case_5", "sub-01", "brain_21", "s0001", "Phantom", SERIES_UID):
        assert name not in html


def test_the_same_command_again_finds_duplicates_and_changes_nothing(done):
    before = tree(done.cache)

    again = ingest(done.images, done.labels, "--cache", done.cache, *OPTIONS)

    assert again["counts"] == {**done.report["counts"], "accepted": 0, "duplicate": done.report["counts"]["seen"] - 1}
    assert again["stored"] == {"images": 0, "labels": 0}
    assert tree(done.cache) == before


def test_a_file_that_is_looked_at_again_by_itself_is_judged_as_it_was_with_the_others(done, tmp_path, monkeypatch):
    monkeypatch.setattr("medssl_cli.ingest.known_files.SETTLED_AFTER_NS", -(10**18))
    cache = shutil.copytree(done.cache, tmp_path / "cache")
    command = (done.images, done.labels, "--cache", cache, *OPTIONS)
    first = ingest(*command)["items"]
    with contextlib.closing(sqlite3.connect(cache / "sources.sqlite")) as connection:
        judgements = dict(connection.execute("SELECT fate, entry FROM fates"))
    together = [
        judgement
        for judgement, key in judgements.items()
        if any("nnunet/" in s or "organs/" in s for s in done.map[key])
    ]
    known = (cache / "sources.sqlite").read_bytes()

    assert len(together) == 7
    for judgement in together:
        (cache / "sources.sqlite").write_bytes(known)
        with contextlib.closing(sqlite3.connect(cache / "sources.sqlite")) as connection, connection:
            connection.execute("DELETE FROM files WHERE fate = ?", (judgement,))
        assert ingest(*command)["items"] == first


@pytest.mark.parametrize("command", ["verify", "audit", "duplicates", "ls"])
def test_the_cache_is_whole_and_private(done, command):
    result = medssl("cache", command, "--cache", done.cache, "--json")

    document = json.loads(result.stdout)
    assert not (document["problems"] if isinstance(document, dict) else command == "duplicates" and document)


def test_a_forgotten_patient_leaves_alone_and_does_not_come_back(done, tmp_path):
    cache = shutil.copytree(done.cache, tmp_path / "cache")
    leaving = record_of(done, "ct/ct-0003.dcm")
    before = {record.item_id for record in Cache.open(cache).records()}

    medssl("cache", "forget", "--patient", leaving.patient_key[:10], "--cache", cache)
    after = {record.item_id for record in Cache.open(cache).records()}
    again = ingest(done.images, done.labels, "--cache", cache, *OPTIONS, exit_code=3)

    assert before - after == {leaving.item_id}
    # The series and its archive; what was drawn on it has lost its image.
    assert again["by_code"]["E_FORGOTTEN"] == 14
    assert again["by_code"]["E_LABEL_WITHOUT_IMAGE"] == 2
    assert {record.item_id for record in Cache.open(cache).records()} == after


def test_labels_may_arrive_after_their_images(done, tmp_path):
    ingest(done.images / "ct", done.images / "xrays", "--cache", tmp_path / "cache", *OPTIONS)

    late = ingest(done.labels, "--cache", tmp_path / "cache")

    assert (late["counts"]["accepted"], late["stored"]) == (4, {"images": 0, "labels": 7})
    records = Cache.open(tmp_path / "cache").records()
    assert len(records) == 4
    for record in records:
        twin = next(one for one in Cache.open(done.cache).iterate() if one.image_sha256 == record.image_sha256)
        assert (record.labels, record.boxes, record.findings) == (twin.labels, twin.boxes, twin.findings)
