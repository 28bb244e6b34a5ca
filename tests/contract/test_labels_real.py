"""Real annotations on their real images."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import BoxLabel, FindingsLabel
from medssl_cli.formats.labels.coco import read_coco
from medssl_cli.formats.labels.lidc import read_lidc
from medssl_cli.formats.labels.polygons import fill_contours
from medssl_cli.formats.labels.recognise import recognise_dicom, recognise_text
from medssl_cli.formats.labels.rtstruct import read_rtstruct
from medssl_cli.formats.labels.table import read_table
from medssl_cli.imaging.geometry import Affine
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import load

pytestmark = pytest.mark.real_data

RT_SHAPE = (512, 512, 5)


def _affine_of(path: Path, slice_mm: float) -> Affine:
    """Of an axial series that begins with this slice, from its header by hand."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    row, column = map(float, header.PixelSpacing)
    affine = np.diag([-column, -row, slice_mm, 1.0])
    affine[:3, 3] = [float(value) for value in header.ImagePositionPatient] * np.array([-1, -1, 1])
    return affine


def _areas_mm2(path: Path) -> dict[str, dict[float, tuple[float, float]]]:
    """Of each structure and height: area by the shoelace formula (inner contours cut), and length of the contours."""
    dataset = pydicom.dcmread(path)
    names = {roi.ROINumber: str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    found: dict[str, dict[float, tuple[float, float]]] = {}
    for roi in dataset.ROIContourSequence:
        slices: dict[float, list[tuple[float, float]]] = {}
        for contour in roi.ContourSequence:
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            following = np.roll(points, -1, axis=0)
            area = abs((points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]).sum()) / 2
            length = np.linalg.norm(following - points, axis=1).sum()
            slices.setdefault(points[0, 2], []).append((area, length))
        found[names[roi.ReferencedROINumber]] = {
            height: (2 * max(a for a, _ in parts) - sum(a for a, _ in parts), sum(length for _, length in parts))
            for height, parts in slices.items()
        }
    return found


@pytest.mark.parametrize("name", ["mock_data/rt.dcm", "empty/dummy_rt.dcm"])
def test_structures_have_the_area_of_their_contours(shared_data: Path, name: str) -> None:
    """Voxels differ from the area by at most the length of the contours times half a diagonal of a voxel."""
    folder = shared_data / "rt_utils"
    affine = _affine_of(folder / "mock_data" / "ct_1.dcm", 5.0)
    areas = _areas_mm2(folder / name)
    mm2 = float(-affine[0, 0] * -affine[1, 1])
    num_slices = 0

    for structure, slices in areas.items():
        labels = read_rtstruct(folder / name, structures=[structure]).to_grid(RT_SHAPE, affine)
        for height, (area, length) in slices.items():
            found = labels[:, :, round((height - affine[2, 3]) / 5)].sum() * mm2
            assert abs(found - area) <= length * np.sqrt(mm2 / 2), (structure, height)
            num_slices += 1
    assert num_slices >= 1


def test_contours_above_the_last_slice_are_refused(shared_data: Path) -> None:
    folder = shared_data / "rt_utils"
    mask = read_rtstruct(folder / "empty" / "dummy_rt.dcm", structures=["ROI-1"])

    with pytest.raises(InputError, match="E_CONTOUR: structure 1: a contour lies on slice 2; the image has 0 to 1"):
        mask.to_grid((512, 512, 2), _affine_of(folder / "mock_data" / "ct_1.dcm", 5.0))


