"""Each option of an ingest through the command line: what it changes, and that the image says so ever after."""

import json
import stat
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from tests import every_kind as kinds
from tests.command import medssl
from tests.dicom_factory import ct_series, edit, write_volume


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder for the input."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def ingest(source: Path, *options: object, exit_code: int = 0) -> tuple[dict[str, Any], list[ItemRecord]]:
    """The report of `medssl ingest`, and what is in the cache then."""
    cache = source.parent / "cache"
    command = ["ingest", source, "--cache", cache, "--workers", 1, "--report", source.parent / "report.json", *options]
    result = medssl(*command)
    assert result.exit_code == exit_code, result.stderr
    return json.loads((source.parent / "report.json").read_text()), Cache.open(cache).records()


def repaired(source: Path, code: str, option: str, value: str, *more: object) -> tuple[ItemRecord, np.ndarray]:
    """The item that an option makes of a source that is refused without it, and its voxels."""
    refused, records = ingest(source, *more, exit_code=4)
    assert code in refused["by_code"]
    assert not records
    report, [record] = ingest(source, f"--{option}", value, *more)
    assert report["policy"]["departures"] == {option.replace("-", "_"): value}
    assert record.provenance.repairs == (f"{option}={value}",)
    page = Path(next((source.parent / "cache" / "reports").glob("*.html")))
    pages = [page.read_text() for page in page.parent.glob("*.html")]
    assert any(f"{option}={value}" in html for html in pages)
    return record, Cache.open(source.parent / "cache").read_image(record).voxels[0]


def test_a_missing_slice_is_interpolated(source):
    paths = ct_series(source)  # the value of a voxel is its height: 0, 5, 10, 15, 20 mm
    paths[2].unlink()

    record, voxels = repaired(source, "E_MISSING_SLICES", "gaps", "interpolate")

    assert (record.shape[2], record.provenance.num_files) == (5, 4)
    assert sorted(set(voxels.ravel().tolist())) == [0, 5, 10, 15, 20]


def test_a_leaning_stack_is_put_upright_and_every_voxel_stays_in_its_place(source):
    paths = sorted(write_volume(source, kinds.CT), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    for k, path in enumerate(paths):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x, y + 0.7 * k, z])  # one row further in each slice
    leaning = kinds.CT.affine.copy()
    leaning[1, 2] -= 0.7

    record, voxels = repaired(source, "E_GANTRY_TILT", "tilt", "resample")

    index = np.indices(kinds.SHAPE).reshape(3, -1)
    there = np.linalg.inv(record.affine_array) @ leaning @ np.vstack([index, np.ones(index.shape[1])])
    assert np.abs(there - np.rint(there)).max() < 1e-4
    assert np.array_equal(voxels[tuple(np.rint(there).astype(int)[:3])], kinds.CT.voxels[0].ravel())


def test_one_of_two_affines_counts(source):
    image = nib.Nifti1Image(kinds.noise(1), None)
    moved = kinds.MR_AFFINE.copy()
    moved[0, 3] = 5.0
    image.set_qform(kinds.MR_AFFINE, 1)
    image.set_sform(moved, 1)
    nib.save(image, source / "a_1.nii.gz")

    record, voxels = repaired(source, "E_SFORM_QFORM_CONFLICT", "nifti-affine", "sform", "--modality", "MR")

    assert np.array_equal(record.affine_array, moved)
    assert np.array_equal(voxels, kinds.noise(1))


def test_infinite_voxels_become_background(source):
    voxels = kinds.noise(1).astype(np.float32)
    voxels[0, 0, 0], voxels[1, 0, 0] = np.nan, np.inf
    nib.save(nib.Nifti1Image(voxels, kinds.MR_AFFINE), source / "a_1.nii.gz")

    _, stored = repaired(source, "E_NONFINITE_VOXELS", "nonfinite", "background", "--modality", "MR")

    assert stored[0, 0, 0] == stored[1, 0, 0] == kinds.noise(1).min()
    assert np.array_equal(stored[2:], kinds.noise(1)[2:])


def test_a_4d_file_becomes_an_item_for_each_image(source):
    voxels = np.stack([kinds.noise(seed) for seed in (1, 2, 3)], axis=-1)
    nib.save(nib.Nifti1Image(voxels, kinds.MR_AFFINE), source / "a_1.nii.gz")

    refused, _ = ingest(source, "--modality", "MR", exit_code=4)
    report, records = ingest(source, "--modality", "MR", "--split-4d")

    assert refused["by_code"] == {"E_4D_INPUT": 1}
    assert (report["counts"]["accepted"], report["stored"]["images"]) == (1, 3)
    assert {record.provenance.repairs for record in records} == {("split-4d",)}
    cache = Cache.open(source.parent / "cache")
    stored = {cache.read_image(record).voxels[0].tobytes() for record in records}
    assert stored == {kinds.noise(seed).tobytes() for seed in (1, 2, 3)}


