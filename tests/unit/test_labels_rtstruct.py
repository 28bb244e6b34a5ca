"""Contours become masks: a voxel belongs to a structure if its centre lies inside."""

import unicodedata
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

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import STRUCTURE_SET, Instance, MaskLabel, rtstruct
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

    assert mask.sources == (frozenset({Instance("1.2.3.4.2")}), frozenset({Instance("1.2.3.4.4")}))
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

    everything, chosen = read_rtstruct(path), read_rtstruct(path, structures=["Liver", "Spleen"])

    assert everything.classes == {1: "aorta", 2: "Spleen"}
    assert everything.to_grid(SHAPE, affine)[9, 9, 0] == 1
    assert chosen.classes == {2: "Spleen"}
    assert np.unique(chosen.to_grid(SHAPE, affine)).tolist() == [0, 2]
    with pytest.raises(InputError, match="E_LABEL_VALUES: none of its 2 structures") as caught:
        read_rtstruct(path, structures=["SPLEEN"])
    assert "1 of them differ from what is asked for in capitals only" in caught.value.hint


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


def test_the_same_contour_twice_is_one_area_and_erases_itself_where_it_is_exclusive(tmp_path: Path) -> None:
    twice = {"Heart": [square(1, 1, 5, 5, 2)] * 2}

    painting = read_rtstruct(structure_set(tmp_path / "rt.dcm", twice, oblique())).on_grid(SHAPE, oblique())
    assert (painting.labels.sum(), painting.flaws) == (16, ())

    path = structure_set(tmp_path / "rt.dcm", twice, oblique(), kind="CLOSEDPLANAR_XOR")
    assert refused(lambda: read_rtstruct(path).to_grid(SHAPE, oblique())) == "E_CONTOUR"


def test_points_and_open_lines_have_no_area(tmp_path: Path) -> None:
    affine = oblique()
    point = np.array([(4.0, 4.0, 1.0)])
    path = structure_set(tmp_path / "rt.dcm", {"Isocentre": [point]}, affine, kind="POINT")
    assert refused(lambda: read_rtstruct(path)) == "E_CONTOUR"

    for kind in ("OPEN_PLANAR", "OPEN_NONPLANAR", "POINT"):
        beside = [square(1, 1, 5, 5, 2), square(1, 1, 9, 9, 2)]
        path = structure_set(tmp_path / "rt.dcm", {"Heart": beside}, affine, kind=["CLOSED_PLANAR", kind])
        painting = read_rtstruct(path).on_grid(SHAPE, affine)
        assert painting.labels.sum() == 16
        assert [(flaw.code, flaw.numbers) for flaw in painting.flaws] == [("W_CONTOUR_LEFT_OUT", (7,))]


# What one structure has wrong costs that structure


LINE = np.array([(12.0, 3.0, 2.0), (14.0, 5.0, 2.0), (16.0, 7.0, 2.0)])


@pytest.mark.parametrize("points", [LINE[:1], LINE[:2], LINE], ids=["one-point", "two-points", "on-a-line"])
def test_contours_without_area_cost_nothing(tmp_path: Path, points: Points) -> None:
    affine = oblique()
    contours = {"Liver": [square(1, 1, 5, 5, 2), points], "Marker": [points]}
    painting = read_rtstruct(structure_set(tmp_path / "rt.dcm", contours, affine)).on_grid(SHAPE, affine)

    assert painting.classes == {1: "Liver"}
    assert painting.labels.sum() == 16
    assert {(flaw.code, flaw.numbers) for flaw in painting.flaws} == {
        ("W_CONTOUR_LEFT_OUT", (7,)), ("W_CONTOUR_LEFT_OUT", (8,)),
    }  # fmt: skip


def leaning(points: Points) -> Points:
    return points + np.array([(0, 0, 0.4)] + [(0, 0, 0)] * (len(points) - 1))


@pytest.mark.parametrize(
    "bad",
    [
        [leaning(square(10, 10, 15, 15, 3))],
        [square(10, 10, 15, 15, 3), square(10, 10, 15, 15, 3.5)],
        [square(10, 10, 15, 15, 5), square(10, 10, 15, 15, 6)],
    ],
    ids=["leans", "one-between-slices", "one-behind-the-last"],
)
def test_a_bad_contour_costs_its_structure_and_no_other(tmp_path: Path, bad: list[Points]) -> None:
    affine = oblique()
    path = structure_set(tmp_path / "rt.dcm", {"Liver": [square(1, 1, 5, 5, 2)], "Spleen": bad}, affine)

    painting = read_rtstruct(path).on_grid(SHAPE, affine)
    assert painting.classes == {1: "Liver"}
    assert np.bincount(painting.labels.ravel())[1:].tolist() == [16]
    assert [(flaw.code, flaw.numbers) for flaw in painting.flaws if flaw.is_refusal] == [("E_CONTOUR", (8,))]

    alone = read_rtstruct(path, structures=["Liver"]).on_grid(SHAPE, affine)
    assert (alone.flaws, alone.labels.sum()) == ((), 16)
    assert refused(lambda: read_rtstruct(path, structures=["Spleen"]).to_grid(SHAPE, affine)) == "E_CONTOUR"


