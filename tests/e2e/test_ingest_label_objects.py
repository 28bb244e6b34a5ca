"""Segmentations and structure sets through the whole ingest: on which images they end, and what the report says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medssl_cli.base.errors import Exit
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.formats.labels import Instance
from medssl_cli.imaging.geometry import Affine
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.ingest.report import IngestReport
from tests.dicom_factory import SERIES_UID, ct_series, edit, group
from tests.unit.test_dicom_enhanced import _enhanced_mr
from tests.unit.test_labels_rtstruct import square, structure_set
from tests.unit.test_labels_seg import seg

HEIGHTS_MM = (0, 5, 10, 15)
SIZE = (6, 5)


def run(folder: Path, cache: Path, **options: Any) -> IngestReport:
    return ingest([folder], cache, IngestOptions(workers=1, **options))


def labelled(cache: Path) -> dict[int, dict[str, int]]:
    """For each image by its first voxel: voxels of each class."""
    found = {}
    opened = Cache.open(cache)
    for record in opened.records():
        first = int(opened.read_image(record).voxels[0, 0, 0, 0])
        found[first] = _counts(record)
    return found


def _counts(record: ItemRecord) -> dict[str, int]:
    label = record.labels.get("seg")
    return {} if label is None else {label.classes[value]: count for value, count in label.voxels_per_class.items()}


def phases(folder: Path, number: int, *, series_uid: str = SERIES_UID) -> list[Path]:
    """A series of several phases on one grid; a phase has its number as value."""
    paths = []
    for phase in range(1, number + 1):
        for path in ct_series(folder / str(phase), positions_mm=HEIGHTS_MM, series_uid=series_uid):
            dataset = pydicom.dcmread(path)
            dataset.PixelData = np.full((SIZE[1], SIZE[0]), phase - int(dataset.RescaleIntercept), "<i2").tobytes()
            dataset.AcquisitionNumber = phase
            dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}.{phase}"
            dataset.InstanceNumber = dataset.InstanceNumber + 10 * phase
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.save_as(path)
            paths.append(path)
    return paths


def references(paths: Sequence[Path]) -> list[Dataset]:
    """ReferencedSeriesSequence of some slices."""
    by_series: dict[str, list[Dataset]] = {}
    for path in paths:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        instance = Dataset()
        instance.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
        by_series.setdefault(dataset.SeriesInstanceUID, []).append(instance)
    found = []
    for uid, instances in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID, series.ReferencedInstanceSequence = uid, instances
        found.append(series)
    return found


def frames_on(paths: Sequence[Path]) -> tuple[list[tuple[int, NDArray[np.uint8], Affine]], list[list[Instance]]]:
    """A frame of 6 marked pixels on each slice, and what it was drawn on."""
    pixels = np.zeros(SIZE, np.uint8)
    pixels[1:4, 2:4] = 1
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    frames = [(1, pixels, affine_of(header)) for header in headers]
    return frames, [[Instance(str(header.SOPInstanceUID))] for header in headers]


def affine_of(header: Dataset) -> Affine:
    """Column, row and 0 of a slice to RAS."""
    affine = np.eye(4)
    affine[:3, :2] = np.array(header.ImageOrientationPatient, float).reshape(2, 3).T * header.PixelSpacing[::-1]
    affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
    affine[:3, 3] = header.ImagePositionPatient
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def test_each_phase_gets_what_was_drawn_on_it_and_the_same_again_changes_nothing(tmp_path: Path) -> None:
    paths = phases(tmp_path / "in", 3)
    frames, sources = frames_on([*paths[1:3], paths[9]])
    seg(
        tmp_path / "in" / "seg.dcm",
        frames,
        names=("Lesion",),
        sources=sources,
        ReferencedSeriesSequence=references(paths),
    )

    first = run(tmp_path / "in", tmp_path / "cache")
    again = run(tmp_path / "in", tmp_path / "cache")

    assert (first.exit_code, again.exit_code) == (Exit.OK, Exit.OK)
    assert labelled(tmp_path / "cache") == {1: {"Lesion": 12}, 2: {}, 3: {"Lesion": 6}}
    assert (first.num_labels, again.num_labels) == (2, 0)
    assert again.counts["duplicate"] == len(paths) + 1


def test_a_label_that_does_not_say_which_phase_is_refused_and_put_on_none(tmp_path: Path) -> None:
    paths = phases(tmp_path / "in", 2)
    frames, _ = frames_on(paths[1:3])
    seg(tmp_path / "in" / "seg.dcm", frames, names=("Lesion",), ReferencedSeriesSequence=references(paths))

    report = run(tmp_path / "in", tmp_path / "cache")

    assert report.exit_code == Exit.PARTIAL
    assert report.by_code["E_LABEL_AMBIGUOUS"] == 1
    assert labelled(tmp_path / "cache") == {1: {}, 2: {}}


def test_a_label_of_a_phase_that_was_refused_is_not_put_on_another(tmp_path: Path) -> None:
    paths = phases(tmp_path / "in", 2)
    frames, sources = frames_on(paths[5:7])
    listed = references(paths)
    for path in paths[4:]:
        path.unlink()
    seg(tmp_path / "in" / "seg.dcm", frames, names=("Lesion",), sources=sources, ReferencedSeriesSequence=listed)

    report = run(tmp_path / "in", tmp_path / "cache")

    assert report.by_code["E_LABEL_WITHOUT_IMAGE"] == 1
    assert labelled(tmp_path / "cache") == {1: {}}


def label_of_kind(kind: str, path: Path, slices: Sequence[Path], patient: str) -> None:
    """A segmentation or structure set of a patient, drawn on slices."""
    frames, sources = frames_on(slices)
    if kind == "seg":
        listed = references(slices)
        seg(path, frames, names=("Lesion",), sources=sources, ReferencedSeriesSequence=listed, PatientID=patient)
    else:
        affine = affine_of(pydicom.dcmread(slices[0]))
        uid = pydicom.dcmread(slices[0]).SOPInstanceUID
        structure_set(path, {"Lesion": [square(0.5, 1.5, 3.5, 3.5, 0)]}, affine, PatientID=patient)
        dataset = pydicom.dcmread(path)
        for contour in dataset.ROIContourSequence[0].ContourSequence:
            image = Dataset()
            image.ReferencedSOPInstanceUID = uid
            contour.ContourImageSequence = [image]
        dataset.save_as(path)


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(("patient", "code"), [("P1", ""), ("P2", "E_LABEL_KEYS"), ("P3", "W_LABEL_PATIENT"), ("", "")])
def test_a_label_of_another_patient_than_its_image_is_not_stored_without_a_word(
    tmp_path: Path, patient: str, code: str, is_late: bool, kind: str
) -> None:
    """P2 has an image here, P3 has none: somebody may have renamed one of the two."""
    paths = ct_series(tmp_path / "in" / "1", positions_mm=HEIGHTS_MM, patient_id="P1")
    ct_series(tmp_path / "in" / "2", patient_id="P2", series_uid="1.2.77", study_uid="1.2.78")
    if is_late:
        run(tmp_path / "in", tmp_path / "cache")
    label_of_kind(kind, tmp_path / "in" / "label.dcm", paths[1:3], patient)

    report = run(tmp_path / "in", tmp_path / "cache")

    assert {found for found in report.by_code if found in ("E_LABEL_KEYS", "W_LABEL_PATIENT")} == ({code} - {""})
    assert report.exit_code == (Exit.PARTIAL if code.startswith("E") else Exit.OK)
    assert report.num_labels == (0 if code.startswith("E") else 1)


def test_a_label_that_comes_later_finds_the_phases_of_an_unchanged_folder_only(tmp_path: Path) -> None:
    """The cache keeps no identity of slices: without them, a label on a series of several images is refused."""
    paths = phases(tmp_path / "in", 2)
    frames, sources = frames_on(paths[5:7])
    run(tmp_path / "in", tmp_path / "cache")
    (tmp_path / "late").mkdir()
    options = {"names": ("Lesion",), "sources": sources, "ReferencedSeriesSequence": references(paths)}
    path = seg(tmp_path / "late" / "seg.dcm", frames, **options)

    alone = run(tmp_path / "late", tmp_path / "cache")
    assert alone.by_code["E_LABEL_AMBIGUOUS"] == 1
    path.rename(tmp_path / "in" / "seg.dcm")
    beside = run(tmp_path / "in", tmp_path / "cache")

    assert beside.exit_code == Exit.OK
    assert labelled(tmp_path / "cache") == {1: {}, 2: {"Lesion": 12}}


def test_contours_name_frames_of_a_multi_frame_image(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = _enhanced_mr(tmp_path / "in" / "mr.dcm", b_values=(0, 700))
    parts, _ = group([path])
    contours = {"Lesion": [square(0.5, 0.5, 4.5, 2.5, index) for index in (1, 2)]}
    rt = structure_set(tmp_path / "in" / "rt.dcm", contours, parts[1].affine)
    dataset = pydicom.dcmread(rt)
    for contour, frame in zip(dataset.ROIContourSequence[0].ContourSequence, (6, 7), strict=True):
        (image,) = contour.ContourImageSequence
        image.ReferencedSOPInstanceUID, image.ReferencedFrameNumber = "1.2.3.4", frame
    study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.1"
    dataset.save_as(rt)

    report = run(tmp_path / "in", tmp_path / "cache")

    assert report.exit_code == Exit.OK
    # b = 0 is frames 1 to 4, whose first stored value is 0: 2 * 0 + 1; b = 700 begins with pixel 4 * 24.
    assert labelled(tmp_path / "cache") == {1: {}, 2 * 96 + 1: {"Lesion": 4 * 2 * 2}}


def test_of_two_series_that_are_named_the_one_whose_grid_fits_is_meant(tmp_path: Path) -> None:
    paths = ct_series(tmp_path / "in" / "a", positions_mm=HEIGHTS_MM)
    other = ct_series(tmp_path / "in" / "b", positions_mm=(1, 6, 11, 16), series_uid=f"{SERIES_UID}.7")
    frames, _ = frames_on(paths[1:3])
    seg(tmp_path / "in" / "seg.dcm", frames, names=("Lesion",), ReferencedSeriesSequence=references([*paths, *other]))

    report = run(tmp_path / "in", tmp_path / "cache")

    assert report.exit_code == Exit.OK
    assert labelled(tmp_path / "cache") == {0: {"Lesion": 12}, 1: {}}


@pytest.mark.parametrize("is_wanted", [True, False], ids=["all", "the-good-one"])
def test_what_was_refused_beside_what_was_stored_is_told_by_number(tmp_path: Path, is_wanted: bool) -> None:
    paths = ct_series(tmp_path / "in" / "ct", positions_mm=HEIGHTS_MM)
    (part,), _ = group(paths)
    contours = {"Liver": [square(0.5, 0.5, 4.5, 2.5, 1)], "Spleen": [square(0.5, 3.5, 4.5, 4.5, 1.5)]}
    structure_set(tmp_path / "in" / "rt.dcm", contours, part.affine)
    edit(tmp_path / "in" / "rt.dcm", ReferencedFrameOfReferenceSequence=_of_series(SERIES_UID))
    dataset = pydicom.dcmread(tmp_path / "in" / "rt.dcm")
    for roi in dataset.ROIContourSequence:
        for contour in roi.ContourSequence:
            del contour.ContourImageSequence
    dataset.save_as(tmp_path / "in" / "rt.dcm")

    report = run(tmp_path / "in", tmp_path / "cache", structures=None if is_wanted else ("Liver",))

    assert labelled(tmp_path / "cache") == {0: {"Liver": 8}}
    assert report.counts["accepted"] == len(paths) + 1
    refused = [entry for entry in report.entries if entry.state == "quarantined"]
    assert report.exit_code == (Exit.PARTIAL if is_wanted else Exit.OK)
    assert report.by_code.get("E_CONTOUR", 0) == report.num_refused == len(refused) == int(is_wanted)
    if is_wanted:
        (stored,) = [entry for entry in report.entries if entry.state == "accepted" and entry.id == refused[0].id]
        assert stored.message.startswith("1 classes stored, 1 structures refused")
        assert refused[0].message.startswith("structure 8: a contour lies")
        assert (refused[0].num_files, refused[0].item) == (0, stored.item)


def _of_series(uid: str) -> list[Dataset]:
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = uid
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = "1.2.826.0.1.3680043.8.498.3", [study]
    return [frame]
