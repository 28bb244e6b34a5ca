"""What happens to an input between two ingests: files are added, replaced, corrected and described."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.formats.policy import Policy
from medssl_cli.ingest.ingest import ingest as run_ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.ingest.report import IngestReport
from tests import every_kind as kinds
from tests.dicom_factory import SERIES_UID, ct_series, edit, write_volume


@pytest.fixture(autouse=True)
def _remembers_at_once(monkeypatch):
    """Files that have just been written count as being at rest, so that nothing unchanged is opened again."""
    monkeypatch.setattr("medssl_cli.ingest.known_files.SETTLED_AFTER_NS", -(10**18))


def ingest(source: Path, **options: object) -> IngestReport:
    return run_ingest([source], source.parent / "cache", IngestOptions(workers=1, modality="MR", **options))


def record_with(source: Path, voxels: np.ndarray, *, of_cache: str = "cache") -> ItemRecord:
    """The item that holds some voxels."""
    cache = Cache.open(source.parent / of_cache)
    [record] = [one for one in cache.iterate() if np.array_equal(cache.read_image(one).voxels[0], voxels)]
    return record


def codes(report: IngestReport) -> dict[str, int]:
    return {code: number for code, number in report.by_code.items() if code.startswith("E_")}


@pytest.fixture
def pairs(tmp_path):
    """Two images with their label maps, ingested."""
    for seed in (1, 2):
        kinds.pair(tmp_path / "in", f"case_{seed}", seed=seed)
    ingest(tmp_path / "in")
    return tmp_path / "in"


def test_a_case_that_is_added_is_described_by_the_description_that_was_there(tmp_path):
    kinds.nnunet(tmp_path / "in")
    ingest(tmp_path / "in")
    write_nifti(tmp_path / "in/imagesTr/brain_30_0000.nii.gz", kinds.noise(30), kinds.MR_AFFINE)
    write_nifti(tmp_path / "in/labelsTr/brain_30.nii.gz", kinds.two_classes(kinds.noise(30)), kinds.MR_AFFINE)

    report = ingest(tmp_path / "in")

    assert (report.num_images, report.num_labels) == (1, 1)
    assert record_with(tmp_path / "in", kinds.noise(30)).labels["seg"].classes == {1: "edema", 2: "core"}


def test_a_description_that_is_added_is_not_overlooked(pairs):
    names = {"labels": {"background": 0, "edema": 1, "core": 2}, "modality": {"0": "MRI"}}
    (pairs / "dataset.json").write_text(json.dumps(names))

    report = ingest(pairs)
    other_set = ingest(pairs, label_set="named")

    assert codes(report) == {"E_LABEL_CONFLICT": 2}
    assert "class names" in next(entry.message for entry in report.entries if entry.code == "E_LABEL_CONFLICT")
    assert (codes(other_set), other_set.num_labels) == ({}, 2)
    assert record_with(pairs, kinds.noise(1)).labels["named"].classes == {1: "edema", 2: "core"}


def test_an_image_that_is_replaced_gets_the_label_that_stayed(pairs):
    write_nifti(pairs / "images/case_1.nii.gz", kinds.noise(9), kinds.MR_AFFINE)

    report = ingest(pairs)

    # The image and the label are judged again, the other pair is not.
    assert (report.counts["accepted"], report.counts["duplicate"]) == (2, 2)
    assert "seg" in record_with(pairs, kinds.noise(9)).labels
    assert "seg" in record_with(pairs, kinds.noise(1)).labels  # what was stored stays


def test_a_label_that_did_not_fit_is_taken_when_its_image_is_repaired(tmp_path):
    kinds.pair(tmp_path / "in", "case_1", seed=1)
    kinds.pair(tmp_path / "in", "case_2", seed=2)
    moved = kinds.MR_AFFINE.copy()
    moved[0, 3] = 30
    write_nifti(tmp_path / "in/images/case_1.nii.gz", kinds.noise(1), moved)

    first = ingest(tmp_path / "in")
    write_nifti(tmp_path / "in/images/case_1.nii.gz", kinds.noise(1), kinds.MR_AFFINE)
    second = ingest(tmp_path / "in")

    assert (codes(first), codes(second)) == ({"E_LABEL_GRID_MISMATCH": 1}, {})
    assert second.num_labels == 1


@pytest.mark.parametrize("is_dry", [True, False], ids=["dry", "wet"])
def test_a_corrected_label_is_refused_with_a_way_out(pairs, is_dry):
    corrected = kinds.two_classes(kinds.noise(7))
    write_nifti(pairs / "labels/case_1.nii.gz", corrected, kinds.MR_AFFINE)

    refused = ingest(pairs, dry_run=is_dry)
    taken = ingest(pairs, label_set="corrected")

    assert codes(refused) == {"E_LABEL_CONFLICT": 1}
    assert "--label-set" in next(entry.hint for entry in refused.entries if entry.code == "E_LABEL_CONFLICT")
    assert taken.num_labels == 2
    record = record_with(pairs, kinds.noise(1))
    assert np.array_equal(Cache.open(pairs.parent / "cache").read_label(record, "corrected").voxels[0], corrected)


def test_a_dry_run_over_what_is_there_already_says_so(pairs):
    write_volume(pairs / "ct", kinds.CT)
    kinds.structure_set(pairs / "rt.dcm", (1.5, 1.5, 2.5, 5.5), [3])
    x, y, z = kinds.world(kinds.NODULE_INDEX)
    kinds.table(pairs / "annotations.csv", "seriesuid coordX coordY coordZ diameter_mm", [SERIES_UID, -x, -y, z, 6])
    kinds.table(pairs / "findings.csv", "image edema", ["case_1.nii.gz", 1])

    before, wet, again, dry = (ingest(pairs, reread=True, dry_run=is_dry) for is_dry in (True, False, False, True))

    assert (before.counts, before.by_code) == (wet.counts, wet.by_code)
    assert (dry.counts, dry.by_code) == (again.counts, again.by_code)
    assert (wet.num_labels, dry.counts["accepted"]) == (3, 0)


def test_a_late_table_is_not_put_on_pictures_of_another_folder_with_the_same_name(tmp_path):
    for number, folder in enumerate(("a", "b")):
        kinds.pair(tmp_path / folder, "case_1", seed=number)
        ingest(tmp_path / folder)
    kinds.table(tmp_path / "c" / "findings.csv", "image edema", ["case_1.nii.gz", 1])

    late = ingest(tmp_path / "c")
    shutil.copytree(tmp_path / "a", tmp_path / "c" / "a")
    together = ingest(tmp_path / "c")

    assert codes(late) == {"E_LABEL_AMBIGUOUS": 1}
    assert together.num_labels == 1
    assert record_with(tmp_path / "c", kinds.noise(0)).findings
    assert not record_with(tmp_path / "c", kinds.noise(1)).findings


@pytest.mark.parametrize("workers", [1, 3])
def test_of_two_labels_of_one_series_the_first_file_wins_whatever_the_number_of_workers(tmp_path, workers):
    source = tmp_path / "in"
    write_volume(source / "ct", kinds.CT)
    for number in range(1, 5):
        kinds.structure_set(source / f"rt{number}.dcm", (1.5, 1.5, 2.5 + number, 5.5), [3])

    report = run_ingest([source], tmp_path / "cache", IngestOptions(workers=workers))

    assert codes(report) == {"E_LABEL_CONFLICT": 3}
    [record] = Cache.open(tmp_path / "cache").records()
    assert record.labels["seg"].voxels_per_class == {1: 2 * 4}


@pytest.mark.parametrize(("num_changes", "state"), [(1, "accepted"), (2, "quarantined")])
def test_a_file_that_changes_between_two_looks_gets_a_second_try(tmp_path, monkeypatch, num_changes, state):
    monkeypatch.setattr("medssl_cli.ingest.stages.SECOND_TRY_AFTER_S", 0.0)
    files = ct_series(tmp_path / "in")
    looks = []

    def change(stage: str, done: int, total: int | None) -> None:
        if (stage, done) == ("images", 0):  # all headers are read, no pixel is
            looks.append(stage)
            if len(looks) <= num_changes:
                os.utime(files[2], ns=(0, len(looks)))

    report = run_ingest([tmp_path / "in"], tmp_path / "cache", IngestOptions(workers=1), progress=change)

    assert len(looks) == 2
    assert [(entry.state, entry.num_files) for entry in report.entries] == [(state, 5)]
    assert codes(report) == ({} if state == "accepted" else {"E_CHANGED_DURING_READ": 5})


def test_a_part_of_a_series_that_changes_is_refused_at_once(tmp_path):
    """Its other parts are judged already, and without them it would be judged otherwise."""
    for echo in (1, 2):
        for number, path in enumerate(ct_series(tmp_path / "in" / str(echo))):
            edit(path, AcquisitionNumber=echo, InstanceNumber=5 * echo + number, SOPInstanceUID=f"1.2.{echo}.{number}")

    def change(stage: str, done: int, total: int | None) -> None:
        if (stage, done) == ("images", 0):
            os.utime(path, ns=(0, 1))

    report = run_ingest([tmp_path / "in"], tmp_path / "cache", IngestOptions(workers=1), progress=change)

    assert sorted((entry.state, entry.code) for entry in report.entries) == [
        ("accepted", ""),
        ("quarantined", "E_CHANGED_DURING_READ"),
    ]


@pytest.fixture
def cut_at_the_end(tmp_path):
    """Five slices, the last of which ends too early: 4 are sound."""
    series = ct_series(tmp_path / "in")
    whole = series[-1].read_bytes()
    series[-1].write_bytes(whole[:-8])
    return series[-1], whole


def test_a_damaged_slice_at_the_end_counts_until_it_is_mended(cut_at_the_end):
    damaged, whole = cut_at_the_end
    for _ in range(2):
        assert codes(ingest(damaged.parent)) == {"E_TRUNCATED": 1, "E_INCOMPLETE_SERIES": 4}
    damaged.write_bytes(whole)

    report = ingest(damaged.parent)

    assert (codes(report), report.num_images) == ({}, 1)
    assert Cache.open(damaged.parents[1] / "cache").records()[0].shape[2] == 5


def test_a_damaged_slice_that_is_taken_away_counts_no_more(cut_at_the_end):
    damaged, _ = cut_at_the_end
    ingest(damaged.parent)
    damaged.unlink()

    report = ingest(damaged.parent)

    assert (codes(report), report.num_images) == ({}, 1)


def test_a_slice_that_arrives_damaged_speaks_against_the_series_that_was_stored(tmp_path):
    series = ct_series(tmp_path / "in")
    last = series[-1].read_bytes()
    series[-1].unlink()
    assert ingest(tmp_path / "in").num_images == 1
    series[-1].write_bytes(last[:-8])

    assert codes(ingest(tmp_path / "in")) == {"E_TRUNCATED": 1, "E_INCOMPLETE_SERIES": 4}


def test_what_is_left_of_a_series_is_stored_with_a_note_where_the_site_says_so(cut_at_the_end):
    damaged, _ = cut_at_the_end

    for is_new in (True, False):
        report = ingest(damaged.parent, policy=Policy(gaps="interpolate"))
        assert (report.num_images, report.by_code) == (is_new, {"E_TRUNCATED": 1, "W_INCOMPLETE_SERIES": 1})
    (record,) = Cache.open(damaged.parents[1] / "cache").records()
    assert (record.shape[2], record.provenance.warnings) == (4, ("W_INCOMPLETE_SERIES",))


def test_a_slice_that_cannot_be_opened_counts_like_a_damaged_one(tmp_path, monkeypatch):
    series = ct_series(tmp_path / "in")
    opened = os.open

    def deny(path, *arguments, **options):
        if Path(path) == series[-1]:
            raise PermissionError
        return opened(path, *arguments, **options)

    monkeypatch.setattr("medssl_cli.formats.discover.os.open", deny)

    assert codes(ingest(tmp_path / "in")) == {"E_PERMISSION": 1, "E_INCOMPLETE_SERIES": 4}


def test_an_empty_file_named_like_a_slice_is_a_doubt(tmp_path):
    series = ct_series(tmp_path / "in")
    series[-1].write_bytes(b"")

    assert ingest(tmp_path / "in").by_code == {"S_NOT_AN_IMAGE": 1, "W_INCOMPLETE_SERIES": 1}


def test_a_damaged_member_of_an_archive_takes_its_series_with_it(cut_at_the_end):
    damaged, _ = cut_at_the_end
    shutil.make_archive(str(damaged.parents[1] / "zipped/series"), "zip", damaged.parent)

    assert codes(ingest(damaged.parents[1] / "zipped")) == {"E_TRUNCATED": 1, "E_INCOMPLETE_SERIES": 4}
