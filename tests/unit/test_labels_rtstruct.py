"""Contours become masks: a voxel belongs to a structure if its centre lies inside."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from scipy.spatial.transform import Rotation

from medssl_cli.errors import InputError
from medssl_cli.formats.labels import STRUCTURE_SET, MaskLabel, rtstruct
from medssl_cli.formats.labels.polygons import fill_polygon
from medssl_cli.formats.labels.rtstruct import read_rtstruct
from medssl_cli.imaging.geometry import Affine

SHAPE = (40, 30, 6)
SPACING = (0.9, 0.7, 2.5)
Points = NDArray[np.float64]


def oblique(seed: int = 0) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * SPACING
    affine[:3, 3] = (-100.5, 20.25, 33)
    return affine


def square(left: float, top: float, right: float, bottom: float, index: float) -> Points:
    """Corners in voxel indices."""
    return np.array([(left, top, index), (right, top, index), (right, bottom, index), (left, bottom, index)])


def structure_set(
    path: Path,
    structures: dict[str, Sequence[Points]],
    affine: Affine,
    *,
    kind: str | Sequence[str] = "CLOSED_PLANAR",
    **attributes: Any,
) -> Path:
    """An RTSTRUCT with contours given in voxel indices of a grid."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = STRUCTURE_SET
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.9"
    dataset.StructureSetROISequence = []
    dataset.ROIContourSequence = []
    for number, (name, contours) in enumerate(structures.items(), start=7):
        roi, outlines = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        outlines.ReferencedROINumber = number
        kinds = [kind] * len(contours) if isinstance(kind, str) else kind
        outlines.ContourSequence = [_contour(points, affine, one) for points, one in zip(contours, kinds, strict=True)]
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(outlines)
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference()]
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _contour(points: Points, affine: Affine, kind: str) -> Dataset:
    places = points @ affine[:3, :3].T + affine[:3, 3]
    contour, image = Dataset(), Dataset()
    image.ReferencedSOPInstanceUID = f"1.2.3.4.{round(points[0, 2]) + 1}"
    contour.ContourImageSequence = [image]
    contour.ContourGeometricType = kind
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = [f"{number:.8g}" for number in (places * (-1, -1, 1)).ravel()]
    return contour


def _frame_of_reference() -> Dataset:
    frame, study, series = Dataset(), Dataset(), Dataset()
    frame.FrameOfReferenceUID, series.SeriesInstanceUID = "1.2.3.5", "1.2.3.4"
    study.RTReferencedSeriesSequence = [series]
    frame.RTReferencedStudySequence = [study]
    return frame


