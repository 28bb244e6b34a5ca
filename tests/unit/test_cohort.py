"""The demo's scans look like a hospital's: a messy tree, one damaged series, one copy, and labels that fit."""

from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from medssl_cli.demo import cohort as cohort_module
from medssl_cli.demo.cohort import JUNK, ORIENTATIONS, Cohort, write_cohort
from medssl_cli.formats.dicom import group_headers, is_dicom, read_headers, read_series
from tests.orientations import orientation_code

NUM_SERIES, NUM_LABELLED = 4, 4


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort_module, "IN_PLANE", 32)
        patch.setattr(cohort_module, "SLICE_MM", (12.0, 15.0))
        return write_cohort(tmp_path_factory.mktemp("demo") / "scans", NUM_SERIES, NUM_LABELLED, 0)


def dicom_files(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in JUNK]
    assert len(files) > 10
    return files


def test_one_series_has_lost_a_slice_and_one_lies_there_twice(cohort):
    slices = Counter(
        pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in dicom_files(cohort.dicom)
    )
    assert set(slices.values()) == {1, 2}

    parts, refusals = group_headers([header for file in dicom_files(cohort.dicom) for header in read_headers(file)])

    assert len(parts) == NUM_SERIES
    assert [refusal.code for refusal in refusals if refusal.code.startswith("E_")] == ["E_MISSING_SLICES"]


def test_every_patient_has_one_series(cohort):
    patients = {
        header.PatientID: header.SeriesInstanceUID
        for header in (pydicom.dcmread(file, stop_before_pixels=True) for file in dicom_files(cohort.dicom))
    }

    assert len(patients) == NUM_SERIES + 1
    assert len(set(patients.values())) == NUM_SERIES + 1


def test_junk_is_no_dicom(cohort):
    junk = [path for path in cohort.dicom.rglob("*") if path.name in JUNK]

    assert len(junk) == len(JUNK)
    assert not any(is_dicom(path.read_bytes()) for path in junk)


def test_labels_lie_on_their_images_grid_in_four_axis_orders(cohort):
    images = sorted((cohort.labelled / "images").iterdir())
    assert len(images) == NUM_LABELLED

    for path in images:
        image, label = nibabel.load(path), nibabel.load(cohort.labelled / "labels" / path.name)
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert set(np.unique(np.asarray(label.dataobj))) <= set(range(8))
    assert len({orientation_code(nibabel.load(path).affine) for path in images}) == len(ORIENTATIONS)


def test_myocardium_points_left_in_every_axis_order(cohort):
    for path in sorted((cohort.labelled / "labels").iterdir()):
        label = nibabel.load(path)
        voxels = np.asarray(label.dataobj)
        myocardium, right_atrium = ((label.affine @ (*np.argwhere(voxels == v).mean(0), 1))[0] for v in (5, 4))

        assert myocardium < right_atrium


def test_unseen_series_lies_where_its_reference_does(cohort):
    parts, refusals = group_headers(
        [header for file in dicom_files(cohort.unseen_series) for header in read_headers(file)]
    )
    assert not refusals
    volume = read_series(parts[0]).volume
    reference = nibabel.load(cohort.reference("dicom"))

    # Where the reference says heart, the scan holds no lung: only true if both have the same place in the world.
    labels = np.asarray(reference.dataobj)
    world = reference.affine @ np.c_[np.argwhere(labels == 1), np.ones((labels == 1).sum())].T
    i, j, k = np.rint(np.linalg.solve(volume.affine, world)[:3]).astype(int)
    assert np.percentile(volume.voxels[0, i, j, k], 5) > 0


def test_a_complete_cohort_stays_as_it_is(cohort):
    before = {path: path.stat().st_mtime_ns for path in cohort.root.rglob("*")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort_module, "_write_all", None)  # not called
        write_cohort(cohort.root, NUM_SERIES, NUM_LABELLED, 0)

    assert {path: path.stat().st_mtime_ns for path in cohort.root.rglob("*")} == before