def roi_contours(dataset: Dataset, number: int) -> Any:
    return next(roi for roi in dataset.ROIContourSequence if roi.ReferencedROINumber == number).ContourSequence


def _without_points(dataset: Dataset) -> None:
    roi_contours(dataset, 8)[0].NumberOfContourPoints = 9


def _unknown_type(dataset: Dataset) -> None:
    roi_contours(dataset, 8)[0].ContourGeometricType = "CLOSED_NONPLANAR"


def _mixed_types(dataset: Dataset) -> None:
    roi_contours(dataset, 8)[0].ContourGeometricType = "CLOSEDPLANAR_XOR"


def _half_a_point(dataset: Dataset) -> None:
    contour = roi_contours(dataset, 8)[0]
    contour.ContourData = list(contour.ContourData)[:-1]


def _undeclared(dataset: Dataset) -> None:
    del dataset.StructureSetROISequence[1]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_without_points, "E_CONTOUR"), (_unknown_type, "E_CONTOUR"), (_mixed_types, "E_CONTOUR"),
        (_half_a_point, "E_CONTOUR"), (_undeclared, "E_LABEL_FORMAT"),
    ],
    ids=["points-missing", "unknown-type", "mixed-types", "half-a-point", "undeclared"],
)  # fmt: skip
def test_what_is_malformed_in_one_structure_costs_no_other(
    tmp_path: Path, damage: Callable[[Dataset], None], code: str
) -> None:
    affine = oblique()
    contours = {"Liver": [square(1, 1, 5, 5, 2)], "Spleen": [square(10, 10, 15, 15, 3), square(20, 10, 25, 15, 3)]}
    dataset = pydicom.dcmread(structure_set(tmp_path / "rt.dcm", contours, affine))
    damage(dataset)
    dataset.save_as(tmp_path / "rt.dcm")

    painting = read_rtstruct(tmp_path / "rt.dcm").on_grid(SHAPE, affine)

    assert (painting.classes, painting.labels.sum()) == ({1: "Liver"}, 16)
    assert [(flaw.code, flaw.numbers) for flaw in painting.flaws] == [(code, (8,))]


# Several contours on one slice


@pytest.mark.parametrize(
    ("kind", "voxels", "codes"),
    [("CLOSED_PLANAR", 8 * 8 + 8 * 8 - 4 * 8, ["W_CONTOUR_OVERLAP"]), ("CLOSEDPLANAR_XOR", 8 * 8, [])],
)
def test_contours_that_overlap_in_part_are_united_unless_they_are_exclusive(
    tmp_path: Path, kind: str, voxels: int, codes: list[str]
) -> None:
    affine = oblique()
    contours = {"GTV": [square(1.5, 1.5, 9.5, 9.5, 2), square(5.5, 1.5, 13.5, 9.5, 2)]}
    painting = read_rtstruct(structure_set(tmp_path / "rt.dcm", contours, affine, kind=kind)).on_grid(SHAPE, affine)

    assert painting.labels.sum() == voxels
    assert [flaw.code for flaw in painting.flaws] == codes


def test_a_hole_is_noted(tmp_path: Path) -> None:
    affine = oblique()
    contours = {"Wall": [square(3.5, 4.5, 9.5, 20.5, 2), square(4.5, 5.5, 6.5, 7.5, 2)]}
    painting = read_rtstruct(structure_set(tmp_path / "rt.dcm", contours, affine)).on_grid(SHAPE, affine)

    assert [(flaw.code, flaw.numbers) for flaw in painting.flaws] == [("W_CONTOUR_NESTED", (7,))]


@pytest.mark.parametrize(
    ("indices", "gaps"), [([0, 1, 2], 0), ([0, 2, 4], 2), ([1, 5], 3), ([3], 0)], ids=["solid", "striped", "far", "one"]
)
def test_slices_between_that_are_not_drawn_on_are_noted(tmp_path: Path, indices: list[int], gaps: int) -> None:
    affine = oblique()
    contours = {"Lung": [square(1, 1, 5, 5, index) for index in indices], "Liver": [square(8, 8, 12, 12, 2)]}
    painting = read_rtstruct(structure_set(tmp_path / "rt.dcm", contours, affine)).on_grid(SHAPE, affine)

    expected = [f"structure 7: not drawn on up to {gaps} slices between its first and its last"] if gaps else []
    assert [flaw.text for flaw in painting.flaws] == expected


