"""A DICOM SEG says where every marked voxel is, in the patient, and says it the same way every time."""

import io
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medssl_cli.errors import GateError, InputError
from medssl_cli.formats.dicom import group_headers, read_headers, read_series, write_ct_series
from medssl_cli.formats.dicom_seg import SegmentationObject, read_segmentation, write_segmentation
from medssl_cli.imaging.volume import Volume

SHAPE = (24, 20, 14)
CLASSES = {1: "LV", 2: "something else"}


def oblique_affine(seed: int = 0) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * (0.9, 0.7, 2.5)
    affine[:3, 3] = (-100.5, 20.25, 33)
    return affine


def series(folder: Path, affine: NDArray[np.float64]) -> tuple[list[Path], Volume]:
    """A CT series as our own reader orders it: its files by slice and its volume."""
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(1, *SHAPE) % 1000
    write_ct_series(
        folder,
        Volume(values, affine, "CT", "HU"),
        patient_id="P1",
        patient_name="Nobody^None",
        study_uid="1.2.3",
        series_uid="1.2.3.4",
        frame_of_reference_uid="1.2.3.5",
        series_description="phantom",
    )
    (part,), refusals = group_headers([header for path in sorted(folder.iterdir()) for header in read_headers(path)])
    assert not refusals
    return [header.source for header in part.headers], read_series(part).volume


def blocks() -> NDArray[np.uint8]:
    """Two blocks and one lone voxel, without any symmetry; some slices are empty."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 2:5, 1:6] = 1
    labels[10:20, 8:17, 3:12] = 2
    labels[0, 19, 13] = 2
    return labels


def made(labels: NDArray[np.uint8], paths: list[Path], volume: Volume, model: str = "a" * 64) -> SegmentationObject:
    return write_segmentation(
        labels,
        [header for path in paths for header in read_headers(path)],
        CLASSES,
        affine=volume.affine,
        model_sha256=model,
        algorithm_name="medssl test",
    )


def write(labels: NDArray[np.uint8], paths: list[Path], volume: Volume, model: str = "a" * 64) -> bytes:
    return made(labels, paths, volume, model).data


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_highdicom_finds_every_voxel_at_its_place_in_the_patient(tmp_path: Path, seed: int) -> None:
    paths, volume = series(tmp_path, oblique_affine(seed))
    labels = blocks()

    found = hd.seg.segread(io.BytesIO(write(labels, paths, volume))).get_volume(combine_segments=True)

    marked = np.argwhere(found.array)
    in_patient = (found.affine @ np.c_[marked, np.ones(len(marked))].T)[:3] * [[-1], [-1], [1]]
    indices = (np.linalg.inv(volume.affine) @ np.r_[in_patient, np.ones((1, len(marked)))])[:3]
    assert np.abs(indices - np.rint(indices)).max() < 1e-4
    again = np.zeros(SHAPE, np.uint8)
    again[tuple(np.rint(indices).astype(int))] = found.array[tuple(marked.T)]
    np.testing.assert_array_equal(again, labels)


def test_patient_study_and_references_are_those_of_the_series(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    sources = [pydicom.dcmread(path) for path in paths]

    found = pydicom.dcmread(io.BytesIO(write(blocks(), paths, volume)))

    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert found[keyword].value == sources[0][keyword].value
    referenced = found.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == "1.2.3.4"
    named = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert named == {source.SOPInstanceUID for source in sources}
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == ["LV", "something else"]
    # Slices 1-5 hold the first block, 3-11 the second and 13 the lone voxel: 5 + 9 + 1 frames, empty ones left out.
    assert found.NumberOfFrames == 15


def test_the_same_series_model_and_voxels_give_the_same_bytes(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    first = write(blocks(), paths, volume)
    other_voxels = blocks()
    other_voxels[0, 0, 0] = 1

    assert write(blocks(), paths, volume) == first
    uids = [
        pydicom.dcmread(io.BytesIO(data))
        for data in (first, write(other_voxels, paths, volume), write(blocks(), paths, volume, model="b" * 64))
    ]
    assert len({found.SOPInstanceUID for found in uids}) == 3
    assert uids[0].SeriesInstanceUID == uids[1].SeriesInstanceUID != uids[2].SeriesInstanceUID
    assert all(found.SOPInstanceUID.startswith("2.25.") and len(found.SOPInstanceUID) <= 64 for found in uids)


def test_an_empty_mask_is_a_valid_object_of_zeros(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())

    data = write(np.zeros(SHAPE, np.uint8), paths, volume)

    assert not hd.seg.segread(io.BytesIO(data)).pixel_array.any()
    assert not read_segmentation(data, volume.affine, SHAPE).any()


@pytest.mark.parametrize("mistake", ["mirrored", "shifted", "slices reversed"])
def test_the_check_catches_a_mask_at_the_wrong_place(tmp_path: Path, mistake: str) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    data = write(blocks(), paths, volume)
    wrong = volume.affine.copy()
    if mistake == "shifted":
        wrong[:3, 3] += 0.5 * wrong[:3, 0]
    else:
        axis = 0 if mistake == "mirrored" else 2
        wrong[:3, 3] += wrong[:3, axis] * (SHAPE[axis] - 1)
        wrong[:3, axis] *= -1

    if mistake == "shifted":
        with pytest.raises(GateError, match="E_OUTPUT_CHECK"):
            read_segmentation(data, wrong, SHAPE)
    else:
        assert not np.array_equal(read_segmentation(data, wrong, SHAPE), blocks())


def test_slices_that_jitter_within_tolerance_keep_their_voxels_and_references(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    for number, path in enumerate(paths[1:-1]):
        source = pydicom.dcmread(path)
        position = np.array(source.ImagePositionPatient, dtype=float) + 0.02 * (-1) ** number
        source.ImagePositionPatient = [f"{value:.6f}" for value in position]
        source.save_as(path)

    data = write(blocks(), paths, volume)

    np.testing.assert_array_equal(read_segmentation(data, volume.affine, SHAPE), blocks())
    groups = pydicom.dcmread(io.BytesIO(data)).PerFrameFunctionalGroupsSequence
    assert all("DerivationImageSequence" in group for group in groups)


def test_sources_of_two_patients_are_refused(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    other = pydicom.dcmread(paths[3])
    other.PatientID = "P2"
    other.save_as(paths[3])

    with pytest.raises(InputError, match="E_PATIENT_MIX"):
        write(blocks(), paths, volume)


def test_sources_without_optional_headers_are_enough(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    for path in paths:
        source = pydicom.dcmread(path)
        for keyword in (
            "PatientName",
            "AccessionNumber",
            "StudyDate",
            "ReferringPhysicianName",
            "StudyID",
            "SliceThickness",
        ):
            if keyword in source:
                del source[keyword]
        source.save_as(path)

    np.testing.assert_array_equal(read_segmentation(write(blocks(), paths, volume), volume.affine, SHAPE), blocks())
