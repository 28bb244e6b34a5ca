"""From files to a cache: everything is accounted for, refused with a reason or stored exactly, and only once."""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest

from medssl_cli.base.errors import Exit, InterruptedCleanlyError, UsageError
from medssl_cli.cache.audit import audit_cache
from medssl_cli.cache.store import Cache
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.ingest import report as ingest_report
from medssl_cli.ingest.ingest import ingest as run_ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.ingest.report import IngestReport, ReportEntry, report_schema
from medssl_cli.report.ingest import ingest_page
from tests.dicom_factory import analytic_phantom, ct_series, edit, write_volume

AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])


def ingest(paths, root, *, progress=None, **options):
    """The ingest with its options by name."""
    return run_ingest(paths, root, IngestOptions(**options), progress=progress)


def write_pair(root: Path, name: str, seed: int, *, shift_mm: float = 0.0) -> np.ndarray:
    """An image and a label of the same name; returns the image's voxels."""
    voxels = np.random.default_rng(seed).integers(0, 1000, (8, 7, 6)).astype(np.int16)
    label = (voxels > 500).astype(np.uint8) + (voxels > 900)
    place = AFFINE.copy()
    place[0, 3] = shift_mm
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write_nifti(root / "images" / f"{name}.nii.gz", voxels, AFFINE)
    write_nifti(root / "labels" / f"{name}.nii.gz", label.astype(np.uint8), place)
    return voxels


def codes(report: IngestReport) -> dict[str, int]:
    return {code: count for code, count in report.by_code.items() if not code.startswith("W_")}


def tree(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(root)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for folder in ("items", "reports")
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


def test_pairs_are_stored_exactly_and_a_repetition_writes_nothing(tmp_path):
    voxels = {name: write_pair(tmp_path / "in", name, seed) for seed, name in enumerate(["p1_a", "p1_b", "p2_a"])}
    root = tmp_path / "cache"

    first = ingest([tmp_path / "in"], root, modality="MR", workers=1)
    before = tree(root)
    second = ingest([tmp_path / "in"], root, modality="MR", workers=1)
    records = Cache.open(root).records(label_set="seg")

    assert (first.exit_code, first.counts["accepted"], first.num_images, first.num_labels) == (Exit.OK, 6, 3, 3)
    assert (second.exit_code, second.counts["duplicate"], second.num_images, second.num_labels) == (Exit.OK, 6, 0, 0)
    assert tree(root) == before
    assert {Path(name).suffix for name in before if name.startswith("reports")} == {".json", ".jsonl"}
    assert len(records) == 3
    assert len({record.patient_key for record in records}) == 2
    for record in records:
        image, label = Cache.open(root).read_image(record), Cache.open(root).read_label(record, "seg")
        [source] = [array for array in voxels.values() if np.array_equal(array, image.voxels[0])]
        assert np.array_equal(image.affine, AFFINE)
        assert np.array_equal(label.voxels[0], (source > 500).astype(int) + (source > 900))
        assert record.labels["seg"].classes == {1: "class_1", 2: "class_2"}


def test_a_mixed_folder_is_accounted_for_file_by_file(tmp_path):
    root = tmp_path / "in"
    write_pair(root, "good_1", 0)
    write_pair(root, "shifted_2", 1, shift_mm=3.0)
    write_pair(root, "orphan_3", 2)
    (root / "images" / "orphan_3.nii.gz").unlink()
    (root / "images" / "copy_1.nii.gz").write_bytes((root / "images" / "good_1.nii.gz").read_bytes())
    damaged = bytearray((root / "images" / "good_1.nii.gz").read_bytes())
    damaged[-6] ^= 1
    (root / "images" / "damaged_4.nii.gz").write_bytes(damaged)
    (root / "readme.txt").write_text("text")
    (root / "empty.dcm").touch()
    os.mkfifo(root / "pipe")
    ct_series(root / "ct", positions_mm=[0, 5, 10, 15, 20])
    ct_series(root / "gap", positions_mm=[0, 5, 10, 20, 25], series_uid="1.2.3.4")

    report = ingest([root], tmp_path / "cache", workers=2)

    # 6 NIfTI pairs' files: good and shifted image, copy, damaged; labels good, shifted, orphan; 10 slices; 3 others
    assert report.counts == {
        "seen": 20, "accepted": 8, "duplicate": 1, "skipped": 3, "quarantined": 8, "not_reached": 0,
    }  # fmt: skip
    assert codes(report) == {
        "E_GZ_CRC": 1,
        "E_LABEL_GRID_MISMATCH": 1,
        "E_LABEL_WITHOUT_IMAGE": 1,
        "E_MISSING_SLICES": 5,
        "S_NOT_AN_IMAGE": 2,
        "S_SPECIAL_FILE": 1,
    }
    assert report.exit_code == Exit.PARTIAL
    jsonschema.validate(report.to_json(), report_schema())


def test_a_dicom_series_comes_out_as_the_phantom_that_went_in(tmp_path):
    phantom = analytic_phantom()
    write_volume(tmp_path / "ct", phantom)

    report = ingest([tmp_path / "ct"], tmp_path / "cache", workers=1)
    [record] = Cache.open(tmp_path / "cache").records()
    stored = Cache.open(tmp_path / "cache").read_image(record)

    assert report.exit_code == Exit.OK
    i, j, k = np.indices(stored.shape)
    world = stored.affine @ np.stack([i, j, k, np.ones_like(i)]).reshape(4, -1)
    index = np.rint(np.linalg.inv(phantom.affine) @ world).astype(int)[:3]
    assert np.allclose(phantom.affine[:3] @ np.vstack([index, np.ones(index.shape[1])]), world[:3], atol=1e-6)
    assert np.array_equal(phantom.voxels[0][tuple(index)], stored.voxels[0].ravel())
    assert (record.modality, record.units, record.provenance.num_files) == ("CT", "HU", phantom.shape[2])


def test_no_identity_reaches_the_cache(tmp_path):
    write_volume(
        tmp_path / "in" / "SECRETFOLDER",
        analytic_phantom(),
        patient_id="CANARYID",
        patient_name="CANARY^NAME",
        series_description="CANARYTEXT",
    )
    voxels = np.arange(64, dtype=np.int16).reshape(4, 4, 4)
    header = nib.Nifti1Header()
    header["descrip"], header["aux_file"], header["intent_name"] = b"CANARYDESC", b"CANARYAUX", b"CANARYINTENT"
    nib.save(nib.Nifti1Image(voxels, AFFINE, header), tmp_path / "in" / "CANARYFILE7.nii.gz")
    nib.save(nib.Nifti1Image(voxels[..., None].repeat(2, 3), AFFINE), tmp_path / "in" / "CANARYBAD8.nii.gz")

    report = ingest([tmp_path / "in"], tmp_path / "cache", workers=1)

    assert report.counts["quarantined"] == 1
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) >= 7
    for path in files:
        content = path.read_bytes().lower()
        for canary in (b"canary", b"secret", b"1.2.826.0.1", str(tmp_path).lower().encode()):
            assert canary not in content, path.name
            assert canary not in str(path.relative_to(tmp_path)).lower().encode()


