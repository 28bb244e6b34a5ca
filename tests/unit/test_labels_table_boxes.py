"""Boxes of tables: in whatever form they are written, they become the same corners, or are refused."""

from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import BoxLabel, BoxMark, FindingsLabel, Reading
from medssl_cli.formats.labels.boxes import on_copy
from tests.unit.test_labels_table import read

SHAPE = (64, 48, 1)
UNIT = np.eye(4)


def boxes_of(reading: Reading, shape: tuple[int, int, int] = SHAPE) -> dict[str | None, list[BoxMark]]:
    return {
        label.reference.name or label.reference.patient: list(label.to_grid(shape, UNIT).boxes)
        for label in reading.labels
        if isinstance(label, BoxLabel)
    }


def findings_of(reading: Reading) -> dict[str | None, dict[str, float]]:
    return {
        label.reference.name or label.reference.patient: label.findings
        for label in reading.labels
        if isinstance(label, FindingsLabel)
    }


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("x,y,w,h", "5,6,10,12"),
        ("x,y,width,height", "5,6,10,12"),
        ("h,y,w,x", "12,6,10,5"),
        ("left,top,width,height", "5,6,10,12"),
        ("x_min,y_min,x_max,y_max", "5,6,15,18"),
        ("xmax,xmin,ymax,ymin", "15,5,18,6"),
        ("X1,Y1,X2,Y2", "5.0,6.0,15.0,18.0"),
        ("x0,y0,x1,y1", "5,6,15,18"),
        ("left,top,right,bottom", "5,6,15,18"),
        ("bbox_x,bbox_y,bbox_w,bbox_h", "5,6,10,12"),
        ("bbox", '"[5, 6, 10, 12]"'),
        ("BBox [x,y,w,h]", "5,6,10,12"),
        ('"bbox [xmin, ymin, xmax, ymax]"', '"(5 6 15, 18)"'),
        ("bounding_box", '"[5.0,6.0,10.0,12.0]"'),
    ],
)
@pytest.mark.parametrize("size", [False, True], ids=["no-size", "size"])
def test_boxes_in_any_usual_form_are_taken_and_never_become_findings(
    tmp_path: Path, header: str, row: str, size: bool
) -> None:
    more = (",image_width,image_height", ",64,48") if size else ("", "")

    reading = read(tmp_path, f"image_id,class,{header}{more[0]}", f"a,Mass,{row}{more[1]}", f"b,Edema,{row}{more[1]}")

    assert [type(label) for label in reading.labels] == [BoxLabel, BoxLabel]
    box = ((4.5, 5.5, -0.5), (14.5, 17.5, 0.5))  # an edge at x lies at index x - 0.5
    found = boxes_of(reading)
    assert [(one.name, one.lower, one.upper) for one in found["a"]] == [("Mass", *box)]
    assert [(one.name, one.lower, one.upper) for one in found["b"]] == [("Edema", *box)]
    assert ("W_BOX_SIZE_UNKNOWN" in dict(reading.notes)) is not size


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("x_center,y_center,width,height", "0.5,0.5,0.1,0.1"),
        ("cx,cy,w,h", "30,20,10,10"),
        ("x,y,w,h", "0.1,0.2,0.3,0.4"),
        ("xmin,ymin,xmax,ymax", "0.1,0.2,0.3,0.4"),
        ("x,y", "5,6"),
        ("x,y,radius", "5,6,7"),
        ("x_min,y_min,x_max", "5,6,7"),
        ("bbox", '"[0.1, 0.2, 0.3, 0.4]"'),
        ("boxes", "\"[{'x': 5, 'y': 6, 'width': 10, 'height': 12}]\""),
        ("label", "opacity 1 5 6 15 18"),
    ],
)
def test_places_that_are_no_boxes_in_pixels_are_refused_and_never_become_findings(
    tmp_path: Path, header: str, row: str
) -> None:
    with pytest.raises(InputError, match="E_LABEL_FORMAT"):
        read(tmp_path, f"image_id,class,{header}", f"a,Mass,{row}")