def test_other_software_agrees_but_for_the_border(shared_data: Path, tmp_path: Path) -> None:
    """rt_utils fills with OpenCV on whole pixels and takes the outline itself in: larger by half a pixel all around."""
    builder = pytest.importorskip("rt_utils", reason="compared only where rt_utils is installed").RTStructBuilder
    folder = shared_data / "rt_utils" / "mock_data"
    for name in ("ct_1.dcm", "ct_2.dcm"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    theirs = builder.create_from(str(tmp_path), str(folder / "rt.dcm")).get_roi_mask_by_name("ROI-1")[:, :, 0].T
    mask = read_rtstruct(folder / "rt.dcm")
    mine = mask.to_grid((512, 512, 2), _affine_of(folder / "ct_1.dcm", 5.0))[:, :, 0].astype(bool)

    assert not (mine & ~theirs).any()
    assert not (theirs & ~_grown(mine)).any()
    assert 0 < (theirs & ~mine).sum() < 0.2 * mine.sum()


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """With the eight neighbours of every voxel."""
    padded = np.pad(mask, 1)
    shifts = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    return np.any([np.roll(padded, shift, (0, 1)) for shift in shifts], axis=0)[1:-1, 1:-1]


@pytest.fixture(scope="module")
def chest(shared_data: Path) -> Volume:
    return load(sorted((shared_data / "lidc_small" / "small").rglob("*.dcm"))).volume


@pytest.fixture(scope="module")
def readings(shared_data: Path) -> Path:
    (path,) = (shared_data / "lidc_small").rglob("*.xml")
    return path


def test_four_readers_saw_one_large_nodule(chest: Volume, readings: Path) -> None:
    placed = read_lidc(readings)[0].to_grid(chest.shape, chest.affine)

    (box,) = placed.boxes
    assert (box.name, box.num_readers) == ("nodule", 4)
    assert 25 < (box.diameter_mm or 0) < 40
    assert placed.num_outside == 9  # their marks above and below these 16 slices


def test_the_nodule_lies_where_the_tissue_is(chest: Volume, readings: Path) -> None:
    """A tumour in the lung is denser than what is around it: moved by a pixel, the mask takes in more air."""
    mask = read_lidc(readings)[1].to_grid(chest.shape, chest.affine).astype(bool)
    air = {}
    for x in (-2, -1, 0, 1, 2):
        for y in (-2, -1, 0, 1, 2):
            moved = np.roll(mask, (x, y), (0, 1))
            air[x, y] = float((chest.voxels[0][moved] < -500).mean())

    assert min(air, key=lambda shift: air[shift]) == (0, 0)
    assert air[0, 0] < 0.08


def test_outlines_of_readers_are_where_their_polygons_are(chest: Volume, readings: Path) -> None:
    """The consensus lies between what all readers and what any reader drew."""
    label = read_lidc(readings)[1]
    drawn = [reading for reading in label.painter.readings if not reading.is_point]  # type: ignore[union-attr]
    mask = label.to_grid(chest.shape, chest.affine).astype(bool)
    height = drawn[0].regions[3].height_mm
    index = round((height - chest.affine[2, 3]) / chest.affine[2, 2])
    each = [
        fill_contours([region.points for region in reading.regions if region.height_mm == height], chest.shape[:2])
        for reading in drawn
    ]

    assert len(each) == 4
    assert not (mask[:, :, index] & ~np.any(each, axis=0)).any()
    assert mask[:, :, index].sum() > 0.8 * np.all(each, axis=0).sum()


def test_every_lung_box_fits_its_picture(shared_data: Path) -> None:
    folder = shared_data / "covid_lung_boxes_512"
    labels = {label.reference.name: label for label in read_coco(folder / "annotations_share.json").labels}
    num_boxes = 0

    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as picture:
            shape = (*picture.size, 1)
        boxes = labels[path.name].to_grid(shape, np.eye(4)).boxes
        num_boxes += len(boxes)
        middle = {box.name: (box.lower[0] + box.upper[0]) / 2 for box in boxes}
        assert middle["Right Lung"] < middle["Left Lung"]  # as radiologists look at a patient

    assert num_boxes == 126


def test_findings_of_chest_xrays_are_read_and_persons_are_not(shared_data: Path) -> None:
    path = shared_data / "nih_cxr_1000" / "labels_share.csv"
    labels = read_table(path).labels
    stored = [label for label in labels if isinstance(label, FindingsLabel)]

    assert recognise_text(path.read_bytes()[:4096]) == "table"
    assert len(stored) == len(labels) == 422
    by_name = {label.reference.name: label.findings for label in stored}
    assert {name for name, value in by_name["00000061_012.png"].items() if value} == {
        "Edema", "Effusion", "Infiltration", "Pleural_Thickening", "Pneumonia",
    }  # fmt: skip
    assert not any({"Patient Age", "Patient Gender", "w", "h", "source_class"} & set(row) for row in by_name.values())


def test_boxes_of_chest_xrays_fit_the_full_pictures_only(shared_data: Path) -> None:
    folder = shared_data / "nih_cxr_1000"
    labels = [label for label in read_table(folder / "boxes_share.csv").labels if isinstance(label, BoxLabel)]

    assert sum(len(label.to_grid((1024, 1024, 1), np.eye(4)).boxes) for label in labels) == 20
    assert {path.name for path in (folder / "images_full_boxes").iterdir()} == {
        label.reference.name for label in labels
    }
    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH"):
        labels[0].to_grid((320, 320, 1), np.eye(4))


def test_label_objects_among_real_dicom_files_are_recognised(shared_data: Path) -> None:
    kinds = [recognise_dicom(path.read_bytes()[:1024]) for path in sorted((shared_data / "rt_utils").rglob("*.dcm"))]

    assert kinds.count("rtstruct") == 4
    assert kinds.count(None) == len(kinds) - 4 >= 6