def refused(read: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    return caught.value.code


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_square_on_an_oblique_series_marks_exactly_the_centres_inside(tmp_path: Path, seed: int) -> None:
    affine = oblique(seed)
    path = structure_set(tmp_path / "rt.dcm", {"Heart": [square(3.5, 4.5, 9.5, 20.5, 2)]}, affine)

    expected = np.zeros(SHAPE, np.uint8)
    expected[4:10, 5:21, 2] = 1
    assert np.array_equal(read_rtstruct(path).to_grid(SHAPE, affine), expected)


def test_it_says_which_images_it_was_drawn_on(tmp_path: Path) -> None:
    contours = [square(1, 1, 5, 5, index) for index in (1, 3)]
    mask = read_rtstruct(structure_set(tmp_path / "rt.dcm", {"Heart": contours}, oblique()))

    assert mask.reference.sop_uids == {"1.2.3.4.2", "1.2.3.4.4"}
    assert (mask.reference.series_uid, mask.reference.frame_of_reference) == ("1.2.3.4", "1.2.3.5")


@pytest.mark.parametrize("radius_mm", [4.0, 9.0])
def test_a_sphere_has_its_volume(tmp_path: Path, radius_mm: float) -> None:
    """Each slice is a disc, whose voxels differ from its area by at most its circumference times half a diagonal."""
    affine = oblique()
    angles = np.arange(360) * np.pi / 180
    discs = []
    for index in range(SHAPE[2]):
        radius = np.sqrt(max(radius_mm**2 - ((index - 2.5) * SPACING[2]) ** 2, 0))
        if radius:
            x, y = 20 + radius / SPACING[0] * np.cos(angles), 15 + radius / SPACING[1] * np.sin(angles)
            discs.append((radius, np.stack([x, y, np.full(360, index)], axis=1)))
    path = structure_set(tmp_path / "rt.dcm", {"Ball": [points for _, points in discs]}, affine)

    area_mm2 = read_rtstruct(path).to_grid(SHAPE, affine).sum() * SPACING[0] * SPACING[1]

    half_diagonal = np.hypot(*SPACING[:2]) / 2
    expected = sum(np.pi * radius**2 for radius, _ in discs)
    assert abs(area_mm2 - expected) <= sum(2 * np.pi * radius * half_diagonal for radius, _ in discs)
    assert area_mm2 == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_inside_another_cuts_a_hole(tmp_path: Path, kind: str) -> None:
    affine = oblique()
    contours = [square(3.5, 4.5, 9.5, 20.5, 2), square(4.5, 5.5, 6.5, 7.5, 2)]
    path = structure_set(tmp_path / "rt.dcm", {"Wall": contours}, affine, kind=kind)

    labels = read_rtstruct(path).to_grid(SHAPE, affine)

    assert labels.sum() == 6 * 16 - 4
    assert not labels[5:7, 6:8].any()


def test_structures_are_numbered_by_name_and_chosen_ones_by_choice(tmp_path: Path) -> None:
    affine = oblique()
    contours = {"Spleen": [square(1, 1, 5, 5, 0)], "aorta": [square(8, 8, 12, 12, 0)]}
    path = structure_set(tmp_path / "rt.dcm", contours, affine)

    everything, chosen = read_rtstruct(path), read_rtstruct(path, structures=["Liver", "SPLEEN"])

    assert everything.classes == {1: "aorta", 2: "Spleen"}
    assert everything.to_grid(SHAPE, affine)[9, 9, 0] == 1
    assert chosen.classes == {2: "Spleen"}
    assert np.unique(chosen.to_grid(SHAPE, affine)).tolist() == [0, 2]


def test_structures_that_overlap_are_refused_and_those_that_touch_are_not(tmp_path: Path) -> None:
    affine = oblique()
    body, heart = square(0, 0, 20, 20, 1), square(5, 5, 10, 10, 1)
    path = structure_set(tmp_path / "rt.dcm", {"Body": [body], "Heart": [heart]}, affine)
    assert refused(lambda: read_rtstruct(path).to_grid(SHAPE, affine)) == "E_SEGMENT_OVERLAP"
    assert read_rtstruct(path, structures=["Heart"]).to_grid(SHAPE, affine).sum() == 25

    path = structure_set(tmp_path / "rt.dcm", {"A": [square(0, 0, 5, 5, 1)], "B": [square(5, 0, 9, 5, 1)]}, affine)
    counts = np.bincount(read_rtstruct(path).to_grid(SHAPE, affine).ravel())
    assert counts[1:].tolist() == [25, 20]


@pytest.mark.parametrize(
    ("index", "code"),
    [(2 + 0.12 / 2.5, ""), (2 + 0.13 / 2.5, "E_CONTOUR"), (6, "E_CONTOUR"), (-1, "E_CONTOUR")],
    ids=["0.12mm-beside", "0.13mm-beside", "behind-the-last", "before-the-first"],
)
def test_contours_must_lie_on_a_slice(tmp_path: Path, index: float, code: str) -> None:
    """5 % of 2.5 mm between slices is 0.125 mm."""
    affine = oblique()
    path = structure_set(tmp_path / "rt.dcm", {"Heart": [square(3.5, 4.5, 9.5, 20.5, index)]}, affine)

    if code:
        assert refused(lambda: read_rtstruct(path).to_grid(SHAPE, affine)) == code
    else:
        assert read_rtstruct(path).to_grid(SHAPE, affine)[:, :, 2].sum() == 6 * 16


def test_a_contour_that_leans_is_refused(tmp_path: Path) -> None:
    points = square(3.5, 4.5, 9.5, 20.5, 2)
    points[0, 2] += 0.4
    path = structure_set(tmp_path / "rt.dcm", {"Heart": [points]}, oblique())

    assert refused(lambda: read_rtstruct(path).to_grid(SHAPE, oblique())) == "E_CONTOUR"


def test_the_same_contour_twice_would_erase_itself_and_is_refused(tmp_path: Path) -> None:
    path = structure_set(tmp_path / "rt.dcm", {"Heart": [square(1, 1, 5, 5, 2)] * 2}, oblique())

    assert refused(lambda: read_rtstruct(path).to_grid(SHAPE, oblique())) == "E_CONTOUR"


def test_points_and_open_lines_have_no_area(tmp_path: Path) -> None:
    affine = oblique()
    point = np.array([(4.0, 4.0, 1.0)])
    path = structure_set(tmp_path / "rt.dcm", {"Isocentre": [point]}, affine, kind="POINT")
    assert refused(lambda: read_rtstruct(path)) == "E_CONTOUR"

    mixed = ["CLOSED_PLANAR", "OPEN_PLANAR"]
    path = structure_set(tmp_path / "rt.dcm", {"Heart": [square(1, 1, 5, 5, 2)] * 2}, affine, kind=mixed)
    assert refused(lambda: read_rtstruct(path)) == "E_CONTOUR"


def test_a_deflated_object_is_inflated_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affine = oblique()
    plain = structure_set(tmp_path / "rt.dcm", {"Heart": [square(3.5, 4.5, 9.5, 20.5, 2)]}, affine)
    expected = read_rtstruct(plain).to_grid(SHAPE, affine)
    dataset = pydicom.dcmread(plain)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    deflated = tmp_path / "deflated.dcm"

    assert np.array_equal(read_rtstruct(deflated).to_grid(SHAPE, affine), expected)

    (tmp_path / "short.dcm").write_bytes(deflated.read_bytes()[:-20])
    assert refused(lambda: read_rtstruct(tmp_path / "short.dcm")) in ("E_TRUNCATED", "E_LABEL_FORMAT")
    dataset.add_new(0x00420011, "OB", bytes(10**6))
    dataset.save_as(deflated, enforce_file_format=True)
    monkeypatch.setattr(rtstruct, "MAX_FILE_BYTES", 100_000)
    assert refused(lambda: read_rtstruct(deflated)) == "E_DEFLATE_BOMB"


def test_what_leaves_the_field_of_view_is_cut(tmp_path: Path) -> None:
    path = structure_set(tmp_path / "rt.dcm", {"Body": [square(-20, -20, 60, 60, 0)]}, oblique())

    assert read_rtstruct(path).to_grid(SHAPE, oblique())[:, :, 0].all()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("1\\2\\3\\4\\5\\6", "E_CONTOUR"),
        ("1\\2\\3\\4\\5\\6\\7\\8", "E_CONTOUR"),
        ("1\\2\\3\\4\\5\\6\\7\\8\\nan", "E_VALUE_INVALID"),
        ("1\\2\\3\\4\\5\\6\\7\\8\\1e9", "E_VALUE_INVALID"),
        ("1\\2\\3\\4\\5\\6\\7\\8\\1-2", "E_VALUE_INVALID"),
        ("", "E_CONTOUR"),
    ],
    ids=["two-points", "not-triples", "nan", "far-away", "not-a-number", "empty"],
)
def test_malformed_coordinates_are_refused(tmp_path: Path, data: str, code: str) -> None:
    path = structure_set(tmp_path / "rt.dcm", {"Heart": [np.full((40, 3), 11111.25)]}, np.eye(4))
    old = b"-11111.25\\-11111.25\\11111.25"
    content = path.read_bytes()
    new = data.encode().ljust(len("\\".join([old.decode()] * 40)) + 1)
    assert len(new) <= content.count(old) * (len(old) + 1)
    start = content.index(old)
    path.write_bytes(content[:start] + new + content[start + len(new) :])

    assert refused(lambda: read_rtstruct(path)) == code


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "E_LABEL_FORMAT"),
        ({"StructureSetROISequence": []}, "E_LABEL_FORMAT"),
        ({"ROIContourSequence": []}, "E_CONTOUR"),
    ],
    ids=["another-object", "undeclared", "empty"],
)
def test_a_malformed_object_is_refused(tmp_path: Path, attributes: dict[str, Any], code: str) -> None:
    path = structure_set(tmp_path / "rt.dcm", {"Heart": [square(1, 1, 5, 5, 2)]}, oblique(), **attributes)

    assert refused(lambda: read_rtstruct(path)) == code