@pytest.mark.parametrize(
    "row",
    [
        "Mass,15,6,5,18", "Mass,5,18,15,6", "Mass,5,6,5,18", "Mass,5,6,,18", "Mass,5,6,x,18", "Mass,,,,",
        ",5,6,15,18", "No finding,5,6,15,18", "Mass,5,6,nan,18",
    ],
    ids=[
        "left-right", "top-bottom", "no-area", "three", "word", "no-box", "no-name", "nothing-with-a-box", "nan",
    ],
)  # fmt: skip
def test_a_bad_row_costs_its_picture_and_no_other(tmp_path: Path, row: str) -> None:
    reading = read(
        tmp_path,
        "image,class,x_min,y_min,x_max,y_max",
        "a,Mass,1,2,3,4",
        "b,Mass,1,2,3,4",
        f"b,{row}",
        "c,Mass,1,2,3,4",
    )

    assert set(boxes_of(reading)) == {"a", "c"}
    assert [(one.row, one.code) for one in reading.refused] == [(4, "E_LABEL_FORMAT"), (3, "E_LABEL_FORMAT")]


def test_a_box_outside_of_its_picture_says_in_which_line_it_stands(tmp_path: Path) -> None:
    (label,) = read(tmp_path, "image,class,x,y,w,h", "a,Mass,1,2,3,4", "a,Mass,60,2,30,4").labels

    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH: a box leaves the picture by 26") as raised:
        label.to_grid(SHAPE, UNIT)  # type: ignore[union-attr]
    assert raised.value.row == 3  # type: ignore[attr-defined]


def test_a_column_of_0_and_1_beside_boxes_is_a_finding_and_says_which_pictures_have_none(tmp_path: Path) -> None:
    """The layout of RSNA's pneumonia set: width and height are of the box."""
    reading = read(
        tmp_path, "patientId,x,y,width,height,Target",
        "p1,5,6,10,12,1", "p1,30.0,6.0,10.0,12.0,1", "p2,,,,,0", "p3,5,6,10,12,0", "p4,,,,,1",
    )  # fmt: skip

    boxes = boxes_of(reading)
    assert [(box.name, box.lower[0]) for box in boxes["p1"]] == [("Target", 4.5), ("Target", 29.5)]
    assert boxes["p2"] == []
    assert findings_of(reading) == {name: {"Target": float(name in ("p1", "p4"))} for name in ("p1", "p2", "p3", "p4")}
    assert [one.row for one in reading.refused] == [5, 6]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("class,x,y,w,h", ",,,,"),
        ("class,x,y,w,h", "NA,NA,NA,NA,NA"),
        ("x,y,w,h", ",,,"),
        ("bbox,source", ",A"),
        ("Target,x,y,w,h", ",,,,"),
    ],
)
def test_a_row_without_name_and_box_says_nothing_and_makes_no_negative(tmp_path: Path, header: str, row: str) -> None:
    good = {"class": "Mass", "source": "A", "bbox": '"[1,2,3,4]"', "Target": "1"}
    values = ",".join(good.get(name, "5") for name in header.split(","))

    reading = read(tmp_path, f"image_id,{header}", f"a,{values}", f"b,{row}")

    assert set(boxes_of(reading)) == {"a"}
    assert (reading.num_silent, reading.refused) == (1, ())


def test_columns_about_boxes_are_no_findings_of_pictures(tmp_path: Path) -> None:
    reading = read(
        tmp_path, "filename,width,height,class,xmin,ymin,xmax,ymax,difficult,ragged",
        "a,64,48,Mass,1,2,3,4,0,1", "a,64,48,Edema,1,2,30,40,1,0",
    )  # fmt: skip

    assert [box.name for box in boxes_of(reading)["a"]] == ["Mass", "Edema"]
    assert findings_of(reading) == {}
    assert any("columns 10 are about boxes" in text for _, text in reading.notes)


VINDR = (
    "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max",
    "a,Cardiomegaly,3,R1,10,10,30,30",
    "a,Cardiomegaly,3,R2,12,10,32,30",  # common 18 x 20 of 2 x 400 - 360: 0.82
    "a,Cardiomegaly,3,R3,40,30,50,40",
    "a,Nodule/Mass,8,R2,12,10,32,30",
    "b,No finding,14,R1,,,,",
    "b,No finding,14,R2,,,,",
    "c,No finding,14,R1,0,0,1,1",
    "d,No finding,14,R1,,,,",
    "d,Nodule/Mass,8,R2,5,6,7,8",
)


