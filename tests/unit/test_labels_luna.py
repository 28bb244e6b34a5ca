"""Points in the patient become boxes on any grid."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels.luna import read_luna

SHAPE = (64, 48, 32)


def table(path: Path, *lines: str, header: str = "seriesuid,coordX,coordY,coordZ,diameter_mm") -> Path:
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


def test_a_nodule_is_the_box_around_its_sphere(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=0).as_matrix() * (0.8, 0.8, 2.0)
    affine[:3, 3] = (-30, 12, 100)
    x, y, z = affine[:3, :3] @ (20, 30, 10) + affine[:3, 3]
    (label,) = read_luna(table(tmp_path / "a.csv", f"1.2.3,{-x:.9f},{-y:.9f},{z:.9f},8.0")).labels  # LPS

    (box,) = label.to_grid(SHAPE, affine).boxes

    assert label.reference.series_uid == "1.2.3"
    assert np.allclose(box.lower, (20 - 5, 30 - 5, 10 - 2), atol=1e-6)  # 4 mm are 5, 5 and 2 voxels
    assert np.allclose(box.upper, (20 + 5, 30 + 5, 10 + 2), atol=1e-6)
    assert (box.name, box.diameter_mm) == ("nodule", 8.0)


def test_columns_that_are_not_taken_are_counted(tmp_path: Path) -> None:
    path = table(tmp_path / "c.csv", "a,-1,-1,1,0.9", header="seriesuid,coordX,coordY,coordZ,probability")

    assert read_luna(path).notes == (("W_LABEL_NOT_TAKEN", "1 of 5 columns"),)


def test_candidates_keep_their_class(tmp_path: Path) -> None:
    path = table(
        tmp_path / "c.csv", "a,-1,-1,1,0", "b,-2,-2,2,1", "a,-3,-3,3,1", header="seriesuid,coordX,coordY,coordZ,class"
    )

    first, second = read_luna(path).labels

    boxes = first.to_grid(SHAPE, np.eye(4)).boxes
    assert [(box.name, box.lower, box.upper) for box in boxes] == [
        ("not_nodule", (1, 1, 1), (1, 1, 1)),
        ("nodule", (3, 3, 3), (3, 3, 3)),
    ]
    assert second.reference.series_uid == "b"


def test_a_point_outside_of_the_image_is_refused(tmp_path: Path) -> None:
    (label,) = read_luna(table(tmp_path / "a.csv", "a,-1,-1,1,3", "a,1,-1,1,3")).labels

    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH: 1 of 2 points"):
        label.to_grid(SHAPE, np.eye(4))


@pytest.mark.parametrize(
    "line",
    ["b,1,2,3", "b,1,2,3,4,5", "b,1,2,nan,4", "b,1,2,1e300,4", "b,1,2,three,4", "b,1,2,,4", ",1,2,3,4"],
    ids=["short", "long", "nan", "huge", "word", "half", "no-series"],
)
def test_a_malformed_row_costs_itself_and_no_other_series(tmp_path: Path, line: str) -> None:
    reading = read_luna(table(tmp_path / "a.csv", "a,-1,-1,1,3", line, "c,-1,-1,1,3"))

    assert [label.reference.series_uid for label in reading.labels] == ["a", "c"]
    assert [(row.row, row.code) for row in reading.refused] == [(3, "E_LABEL_FORMAT")]


def test_points_of_one_series_are_taken_together_or_not_at_all(tmp_path: Path) -> None:
    reading = read_luna(table(tmp_path / "a.csv", "a,-1,-1,1,3", "b,-1,-1,1,3", "a,-1,-1,1,x"))

    assert [label.reference.series_uid for label in reading.labels] == ["b"]
    assert [row.row for row in reading.refused] == [4, 2]


def test_quotation_marks_that_do_not_close_cost_the_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read_luna(table(tmp_path / "a.csv", 'a,"1,2,3,4'))


def test_columns_may_stand_in_any_order_and_diameters_may_be_missing(tmp_path: Path) -> None:
    path = table(
        tmp_path / "a.csv",
        ";1;-2;-3;1.2.3.mhd",
        "2,5;1;-2;-3;1.2.4",
        header="diameter_mm;coordZ;coordY;coordX;seriesuid",
    )

    first, second = read_luna(path).labels

    (point,) = first.to_grid(SHAPE, np.eye(4)).boxes
    assert (first.reference.series_uid, point.lower, point.upper, point.diameter_mm) == (
        "1.2.3", (3, 2, 1), (3, 2, 1), None,
    )  # fmt: skip
    assert second.to_grid(SHAPE, np.eye(4)).boxes[0].diameter_mm == 2.5


def test_a_point_outside_says_in_which_line_it_stands(tmp_path: Path) -> None:
    (label,) = read_luna(table(tmp_path / "a.csv", "a,-1,-1,1,3", "a,-1,-1,500,3")).labels

    with pytest.raises(InputError) as raised:
        label.to_grid(SHAPE, np.eye(4))
    assert raised.value.row == 3  # type: ignore[attr-defined]


def test_findings_that_nobody_measured_are_points(tmp_path: Path) -> None:
    """In `annotations_excluded.csv` their diameter is negative; LUNA16 counts 10 mm around them (`imaging.spots`)."""
    (label,) = read_luna(table(tmp_path / "a.csv", "a,-1,-1,1,-1")).labels

    (box,) = label.to_grid(SHAPE, np.eye(4)).boxes
    assert (box.lower, box.upper, box.diameter_mm) == ((1, 1, 1), (1, 1, 1), None)


def test_a_row_without_a_place_says_that_somebody_looked(tmp_path: Path) -> None:
    """All scans of LUNA16 in one table: those with nodules, with irrelevant findings, and those with nothing."""
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm,class"
    path = table(tmp_path / "a.csv", "a,-1,-1,1,3,1", "a,-2,-2,900,-1,0", "a,,,,,1", "b,,,,,1", header=header)

    found, nothing = read_luna(path).labels

    assert (nothing.reference.series_uid, nothing.to_grid(SHAPE, np.eye(4)).boxes) == ("b", ())
    with pytest.raises(InputError) as raised:
        found.to_grid(SHAPE, np.eye(4))
    assert raised.value.row == 3  # type: ignore[attr-defined]