@pytest.mark.parametrize("is_kept", [False, True], ids=["default", "kept"])
def test_demographics_are_stored_on_request_only(source, is_kept):
    for path in ct_series(source):
        edit(path, PatientSex="F", PatientAge="063Y")

    _, [record] = ingest(source, *["--keep-demographics"] * is_kept)

    assert (record.acquisition.sex, record.acquisition.age_from_years) == (("F", 60) if is_kept else (None, None))


def test_pictures_with_writing_are_taken_at_the_risk_of_the_site(source):
    kinds.picture(source / "1.dcm", seed=1, patient="P1", BurnedInAnnotation="YES")

    refused, _ = ingest(source, exit_code=4)
    report, [record] = ingest(source, "--burned-in", "accept-risk")

    assert refused["by_code"] == {"E_BURNED_IN": 1}
    assert record.burned_in == "accepted_risk"
    assert report["policy"]["departures"] == {"burned_in": "accept-risk"}


@pytest.mark.parametrize("structures", [None, "Liver"])
def test_structures_that_are_asked_for_are_numbered_in_that_order(source, structures):
    write_volume(source, kinds.CT)
    kinds.structure_set(source.parent / "rt" / "rt.dcm", (1.5, 2.5, 6.5, 5.5), [3, 4])
    ingest(source)

    command = ["ingest", source.parent / "rt", "--cache", source.parent / "cache", "--label-set", "rt"]
    result = medssl(*command, *(["--structures", structures] if structures else []))

    assert result.exit_code == 0, result.stderr
    cache = Cache.open(source.parent / "cache")
    [record] = cache.records(label_set="rt")
    expected = np.zeros(kinds.SHAPE, np.uint8)
    expected[2:7, 3:6, 3:5] = 1
    index = np.indices(kinds.SHAPE).reshape(3, -1)
    there = np.linalg.inv(record.affine_array) @ kinds.CT.affine @ np.vstack([index, np.ones(index.shape[1])])
    voxels = cache.read_label(record, "rt").voxels[0][tuple(np.rint(there).astype(int)[:3])]
    assert np.array_equal(voxels.reshape(kinds.SHAPE), expected)
    assert record.labels["rt"].classes == {1: "Liver"}


@pytest.mark.parametrize(("tolerated", "exit_code"), [("0", 3), ("1", 0), ("10%", 3), ("20%", 0), ("0.5", 3)])
def test_some_refusals_may_be_tolerated(source, tolerated, exit_code):
    ct_series(source)
    (source / "broken.nii").write_bytes(b"junk")  # one of six files: 16.7 %

    report, records = ingest(source, "--max-quarantine", tolerated, exit_code=exit_code)

    assert (report["counts"]["quarantined"], len(records)) == (1, 1)


def test_the_private_map_says_which_file_was_refused_and_nobody_else_can_read_it(source):
    ct_series(source)
    (source / "broken.nii").write_bytes(b"junk")

    report, _ = ingest(source, "--private-map", source.parent / "map.json", exit_code=3)

    [refused] = [entry["id"] for entry in report["items"] if entry["state"] == "quarantined"]
    places = json.loads((source.parent / "map.json").read_text())
    assert places[refused] == [str((source / "broken.nii").resolve())]
    assert stat.S_IMODE((source.parent / "map.json").stat().st_mode) == 0o600


def test_the_same_reason_is_printed_once_and_the_map_is_offered(source):
    ct_series(source)
    for number in range(50):
        (source / f"broken_{number}.nii").write_bytes(b"junk")

    command = ["ingest", source, "--cache", source.parent / "cache", "--workers", 1]
    with_map = [*command, "--private-map", source.parent / "map.json"]
    first, second = (medssl(*one).stderr for one in (command, with_map))

    [line] = [line for line in first.splitlines() if line.startswith("E_NIFTI_HEADER")]
    assert "49 more (50 files)" in line
    assert "--private-map" in first
    assert "--private-map" not in second


def test_a_page_that_was_not_written_is_written_by_the_next_run(source):
    ct_series(source)
    ingest(source)
    [page] = (source.parent / "cache" / "reports").glob("*.html")
    page.unlink()

    ingest(source)

    assert page.is_file()


def test_many_workers_store_what_one_stores(source):
    for seed in range(6):
        kinds.pair(source, f"case_{seed}", seed=seed)

    _, first = ingest(source, "--modality", "MR")
    report, again = ingest(source, "--modality", "MR", "--workers", 3, "--reread")

    assert (report["counts"]["duplicate"], report["stored"]) == (12, {"images": 0, "labels": 0})
    assert again == first


def test_a_cache_inside_of_the_input_is_no_input(source):
    ct_series(source)
    command = ["ingest", source, "--cache", source / "cache", "--workers", 1, "--json"]

    reports = [json.loads(medssl(*command).stdout) for _ in range(2)]
    itself = medssl("ingest", source / "cache", "--cache", source / "cache")

    assert [report["counts"]["seen"] for report in reports] == [5, 5]
    assert itself.exit_code == 2
    assert "E_USAGE" in itself.stderr
