"""Real images through the real commands: nothing is lost, patients are patients, and references agree."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import Exit
from medssl_cli.cache.store import Cache
from medssl_cli.imaging.geometry import corner_displacement_mm, reorient_to_ras
from tests import warm

pytestmark = pytest.mark.real_data


def ingest(source: Path, cache: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """`medssl ingest SOURCE --json`: its exit code and its report, in whose books every file appears once."""
    done = warm.run("ingest", source, "--cache", cache, "--json", *options, kind="reading")
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    counts = report["counts"]
    on_disk = sum(path.is_symlink() or path.is_file() for path in source.rglob("*"))
    assert counts["seen"] == on_disk
    assert on_disk == counts["accepted"] + counts["duplicate"] + counts["skipped"] + counts["quarantined"]
    assert set(report["by_code"]) <= set(CODES)
    return done.returncode, report


def ingest_file(source: Path, cache: Path) -> dict[str, Any]:
    """The report of an ingest of one file."""
    return json.loads(warm.run("ingest", source, "--cache", cache, "--json", kind="reading").stdout)


def test_two_frames_of_one_heart_are_one_patient(shared_data: Path, tmp_path: Path) -> None:
    """72 patients have two frames each; two patients have the same images under different labels, which is said."""
    code, report = ingest(shared_data / "acdc", tmp_path / "cache", "--modality", "MR")

    records = Cache.open(tmp_path / "cache").records(label_set="seg")
    assert code == Exit.PARTIAL
    assert report["stored"] == {"images": 142, "labels": 142}
    assert report["by_code"]["E_LABEL_CONFLICT"] == 2
    assert len({record.patient_key for record in records}) == 71
    assert all(record.has_patient_identity for record in records)
    assert {frozenset(record.labels["seg"].classes) for record in records} == {frozenset({1, 2, 3})}


def test_180_hippocampi_are_180_patients_and_come_out_as_they_went_in(shared_data: Path, tmp_path: Path) -> None:
    code, report = ingest(shared_data / "hippocampus", tmp_path / "cache", "--modality", "MR")

    cache = Cache.open(tmp_path / "cache")
    records = cache.records(label_set="seg")
    assert code == Exit.OK
    assert report["stored"] == {"images": 180, "labels": 180}
    assert len({record.patient_key for record in records}) == 180
    stored = {cache.read_image(record).voxels[0].astype(np.float64).tobytes(): record for record in records}
    for path in sorted((shared_data / "hippocampus" / "images").iterdir())[::30]:
        image = nibabel.load(path)
        label = nibabel.load(shared_data / "hippocampus" / "labels" / path.name)
        record = stored[np.ascontiguousarray(image.get_fdata()).tobytes()]
        assert record.shape == image.shape
        assert corner_displacement_mm(record.affine_array, image.affine, record.shape) <= 1e-3
        np.testing.assert_array_equal(cache.read_label(record, "seg").voxels[0], np.asanyarray(label.dataobj))


def test_every_file_of_a_hostile_collection_is_accounted_for(shared_data: Path, tmp_path: Path) -> None:
    code, report = ingest(shared_data / "pydicom_test", tmp_path / "cache")

    assert code in (Exit.OK, Exit.PARTIAL)
    assert report["counts"]["seen"] > 100
    assert not {"E_WORKER_CRASH", "E_DECODER_CRASH"} & set(report["by_code"])
    assert all(entry.get("code") for entry in report["items"] if entry["state"] in ("skipped", "quarantined"))


def test_stored_series_agree_with_the_references_of_others(shared_data: Path, tmp_path: Path) -> None:
    """From the cache, not from the reader: one series of three time points, and the reference of dcm2niix."""
    shutil.copytree(shared_data / "dcm_qa" / "philips", tmp_path / "in", ignore=shutil.ignore_patterns("Ref"))
    _, report = ingest(tmp_path / "in", tmp_path / "cache")

    cache = Cache.open(tmp_path / "cache")
    reference = nibabel.load(shared_data / "dcm_qa" / "philips" / "Ref" / "EPI_asc_CLEAR_201.nii")
    frames = reference.get_fdata()
    volumes = [cache.read_image(record) for record in cache.records()]
    assert report["stored"]["images"] == len(volumes) == frames.shape[3] == 3
    unmatched = list(range(3))
    for volume in volumes:
        own, own_affine = reorient_to_ras(volume.voxels, volume.affine)
        for point in unmatched:
            other, other_affine = reorient_to_ras(frames[None, ..., point], reference.affine)
            if np.allclose(own, other, rtol=1e-6):
                assert corner_displacement_mm(own_affine, other_affine, own.shape[1:]) <= 1e-3
                unmatched.remove(point)
                break
    assert unmatched == []


def test_enhanced_objects_become_volumes_and_copies_are_counted(shared_data: Path, tmp_path: Path) -> None:
    exit_code, report = ingest(shared_data / "dcm_qa" / "agfa", tmp_path / "cache")

    assert exit_code == Exit.OK
    assert (report["counts"]["accepted"], report["counts"]["duplicate"], report["stored"]["images"]) == (4, 4, 4)


def test_three_mosaics_with_one_identifier_are_a_conflict_together_and_volumes_alone(
    shared_data: Path, tmp_path: Path
) -> None:
    mosaics = sorted((shared_data / "dcm_qa" / "12bit" / "In").rglob("*.dcm"))

    together, report = ingest(shared_data / "dcm_qa" / "12bit" / "In", tmp_path / "together")
    alone = [ingest_file(path, tmp_path / f"alone-{number}") for number, path in enumerate(mosaics)]

    assert together == Exit.NOTHING
    assert report["by_code"]["E_DUP_SOP_CONFLICT"] == 3
    assert sum(stored["stored"]["images"] for stored in alone) == 3