def test_damaged_objects_never_escape_as_other_errors(tmp_path: Path) -> None:
    data = structure_set(tmp_path / "rt.dcm", {"Heart": [square(1, 1, 5, 5, 2)]}, oblique()).read_bytes()
    rng = np.random.default_rng(0)
    num_refused = 0
    for _ in range(150):
        damaged = bytearray(data[: rng.integers(132, len(data))] if rng.random() < 0.3 else data)
        for position in rng.integers(132, len(damaged), 4):
            damaged[position] = rng.integers(256)
        (tmp_path / "damaged.dcm").write_bytes(damaged)
        try:
            mask = read_rtstruct(tmp_path / "damaged.dcm")
            assert isinstance(mask, MaskLabel)
            mask.to_grid(SHAPE, oblique())
        except InputError:
            num_refused += 1
    assert num_refused > 50


def test_the_mask_of_a_slice_is_that_of_the_polygon_rule(tmp_path: Path) -> None:
    affine = oblique(3)
    rng = np.random.default_rng(1)
    points = np.c_[rng.uniform(0, 29, (25, 2)), np.full(25, 4)]
    path = structure_set(tmp_path / "rt.dcm", {"Star": [points]}, affine)

    expected = fill_polygon(points[:, :2], SHAPE[:2])
    assert np.array_equal(read_rtstruct(path).to_grid(SHAPE, affine)[:, :, 4].astype(bool), expected)


def test_a_file_that_ends_early_never_loses_contours_in_silence(tmp_path: Path) -> None:
    affine = oblique()
    contours = {
        name: [square(left, 4.5, left + 6, 20.5, k) for k in range(6)] for name, left in (("A", 3.5), ("B", 20.5))
    }
    data = structure_set(tmp_path / "rt.dcm", contours, affine).read_bytes()

    for length in range(140, len(data)):
        (tmp_path / "short.dcm").write_bytes(data[:length])
        assert refused(lambda: read_rtstruct(tmp_path / "short.dcm")) in ("E_TRUNCATED", "E_LABEL_FORMAT", "E_CONTOUR")