def test_the_report_follows_its_schema_and_names_nothing(tmp_path):
    write_pair(tmp_path / "in", "patient_17", 0)
    (tmp_path / "in" / "patient_18.nii").write_bytes(b"junk")

    report = ingest([tmp_path / "in"], tmp_path / "cache", workers=1, report_path=tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    document = json.loads(text)

    jsonschema.validate(document, report_schema())
    assert document["status"] == "partial"
    assert "patient" not in re.sub(r'"has_patient_pattern"|W_NO_PATIENT_KEY', "", text)
    [refused] = [item for item in document["items"] if item["state"] == "quarantined"]
    places = {entry.id: sources for entry, sources in report.sources}
    assert places[refused["id"]] == ((tmp_path / "in" / "patient_18.nii").resolve(),)


@pytest.mark.usefixtures("remembers_at_once")
def test_the_report_says_more_about_a_warning_also_when_it_is_recalled(tmp_path):
    for path in ct_series(tmp_path / "in"):
        edit(path, LossyImageCompression="01", LossyImageCompressionRatio="12.5")

    (_, first), (stages, again) = (stages_of([tmp_path / "in"], tmp_path / "cache") for _ in range(2))

    assert stages == set()
    assert [entry.message for entry in (*first.entries, *again.entries)] == ["W_LOSSY: ratio 12.5"] * 2
    assert "W_LOSSY: ratio 12.5" in ingest_page(first.to_json(), Cache.open(tmp_path / "cache"))


def test_classes_and_modality_come_from_dataset_json_and_undeclared_values_are_refused(tmp_path):
    write_pair(tmp_path / "in", "case_1", 0)
    write_pair(tmp_path / "in", "case_2", 1)
    two = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "anterior", "2": "posterior"}}
    one = {**two, "labels": {"0": "background", "1": "anterior"}}

    (tmp_path / "in" / "dataset.json").write_text(json.dumps(one))
    refused = ingest([tmp_path / "in"], tmp_path / "cache", workers=1)
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(two))
    ingest([tmp_path / "in"], tmp_path / "cache", workers=1)

    assert codes(refused) == {"E_LABEL_VALUES": 2, "S_SIDECAR": 1}
    records = Cache.open(tmp_path / "cache").records(label_set="seg")
    assert [record.modality for record in records] == ["MR", "MR"]
    assert {tuple(record.labels["seg"].classes.items()) for record in records} == {((1, "anterior"), (2, "posterior"))}