# Names


def test_a_structure_that_holds_no_voxel_beside_one_that_does_is_noted(tmp_path: Path) -> None:
    affine = oblique()
    structures = {"good": [square(1.5, 1.5, 4.5, 4.5, 2)], "tiny": [square(4.2, 4.2, 4.8, 4.8, 2)]}

    painting = read_rtstruct(structure_set(tmp_path / "rt.dcm", structures, affine)).on_grid(SHAPE, affine)

    assert np.count_nonzero(painting.labels) == 9
    assert [(flaw.code, flaw.numbers) for flaw in painting.flaws] == [("W_EMPTY_LABEL", (8,))]


def test_all_structures_of_one_name_are_taken_and_kept_apart_without_a_choice(tmp_path: Path) -> None:
    affine = oblique()
    path = structure_set(
        tmp_path / "rt.dcm", {"Node": [square(1, 1, 5, 5, 2)], "node": [square(8, 1, 12, 5, 2)]}, affine
    )
    dataset = pydicom.dcmread(path)
    twin = Dataset()
    twin.ROINumber, twin.ROIName = 4, "Node"
    outlines = Dataset()
    outlines.ReferencedROINumber = 4
    outlines.ContourSequence = [_contour(square(20, 1, 25, 5, 3), affine, "CLOSED_PLANAR")]
    dataset.StructureSetROISequence.append(twin)
    dataset.ROIContourSequence.append(outlines)
    dataset.save_as(path)

    chosen = read_rtstruct(path, structures=["Node"])
    assert chosen.classes == {1: "Node"}
    assert chosen.to_grid(SHAPE, affine).sum() == 16 + 20

    everything = read_rtstruct(path)
    assert sorted(everything.classes.values()) == ["Node", "Node_2", "node"]
    assert sorted(np.bincount(everything.to_grid(SHAPE, affine).ravel())[1:].tolist()) == [16, 16, 20]


def test_a_class_of_several_structures_is_refused_if_one_of_them_is_bad(tmp_path: Path) -> None:
    affine = oblique()
    nodes = {"Node": [square(1, 1, 5, 5, 2)], "Node ": [square(8, 1, 12, 5, 2.4)]}
    path = structure_set(tmp_path / "rt.dcm", {**nodes, "Liver": [square(20, 1, 25, 5, 3)]}, affine)

    painting = read_rtstruct(path, structures=["Liver", "Node"]).on_grid(SHAPE, affine)

    assert painting.classes == {1: "Liver"}
    assert painting.labels.sum() == 20


