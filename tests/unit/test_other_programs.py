"""What other programs read in our objects: dcmqi in segmentations and reports, rt-utils in structure sets.

They are no dependencies; where one is missing, its tests say so. `pip install dcmqi rt-utils` gives both.
"""

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medssl_cli.formats.anatomy_codes import structure_code
from medssl_cli.formats.dicom_rtstruct import write_structure_set
from medssl_cli.formats.dicom_seg import write_segmentation
from medssl_cli.formats.dicom_sr import write_report
from medssl_cli.formats.seg_storage import SegStorage
from medssl_cli.formats.sr_statements import MILLILITRE, VOLUME, Amount, Statement
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import write_volume
from tests.unit.test_dicom_seg import SHAPE, blocks, oblique_affine, series, slices_of


def by_program(name: str, *arguments: object) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} of dcmqi is not installed")
    done = subprocess.run([name, *map(str, arguments)], capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout + done.stderr


def on_grid(files: list[Path], volume: Volume, *, is_label_map: bool) -> NDArray[np.uint8]:
    """Voxels that dcmqi marks, by their places in the patient; a file is a segment, or all of them."""
    labels = np.zeros(SHAPE, np.uint8)
    for number, path in enumerate(files, start=1):
        image = nib.load(path)
        marked = np.asarray(image.dataobj)
        places = np.argwhere(marked)
        world = image.affine @ np.c_[places, np.ones(len(places))].T
        indices = np.rint((np.linalg.inv(volume.affine) @ world)[:3]).astype(int)
        labels[tuple(indices)] = marked[tuple(places.T)] if is_label_map else number
    return labels


@pytest.mark.parametrize("storage", SegStorage)
def test_dcmqi_finds_every_voxel_of_a_segmentation(tmp_path: Path, storage: SegStorage) -> None:
    paths, volume = series(tmp_path / "ct", oblique_affine(2))
    made = write_segmentation(
        blocks(), slices_of(paths), {1: "liver", 2: "left kidney"}, affine=volume.affine, model_sha256="a" * 64,
        algorithm_name="medssl test", storage=storage,
    )  # fmt: skip
    (tmp_path / "seg.dcm").write_bytes(made.data)
    (tmp_path / "out").mkdir()

    by_program(
        "segimage2itkimage", "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path / "out", "-t", "nii"
    )

    files = sorted((tmp_path / "out").glob("*.nii.gz"))
    np.testing.assert_array_equal(on_grid(files, volume, is_label_map=storage.is_label_map), blocks())
    told = [
        one for group in json.loads((tmp_path / "out" / "meta.json").read_text())["segmentAttributes"] for one in group
    ]
    assert {one["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] for one in told} >= {"Liver", "Kidney"}


def test_dcmqi_reads_the_volumes_of_a_report(tmp_path: Path) -> None:
    paths, volume = series(tmp_path / "ct", oblique_affine(2))
    headers = slices_of(paths)
    made = write_segmentation(
        blocks(), headers, {1: "liver", 2: "left kidney"}, affine=volume.affine, model_sha256="a" * 64,
        algorithm_name="medssl test",
    )  # fmt: skip
    said = [
        Statement(name, structure_code(name), (Amount(VOLUME, value, MILLILITRE),), segment=number)
        for number, name, value in ((1, "liver", 12.5), (2, "left kidney", 7.25))
    ]
    report = write_report(said, headers, model_sha256="a" * 64, algorithm_name="medssl test", segmentation=made.data)
    (tmp_path / "sr.dcm").write_bytes(report)

    by_program("tid1500reader", "--inputDICOM", tmp_path / "sr.dcm", "--outputMetadata", tmp_path / "sr.json")

    found = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    assert {one["TrackingIdentifier"]: one["ReferencedSegment"] for one in found} == {"liver": 1, "left kidney": 2}
    volumes = {one["TrackingIdentifier"]: float(one["measurementItems"][0]["value"]) for one in found}
    assert volumes == {"liver": 12.5, "left kidney": 7.25}


def test_rt_utils_fills_the_contours_of_a_structure_set(tmp_path: Path) -> None:
    """It rounds corners to whole pixels (decision 0424), knows square images only, and gives `[row, column, slice]`."""
    builder = pytest.importorskip("rt_utils", reason="rt-utils is not installed").RTStructBuilder
    affine = np.diag([0.8, 0.8, 2.0, 1.0])
    x, y = np.indices((150, 150))
    disc = (x - 78) ** 2 + (y - 70) ** 2 <= 60**2
    labels = np.repeat(disc[:, :, np.newaxis], 5, axis=2).astype(np.uint8)
    labels[60:90, 55:85, 1:3] = 0  # a hole
    labels[5:8, 3, 0] = labels[100, 140, 4] = 1  # a thin part and a lone voxel
    volume = Volume(np.zeros((1, *labels.shape), np.int16), affine, "CT", "HU")
    paths = write_volume(tmp_path / "ct", volume)
    data = write_structure_set(
        labels,
        slices_of(paths),
        {1: "liver"},
        affine=affine,
        model_sha256="a" * 64,
        algorithm_name="medssl test",
    )
    (tmp_path / "rt.dcm").write_bytes(data)

    found = builder.create_from(dicom_series_path=str(tmp_path / "ct"), rt_struct_path=str(tmp_path / "rt.dcm"))

    assert found.get_roi_names() == ["liver"]
    mask = found.get_roi_mask_by_name("liver").transpose(1, 0, 2)
    np.testing.assert_array_equal(mask, labels == 1)