def test_channels_of_one_patient_share_their_label(tmp_path):
    for channel in range(2):
        write_pair(tmp_path / "raw", "x", channel)
        (tmp_path / "in" / "imagesTr").mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw/images/x.nii.gz").rename(tmp_path / "in" / "imagesTr" / f"case_0007_{channel:04d}.nii.gz")
    (tmp_path / "in" / "labelsTr").mkdir()
    (tmp_path / "raw/labels/x.nii.gz").rename(tmp_path / "in/labelsTr/case_0007.nii.gz")

    report = ingest([tmp_path / "in"], tmp_path / "cache", workers=1)

    records = Cache.open(tmp_path / "cache").records(label_set="seg")
    assert (report.counts["accepted"], report.num_images, report.num_labels) == (3, 2, 2)
    assert len(records) == 2
    assert len({record.patient_key for record in records}) == 1


@pytest.mark.parametrize(
    "values",
    [np.float32([0, 0.5]), np.int16([-1, 0]), np.int32([0, 65_536]), np.arange(257, dtype=np.int16)],
    ids=["fraction", "negative", "large", "image"],
)
def test_a_label_is_a_map_of_a_few_whole_numbers(tmp_path, values):
    write_pair(tmp_path / "in", "p_1", 0)
    write_nifti(tmp_path / "in/labels/p_1.nii.gz", np.resize(values, (8, 7, 6)), AFFINE)

    assert codes(ingest([tmp_path / "in"], tmp_path / "cache", workers=1)) == {"E_LABEL_VALUES": 1}


@pytest.mark.parametrize("values", [[0, 205, 850], [0, 1, 65_535], list(range(256))], ids=["few", "largest", "many"])
def test_values_of_a_label_map_are_kept_up_to_65535(tmp_path, values):
    write_pair(tmp_path / "in", "p_1", 0)
    drawn = np.resize(np.array(values, np.int32), (8, 7, 6))
    write_nifti(tmp_path / "in/labels/p_1.nii.gz", drawn, AFFINE)

    ingest([tmp_path / "in"], tmp_path / "cache", workers=1)

    (record,) = Cache.open(tmp_path / "cache").records(label_set="seg")
    assert record.labels["seg"].voxels_per_class == {value: int((drawn == value).sum()) for value in values if value}


def test_a_label_of_another_shape_is_refused_and_an_empty_one_noted(tmp_path):
    write_pair(tmp_path / "in", "p_1", 0)
    write_pair(tmp_path / "in", "p_2", 1)
    write_nifti(tmp_path / "in/labels/p_1.nii.gz", np.zeros((8, 7, 5), np.uint8), AFFINE)
    write_nifti(tmp_path / "in/labels/p_2.nii.gz", np.zeros((8, 7, 6), np.uint8), AFFINE)

    report = ingest([tmp_path / "in"], tmp_path / "cache", modality="MR", workers=1)

    assert report.by_code == {"E_LABEL_GRID_MISMATCH": 1, "W_EMPTY_LABEL": 1}


def test_files_that_name_no_patient_are_grouped_by_themselves_and_said(tmp_path):
    for seed, name in enumerate(["1.2.840.1", "1.2.840.2"]):
        write_pair(tmp_path / "in", name, seed)

    report = ingest([tmp_path / "in"], tmp_path / "cache", modality="MR", workers=1)
    records = Cache.open(tmp_path / "cache").records()

    assert report.by_code == {"W_NO_PATIENT_KEY": 2}
    assert len({record.patient_key for record in records}) == 2
    assert not any(record.has_patient_identity for record in records)