def test_boxes_of_several_readers_are_fused_where_they_overlap(tmp_path: Path) -> None:
    reading = read(tmp_path, *VINDR)

    boxes = boxes_of(reading)
    assert [(box.name, box.lower[:2], box.upper[:2], box.num_readers) for box in boxes["a"]] == [
        ("Cardiomegaly", (10.5, 9.5), (30.5, 29.5), 2),
        ("Cardiomegaly", (39.5, 29.5), (49.5, 39.5), 1),
        ("Nodule/Mass", (11.5, 9.5), (31.5, 29.5), 1),
    ]
    assert boxes["b"] == boxes["c"] == []
    assert len(boxes["d"]) == 1
    assert findings_of(reading) == {}
    assert dict(reading.notes)["W_READERS_FUSED"] == "in 1 pictures"


def test_boxes_of_several_readers_are_kept_if_the_user_says_so(tmp_path: Path) -> None:
    boxes = boxes_of(read(tmp_path, *VINDR, readers="keep"))

    assert [len(boxes[name]) for name in "abcd"] == [4, 0, 0, 1]


def test_without_readers_a_picture_with_nothing_and_a_box_is_refused(tmp_path: Path) -> None:
    reading = read(tmp_path, "image,class,x,y,w,h", "a,No finding,,,,", "a,Mass,1,2,3,4", "b,Mass,1,2,3,4")

    assert set(boxes_of(reading)) == {"b"}
    assert [one.row for one in reading.refused] == [2, 3]


def test_the_same_box_twice_is_one(tmp_path: Path) -> None:
    assert len(boxes_of(read(tmp_path, "image,class,x,y,w,h", "a,Mass,1,2,3,4", "a,Mass,1,2,3,4"))["a"]) == 1


def test_a_picture_of_two_sizes_is_refused(tmp_path: Path) -> None:
    header = "image,x,y,w,h,width,height,label"

    reading = read(tmp_path, header, "a,1,2,3,4,64,48,Mass", "a,1,2,3,4,32,48,Edema", "b,1,2,3,4,64,48,Mass")

    assert set(boxes_of(reading)) == {"b"}
    assert [one.row for one in reading.refused] == [2, 3]


@pytest.mark.parametrize("header", ["Image Index,Finding Label,x,y,w,h", "Image Index,Finding Label,Bbox [x,y,w,h],,,"])
def test_boxes_of_the_nih_are_for_1024_pixels(tmp_path: Path, header: str) -> None:
    (label,) = read(tmp_path, header, "a.png,Mass,863.25,693.5,72,112").labels

    assert isinstance(label, BoxLabel)
    assert label.to_grid((1024, 1024, 1), UNIT).boxes[0].lower == (862.75, 693.0, -0.5)
    assert on_copy(label, (512, 512, 1)).to_grid((512, 512, 1), UNIT).boxes[0].lower == (431.125, 346.25, -0.5)
    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH"):
        on_copy(label, (320, 300, 1))


def test_free_text_is_no_name_of_a_box(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="E_LABEL_FORMAT: 1 different names of boxes"):
        read(tmp_path, "image,label,x,y,w,h", "a,seen by Dr. X; cough,1,2,3,4")


def test_columns_of_one_edge_that_differ_are_refused(tmp_path: Path) -> None:
    """The left edge stands twice in a table that was joined of two: with one value, it is the left edge."""
    same = read(tmp_path, "image,class,x,y,w,h,x", "a,Mass,1,2,3,4,1")

    assert boxes_of(same)["a"][0].lower[0] == 0.5
    with pytest.raises(InputError, match="E_NAME_COLLISION: 2 columns of one edge"):
        read(tmp_path, "image,class,x,y,w,h,X", "a,Mass,1,2,3,4,1", "b,Mass,1,2,3,4,9")


@pytest.mark.parametrize("header", ["image,class,x,y,w,h", "image,Finding Labels,x,y,w,h"])
def test_names_of_boxes_that_differ_in_spelling_only_are_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(InputError, match="E_NAME_COLLISION: 1 of 3 names differ"):
        read(tmp_path, header, "a,Lung Mass,1,2,3,4", "b,lung_mass,1,2,3,4", "c,Edema,1,2,3,4", "d,No finding,,,,")
