"""A structure set holds exactly the voxels of its mask, where they are in the patient."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medssl_cli.base.errors import GateError
from medssl_cli.formats.dicom import read_headers
from medssl_cli.formats.dicom_rtstruct import read_contour_masks, write_structure_set
from medssl_cli.formats.labels.polygons import unite_contours
from medssl_cli.formats.labels.rtstruct import read_rtstruct
from medssl_cli.formats.outlines import mask_outlines
from medssl_cli.formats.predictions import is_prediction
from medssl_cli.imaging.volume import Volume
from tests.unit.test_dicom_seg import SHAPE, blocks, oblique_affine, overlapping, series

CLASSES = {1: "liver", 2: "left kidney"}


def write(labels: NDArray[np.uint8], paths: list[Path], volume: Volume, classes: dict[int, str] = CLASSES) -> bytes:
    return write_structure_set(
        labels,
        [header for path in paths for header in read_headers(path)],
        classes,
        affine=volume.affine,
        model_sha256="a" * 64,
        algorithm_name="medssl test",
    )


@pytest.mark.parametrize("seed", range(4))
def test_outlines_hold_exactly_the_voxels_of_a_mask(seed: int) -> None:
    """Noise has holes, islands in holes, voxels that touch at corners and at the border."""
    noise = np.random.default_rng(seed).random((23, 31))
    for mask in (noise > 0.5, noise > 0.1, gaussian_filter(noise, 2) > 0.5, np.ones((5, 4), bool)):
        filled = np.zeros(mask.shape, bool)
        for outline in mask_outlines(mask):
            filled ^= unite_contours([outline], mask.shape).mask

        np.testing.assert_array_equal(filled, mask)


@pytest.mark.parametrize("seed", [0, 1])
def test_our_reader_finds_every_voxel_by_the_names_of_structures(tmp_path: Path, seed: int) -> None:
    paths, volume = series(tmp_path / "ct", oblique_affine(seed))
    labels = blocks()
    labels[5:7, 3:4, 2] = 0  # a hole
    (tmp_path / "made.dcm").write_bytes(write(labels, paths, volume))

    found = read_rtstruct(tmp_path / "made.dcm", structures=["liver", "left kidney"])
    painting = found.on_grid(SHAPE, volume.affine)

    np.testing.assert_array_equal(painting.labels, labels)
    assert painting.classes == CLASSES


def test_two_images_of_one_series_have_objects_of_different_names_though_their_masks_are_the_same(
    tmp_path: Path,
) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    nothing = np.zeros_like(blocks())

    found = [pydicom.dcmread(io.BytesIO(write(nothing, half, volume))) for half in (paths[:7], paths[7:])]

    assert found[0].SOPInstanceUID != found[1].SOPInstanceUID
    assert found[0].SeriesInstanceUID == found[1].SeriesInstanceUID


def test_structures_may_overlap_and_may_be_empty(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    masks = overlapping()

    data = write(masks, paths, volume, {1: "whole tumour", 2: "tumour core", 3: "enhancing"})

    found = read_contour_masks(data, volume.affine, SHAPE)
    np.testing.assert_array_equal(np.stack([found[1], found[2], found[3]]), masks != 0)
    assert not found[3].any()


def test_contours_name_their_slices_and_the_object_its_series(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    sources = {str(pydicom.dcmread(path).SOPInstanceUID): path for path in paths}

    data = write(blocks(), paths, volume)

    found = pydicom.dcmread(io.BytesIO(data))
    assert (found.PatientID, found.StudyInstanceUID, found.Modality) == ("P1", "1.2.3", "RTSTRUCT")
    (frame,) = found.ReferencedFrameOfReferenceSequence
    (one,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert (frame.FrameOfReferenceUID, one.SeriesInstanceUID) == ("1.2.3.5", "1.2.3.4")
    assert {item.ReferencedSOPInstanceUID for item in one.ContourImageSequence} == set(sources)
    for item in found.ROIContourSequence:
        for contour in item.ContourSequence:
            (image,) = contour.ContourImageSequence
            origin = pydicom.dcmread(sources[image.ReferencedSOPInstanceUID]).ImagePositionPatient
            normal = np.cross(*np.array(pydicom.dcmread(paths[0]).ImageOrientationPatient).reshape(2, 3))
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert np.abs((points - origin) @ normal).max() < 1e-3
    assert write(blocks(), paths, volume) == data
    assert is_prediction(data[:4096])


def test_an_object_of_other_voxels_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    monkeypatch.setattr(
        "medssl_cli.formats.dicom_rtstruct.mask_outlines", lambda mask: [one + 1 for one in mask_outlines(mask)]
    )

    with pytest.raises(GateError, match="E_OUTPUT_CHECK"):
        write(blocks(), paths, volume)


def test_a_validator_that_is_not_ours_finds_no_fault(tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    paths, volume = series(tmp_path / "ct", oblique_affine())
    (tmp_path / "made.dcm").write_bytes(write(blocks(), paths, volume, {**CLASSES, 3: "never found"}))

    done = subprocess.run(["dciodvfy", str(tmp_path / "made.dcm")], capture_output=True, text=True, errors="replace")

    said = (done.stdout + done.stderr).splitlines()
    assert any("RTStructureSet" in line for line in said)
    assert [line for line in said if line.startswith("Error")] == []


def by_rounded_polygons(contours: list[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """As rt-utils fills: corners rounded to whole voxels, everything between and on them, by the even-odd rule."""
    filled = np.zeros(size, bool)
    borders = np.zeros(size, bool)
    for points in contours:
        whole = np.rint(points)
        filled ^= unite_contours([whole], size).mask
        for begin, end in zip(whole.astype(int), np.roll(whole, -1, axis=0).astype(int), strict=True):
            x, y = np.sort([begin, end], axis=0).T
            borders[x[0] : x[1] + 1, y[0] : y[1] + 1] = True
    return filled | borders


@pytest.mark.parametrize("seed", range(3))
def test_a_reader_that_rounds_corners_to_whole_voxels_gets_the_mask_too(seed: int) -> None:
    noise = np.random.default_rng(seed).random((40, 36))
    x, y = np.ogrid[:40, :36]
    for mask in (noise > 0.9, noise > 0.5, gaussian_filter(noise, 2) > 0.5, (x - 20) ** 2 + (y - 16) ** 2 < 12**2):
        np.testing.assert_array_equal(by_rounded_polygons(mask_outlines(mask), mask.shape), mask)