def test_a_dry_run_judges_the_same_and_writes_nothing(tmp_path):
    write_pair(tmp_path / "in", "p_1", 0)
    (tmp_path / "in" / "p_2.nii").write_bytes(b"junk")

    dry = ingest([tmp_path / "in"], tmp_path / "cache", workers=1, dry_run=True)
    assert not (tmp_path / "cache").exists()
    wet = ingest([tmp_path / "in"], tmp_path / "cache", workers=1)

    assert (dry.counts, dry.by_code) == (wet.counts, wet.by_code)
    assert dry.status == "dry-run"
    jsonschema.validate(dry.to_json(), report_schema())


def test_nothing_usable_is_exit_4(tmp_path):
    (tmp_path / "in").mkdir()
    assert ingest([tmp_path / "in"], tmp_path / "cache").exit_code == Exit.NOTHING
    (tmp_path / "in" / "a.txt").write_text("x")
    assert ingest([tmp_path / "in"], tmp_path / "cache").exit_code == Exit.NOTHING


@pytest.mark.parametrize(
    "options", [{"label_set": "../x"}, {"modality": "XX"}, {"patient_pattern": "("}, {"paths": ["nothing"]}]
)
def test_wrong_options_are_found_before_anything_is_done(tmp_path, options):
    paths = [tmp_path / name for name in options.pop("paths", ["."])]

    with pytest.raises(UsageError):
        ingest(paths, tmp_path / "cache", **options)


def test_a_lost_file_is_a_bug():
    report = IngestReport(
        entries=(ReportEntry("f:" + "a" * 26, "accepted", 1),),
        seen=2, not_reached=0, num_images=1, num_labels=0, key_id="0" * 8, policy={}, started="", duration_s=0,
    )  # fmt: skip

    with pytest.raises(AssertionError):
        report.to_json()
    assert ingest_report.STATES == ("accepted", "duplicate", "skipped", "quarantined")


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGUSR1", 75)])
def test_the_report_of_a_run_that_was_stopped_follows_the_schema(name, exit_code):
    report = IngestReport((), 0, 0, 0, 0, "0" * 8, IngestOptions().recorded, "2026-01-01T00:00:00Z", 1.0)

    document = replace(report, interrupted_by=name).to_json()

    jsonschema.validate(document, report_schema())
    assert (document["exit_code"], document["status"]) == (exit_code, "interrupted")


def test_a_signal_stops_cleanly_and_the_same_command_completes(tmp_path):
    for seed in range(6):
        write_pair(tmp_path / "in", f"p_{seed}", seed)

    def stop_at_the_second_image(stage: str, done: int, total: int | None) -> None:
        if stage == "images" and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedCleanlyError, match="files are left"):
        ingest([tmp_path / "in"], tmp_path / "cache", workers=1, progress=stop_at_the_second_image)
    [path] = (tmp_path / "cache" / "reports").glob("*.json")
    interrupted = json.loads(path.read_text())
    report = ingest([tmp_path / "in"], tmp_path / "cache", workers=1)

    jsonschema.validate(interrupted, report_schema())
    assert (interrupted["status"], interrupted["interrupted_by"], interrupted["exit_code"]) == (
        "interrupted", "SIGTERM", 75,
    )  # fmt: skip
    assert interrupted["counts"]["not_reached"] > 0
    assert report.exit_code == Exit.OK
    assert len(Cache.open(tmp_path / "cache").records(label_set="seg")) == 6


def test_python_gzip_files_are_read_too(tmp_path):
    write_pair(tmp_path / "in", "p_1", 0)
    path = tmp_path / "in/images/p_1.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))

    assert ingest([tmp_path / "in"], tmp_path / "cache", workers=1).exit_code == Exit.OK


@pytest.mark.real_data
def test_every_file_of_a_hostile_collection_is_accounted_for(shared_data, tmp_path):
    report = ingest([shared_data / "pydicom_test"], tmp_path / "cache")

    on_disk = [path for path in (shared_data / "pydicom_test").rglob("*") if path.is_symlink() or path.is_file()]
    assert len(on_disk) > 100
    assert report.seen == len(on_disk)
    assert report.counts["not_reached"] == 0
    assert not {"E_WORKER_CRASH", "E_DECODER_CRASH"} & set(report.by_code)


