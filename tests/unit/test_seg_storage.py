"""A DICOM SEG holds the same voxels however they are stored, for every reader that knows the form."""

import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.infer_options import outputs_of
from medssl_cli.formats.dicom import read_headers
from medssl_cli.formats.dicom_seg import write_segmentation
from medssl_cli.formats.labels.seg import read_seg
from medssl_cli.formats.predictions import is_prediction
from medssl_cli.formats.seg_frames import read_segmentation
from medssl_cli.formats.seg_storage import SegStorage
from medssl_cli.imaging.volume import Volume
from tests.unit.test_dicom_seg import CLASSES, SHAPE, blocks, faults_by_dciodvfy, oblique_affine, series

OTHERS = [storage for storage in SegStorage if storage is not SegStorage.binary]


def write(paths: list[Path], volume: Volume, storage: SegStorage, *, is_empty: bool = False) -> bytes:
    return write_segmentation(
        np.zeros(SHAPE, np.uint8) if is_empty else blocks(),
        [header for path in paths for header in read_headers(path)],
        CLASSES,
        affine=volume.affine,
        model_sha256="a" * 64,
        algorithm_name="medssl test",
        storage=storage,
    ).data


@dataclass(frozen=True)
class Objects:
    """A series and the same masks in every form."""

    paths: list[Path]
    volume: Volume
    files: dict[SegStorage, bytes]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    paths, volume = series(tmp_path_factory.mktemp("ct"), oblique_affine(1))
    return Objects(paths, volume, {storage: write(paths, volume, storage) for storage in SegStorage})


@pytest.mark.parametrize("storage", OTHERS)
def test_every_reader_finds_the_same_voxels(tmp_path: Path, objects: Objects, storage: SegStorage) -> None:
    data = objects.files[storage]

    (tmp_path / "seg.dcm").write_bytes(data)
    ingested = read_seg(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(ingested.to_grid(SHAPE, objects.volume.affine), blocks())
    assert ingested.classes == CLASSES
    np.testing.assert_array_equal(read_segmentation(data, objects.volume.affine, SHAPE), blocks())
    found = hd.seg.segread(io.BytesIO(data)).get_volume(combine_segments=True).array
    assert np.bincount(found.ravel())[1:].tolist() == np.bincount(blocks().ravel())[1:].tolist()
    assert is_prediction(data[:4096])


def test_the_same_voxels_give_the_same_bytes_and_none_an_object_of_zeros(objects: Objects) -> None:
    paths, volume, storage = objects.paths, objects.volume, SegStorage.labelmap_rle

    assert write(paths, volume, storage) == objects.files[storage]
    assert not read_segmentation(write(paths, volume, storage, is_empty=True), volume.affine, SHAPE).any()


def test_a_label_map_has_a_frame_a_slice_and_deflating_makes_it_small(objects: Objects) -> None:
    sizes = {storage: len(data) for storage, data in objects.files.items()}

    # Slices 1 to 11 hold a block or two, and 13 the lone voxel.
    assert pydicom.dcmread(io.BytesIO(objects.files[SegStorage.labelmap])).NumberOfFrames == 12
    assert sizes[SegStorage.binary_deflated] < sizes[SegStorage.binary] / 2
    assert sizes[SegStorage.labelmap_deflated] < sizes[SegStorage.labelmap_rle] < sizes[SegStorage.labelmap]


def test_objects_of_another_storage_are_other_instances_of_one_series(objects: Objects) -> None:
    found = [pydicom.dcmread(io.BytesIO(data)) for data in objects.files.values()]

    assert len({one.SOPInstanceUID for one in found}) == len(SegStorage)
    assert len({one.SeriesInstanceUID for one in found}) == 1


def test_a_deflated_object_is_valid_once_it_is_inflated(tmp_path: Path, objects: Objects) -> None:
    dataset = pydicom.dcmread(io.BytesIO(objects.files[SegStorage.binary_deflated]))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(tmp_path / "inflated.dcm")

    assert faults_by_dciodvfy((tmp_path / "inflated.dcm").read_bytes(), tmp_path) == []


def test_a_label_map_has_no_fault_but_that_an_old_validator_knows_none(tmp_path: Path, objects: Objects) -> None:
    """dciodvfy of 2022 expects segment numbers from 1 on, and has no rules for a class of objects of 2024."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    (tmp_path / "map.dcm").write_bytes(objects.files[SegStorage.labelmap])

    done = subprocess.run(["dciodvfy", tmp_path / "map.dcm"], capture_output=True, text=True, errors="replace")

    faults = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    known = ("SegmentNumber not monotonically", "Information Object Not found")
    assert [line for line in faults if not any(word in line for word in known)] == []


def test_a_scan_gets_one_segmentation() -> None:
    assert outputs_of("sr,seg-labelmap-rle") == ("nifti", "seg-labelmap-rle", "sr", "preview")
    with pytest.raises(UsageError, match="several kinds of seg"):
        outputs_of("seg,seg-labelmap")