SCRIPTS = {
    "utf-8": ("ISO_IR 192", "左肺", "右肺"),
    "gb18030": ("GB18030", "左肺", "右肺"),
    "backslash-in-a-letter": ("GBK", "肺乗", "肝乗"),  # 乗 is 0x81 0x5C: the second byte is a backslash
    "kanji": (["", "ISO 2022 IR 87"], "左肺", "右肺"),
    "korean": (["", "ISO 2022 IR 149"], "왼쪽 폐", "오른쪽 폐"),
    "cyrillic": ("ISO_IR 144", "Лёгкое лев", "Лёгкое прав"),
    "greek": ("ISO_IR 126", "πνεύμονας α", "πνεύμονας δ"),
    "latin-1": ("ISO_IR 100", "Lunge für links", "Lunge für rechts"),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("is_first_left", [True, False], ids=["left-first", "right-first"])
def test_names_keep_their_letters_in_every_character_set(tmp_path: Path, script: str, is_first_left: bool) -> None:
    charset, left, right = SCRIPTS[script]
    affine = oblique()
    areas = {left: square(1, 1, 5, 5, 2), right: square(10, 1, 20, 5, 2)}
    contours = {name: [areas[name]] for name in ((left, right) if is_first_left else (right, left))}
    path = structure_set(tmp_path / "rt.dcm", contours, affine, SpecificCharacterSet=charset)

    mask = read_rtstruct(path)
    counts = np.bincount(mask.to_grid(SHAPE, affine).ravel())
    assert {name: counts[value] for value, name in mask.classes.items()} == {left: 16, right: 40}
    chosen = read_rtstruct(path, structures=[unicodedata.normalize("NFD", right)])
    assert (chosen.classes, chosen.to_grid(SHAPE, affine).sum()) == ({1: right}, 40)


def written_as(path: Path, affine: Affine, names: Sequence[bytes], **attributes: Any) -> Path:
    """A structure set whose first names are replaced by bytes of equal length."""
    plain = [f"{number}" + "x" * (len(name) - 1) for number, name in enumerate(names)]
    squares = [square(1 + 6 * number, 1, 5 + 6 * number, 5, 2) for number in range(len(names))]
    structure_set(path, {name: [one] for name, one in zip(plain, squares, strict=True)}, affine, **attributes)
    content = path.read_bytes()
    for old, new in zip(plain, names, strict=True):
        assert content.count(old.encode()) == 1
        content = content.replace(old.encode(), new)
    path.write_bytes(content)
    return path


def test_structures_without_a_name_are_called_by_their_number(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(structure_set(tmp_path / "rt.dcm", {"x": [square(1, 1, 5, 5, 2)]}, oblique()))
    dataset.StructureSetROISequence[0].ROIName = ""
    dataset.save_as(tmp_path / "rt.dcm")

    assert read_rtstruct(tmp_path / "rt.dcm").classes == {1: "structure 7"}


def test_names_without_a_character_set_are_utf_8_or_read_byte_by_byte(tmp_path: Path) -> None:
    affine = oblique()
    names = ["左肺".encode(), "右肺".encode()]
    assert set(read_rtstruct(written_as(tmp_path / "rt.dcm", affine, names)).classes.values()) == {"左肺", "右肺"}

    names = ["Lungelï".encode("latin-1"), "Lungerä".encode("latin-1")]
    assert set(read_rtstruct(written_as(tmp_path / "rt.dcm", affine, names)).classes.values()) == {"Lungelï", "Lungerä"}


def test_a_name_that_is_not_of_its_character_set_costs_its_structure(tmp_path: Path) -> None:
    """Two such names must never change places, and the structures beside them are not lost."""
    affine = oblique()
    names = ["左肺".encode("gb18030"), "右肺".encode("gb18030"), b"Liver "]
    path = written_as(tmp_path / "rt.dcm", affine, names, SpecificCharacterSet="ISO_IR 192")

    painting = read_rtstruct(path).on_grid(SHAPE, affine)
    assert list(painting.classes.values()) == ["Liver"]
    assert [flaw.code for flaw in painting.flaws] == ["E_NAME_ENCODING"] * 2
    assert [flaw.numbers for flaw in painting.flaws] == [(7,), (8,)]
    assert painting.labels.sum() == 16
    assert read_rtstruct(path, structures=["Liver"]).on_grid(SHAPE, affine).flaws == ()

    path = written_as(tmp_path / "rt.dcm", affine, names[:2], SpecificCharacterSet="ISO_IR 192")
    assert refused(lambda: read_rtstruct(path)) == "E_NAME_ENCODING"


def test_names_that_become_equal_are_refused_only_where_they_are_taken(tmp_path: Path) -> None:
    affine = oblique()
    contours = {"GTV^1": [square(1, 1, 5, 5, 2)], "GTV*1": [square(8, 1, 12, 5, 2)], "Liver": [square(20, 1, 25, 5, 3)]}
    path = structure_set(tmp_path / "rt.dcm", contours, affine)

    assert refused(lambda: read_rtstruct(path)) == "E_NAME_COLLISION"
    assert refused(lambda: read_rtstruct(path, structures=["GTV1"])) == "E_NAME_COLLISION"
    assert refused(lambda: read_rtstruct(path, structures=["GTV^1", "GTV*1"])) == "E_NAME_COLLISION"
    assert read_rtstruct(path, structures=["GTV*1"]).to_grid(SHAPE, affine)[9, 2, 2] == 1
    assert read_rtstruct(path, structures=["Liver"]).classes == {1: "Liver"}


def test_contours_of_several_frames_of_reference_must_name_their_images(tmp_path: Path) -> None:
    affine = oblique()
    frames = [_frame_of_reference(), _frame_of_reference()]
    frames[1].FrameOfReferenceUID = "1.2.3.6"
    attributes = {"ReferencedFrameOfReferenceSequence": frames}
    path = structure_set(tmp_path / "rt.dcm", {"Liver": [square(1, 1, 5, 5, 2)]}, affine, **attributes)
    assert read_rtstruct(path).reference.frame_of_reference is None

    dataset = pydicom.dcmread(path)
    del roi_contours(dataset, 7)[0].ContourImageSequence
    dataset.save_as(path)
    assert refused(lambda: read_rtstruct(path)) == "E_LABEL_AMBIGUOUS"


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