@pytest.fixture
def remembers_at_once(monkeypatch):
    """The change time of a file cannot be set back, so files that have just been written count as being at rest."""
    monkeypatch.setattr("medssl_cli.ingest.known_files.SETTLED_AFTER_NS", -(10**18))


def stages_of(paths, root, **options):
    """Names of the stages that an ingest needed, and its report."""
    stages: list[str] = []
    report = ingest(paths, root, workers=1, progress=lambda stage, done, total: stages.append(stage), **options)
    return set(stages) - {"discover"}, report


@pytest.mark.usefixtures("remembers_at_once")
def test_files_that_have_not_changed_are_not_opened_again(tmp_path):
    ct_series(tmp_path / "in" / "series")
    write_pair(tmp_path / "in", "p_1", 0)
    (tmp_path / "in" / "broken.nii").write_bytes(b"junk")
    root = tmp_path / "cache"

    first_stages, first = stages_of([tmp_path / "in"], root)
    second_stages, second = stages_of([tmp_path / "in"], root)
    reread_stages, reread = stages_of([tmp_path / "in"], root, reread=True)
    other_stages, _ = stages_of([tmp_path / "in"], root, modality="MR")

    assert first_stages == {"headers", "images", "labels"}
    assert second_stages == set()
    assert (second.counts["duplicate"], second.counts["quarantined"]) == (first.counts["accepted"], 1)
    assert second.by_code == first.by_code
    assert reread_stages == first_stages
    assert reread.counts == second.counts
    assert other_stages == first_stages


@pytest.mark.usefixtures("remembers_at_once")
def test_a_series_that_grew_is_judged_as_a_whole_and_supersedes(tmp_path):
    ct_series(tmp_path / "in", positions_mm=(0, 5, 10, 15))
    root = tmp_path / "cache"
    ingest([tmp_path / "in"], root, workers=1)
    [small] = Cache.open(root).records()

    ct_series(tmp_path / "more", positions_mm=(0, 5, 10, 15, 20, 25))
    for name in ("0005.dcm", "0006.dcm"):
        (tmp_path / "more" / name).rename(tmp_path / "in" / name)
    report = ingest([tmp_path / "in"], root, workers=1)
    [large] = Cache.open(root).records()

    assert report.counts["accepted"] == 6
    assert (small.shape[2], large.shape[2]) == (4, 6)
    assert small.series_key == large.series_key


@pytest.mark.usefixtures("remembers_at_once")
def test_an_item_that_was_lost_is_stored_again(tmp_path):
    ct_series(tmp_path / "in")
    root = tmp_path / "cache"
    ingest([tmp_path / "in"], root, workers=1)
    cache = Cache.open(root)
    [record] = cache.records()
    shutil.rmtree(cache.item_directory(record.item_id))

    report = ingest([tmp_path / "in"], root, workers=1)

    assert report.counts["accepted"] == 5
    assert Cache.open(root).records() == [record]
    ingest([tmp_path / "in"], root, workers=1)
    first, second = sorted((root / "reports").glob("*.json"), key=lambda path: len(path.name))
    assert second.name == f"{first.stem}-2.json"
    assert not audit_cache(root).problems


def test_a_run_leaves_a_trail_and_clears_those_of_killed_runs(tmp_path):
    write_pair(tmp_path / "in", "p_1", 0)
    Cache.open_or_create(tmp_path / "cache")
    (tmp_path / "cache" / "reports").mkdir(exist_ok=True)
    (tmp_path / "cache" / "reports" / "running-999999999.jsonl").write_text("")
    ingest([tmp_path / "in"], tmp_path / "cache", workers=1)

    [trail] = (tmp_path / "cache" / "reports").glob("*.jsonl")
    lines = [json.loads(line) for line in trail.read_text().splitlines()]

    assert [line["state"] for line in lines] == ["accepted", "accepted"]
    assert not list((tmp_path / "cache" / "reports").glob("running-*"))


def test_the_same_image_under_two_identities_is_said_aloud(tmp_path):
    ct_series(tmp_path / "one", patient_id="P1")
    ct_series(tmp_path / "two", patient_id="P2", series_uid="1.2.826.0.1.3680043.8.498.9")

    ingest([tmp_path / "one"], tmp_path / "cache", workers=1)
    report = ingest([tmp_path / "two"], tmp_path / "cache", workers=1)

    assert (report.counts["duplicate"], report.num_images) == (5, 0)
    assert report.by_code["W_NEAR_DUPLICATE"] == 1
