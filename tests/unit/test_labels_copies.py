"""Boxes on resized copies of the pictures that they were drawn on: scaled where the size is known, else refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import BoxLabel, BoxMark, Reference
from medssl_cli.formats.labels.boxes import PictureBoxes, Rectangle, on_copy, upright
from medssl_cli.formats.labels.coco import read_coco
from tests.unit.test_labels_table import read

ORIGINAL = (300, 200)
BOX = (30.0, 40.0, 60.0, 20.0)


def label(size: tuple[int, int] | None = ORIGINAL, box: Rectangle = BOX) -> BoxLabel:
    return BoxLabel(Reference(name="x"), PictureBoxes((box,), ("Mass",), (2,), (7,)), size=size)


def placed(one: BoxLabel, columns: int, rows: int) -> BoxMark:
    (box,) = one.to_grid((columns, rows, 1), np.eye(4)).boxes
    return box


@pytest.mark.parametrize(("columns", "rows"), [(150, 100), (75, 50), (600, 400), (1, 1)])
def test_edges_are_scaled_and_not_centres(columns: int, rows: int) -> None:
    box = placed(on_copy(label(), (columns, rows, 1), is_stretched=(columns, rows) == (1, 1)), columns, rows)

    # Edge 30 of 300 lies at a tenth of the width whatever that is, and an edge at x at index x - 0.5.
    assert box.lower == pytest.approx((0.1 * columns - 0.5, 0.2 * rows - 0.5, -0.5))
    assert box.upper == pytest.approx((0.3 * columns - 0.5, 0.3 * rows - 0.5, 0.5))
    assert (box.name, box.num_readers) == ("Mass", 2)


def test_a_box_covers_on_the_copy_what_it_covers_on_the_original() -> None:
    original = np.zeros(ORIGINAL)
    original[30:90, 40:60] = 1
    copy = original.reshape(30, 10, 20, 10).mean((1, 3))  # tenths of both sides

    box = placed(on_copy(label(), (*copy.shape, 1)), *copy.shape)

    (x0, y0), (x1, y1) = ([round(edge + 0.5) for edge in corner[:2]] for corner in (box.lower, box.upper))
    assert copy[x0:x1, y0:y1].sum() == copy.sum() == (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize(
    ("size", "columns", "rows"),
    [((2336, 2836), 422, 512), ((2336, 2836), 421, 512), ((2336, 2836), 224, 272), ((2539, 3051), 426, 512)],
    ids=["rounded", "cut-down", "short-side", "odd"],
)
def test_sides_of_a_copy_are_whole_pixels(size: tuple[int, int], columns: int, rows: int) -> None:
    box = placed(on_copy(label(size, (0.0, 0.0, float(size[0]), float(size[1]))), (columns, rows, 1)), columns, rows)

    assert (box.lower, box.upper) == ((-0.5, -0.5, -0.5), (columns - 0.5, rows - 0.5, 0.5))


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (ORIGINAL, (150, 150, 1)),
        (ORIGINAL, (200, 300, 1)),
        (ORIGINAL, (150, 103, 1)),
        ((2336, 2836), (512, 512, 1)),
        ((1024, 1000), (512, 512, 1)),
    ],
    ids=["padded-or-stretched", "transposed", "a-few-rows-more", "square", "almost-square"],
)
def test_a_copy_that_was_padded_cut_or_stretched_is_refused_unless_the_user_says_which(
    size: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    with pytest.raises(InputError, match=r"E_LABEL_GRID_MISMATCH: .* of another aspect ratio") as raised:
        on_copy(label(size), shape)
    assert "--box-copies stretched" in raised.value.hint

    box = placed(on_copy(label(size), shape, is_stretched=True), *shape[:2])
    assert box.lower == pytest.approx((30 * shape[0] / size[0] - 0.5, 40 * shape[1] / size[1] - 0.5, -0.5))


def test_where_the_size_is_not_known_nothing_is_scaled() -> None:
    unknown = label(None)

    assert on_copy(unknown, (150, 100, 1), is_stretched=True) == unknown
    assert on_copy(label(), (*ORIGINAL, 1)) == label()
    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH: a box leaves") as raised:
        label(None, (130.0, 40.0, 60.0, 20.0)).to_grid((150, 100, 1), np.eye(4))
    assert "--box-size" in raised.value.hint


def test_a_box_must_lie_on_the_picture_that_it_was_drawn_on() -> None:
    """By a pixel of the original, not of the copy: 4 of 300 columns are less than one of 60."""
    with pytest.raises(InputError, match="leaves the picture by 4 pixels"):
        on_copy(label(box=(244.0, 40.0, 60.0, 20.0)), (60, 40, 1))
    box = placed(on_copy(label(box=(240.9, 40.0, 60.0, 20.0)), (60, 40, 1)), 60, 40)
    assert box.upper[0] == 59.5


def test_a_slice_stack_is_no_copy() -> None:
    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH"):
        on_copy(label(), (150, 100, 2), is_stretched=True).to_grid((150, 100, 2), np.eye(4))


def test_boxes_of_a_copy_that_was_turned_when_it_was_read_turn_first() -> None:
    turned = upright(label(), 6, (100, 150, 1))

    # EXIF 6 shows (x, y) of W x H at (H - y, x): the box spans 140 to 160 of 200 columns, 30 to 90 of 300 rows.
    box = placed(on_copy(turned, (100, 150, 1)), 100, 150)
    assert (box.lower[:2], box.upper[:2]) == ((69.5, 14.5), (79.5, 44.5))
    with pytest.raises(InputError, match="E_LABEL_ORIENTATION"):  # as 1001 x 1000 turned or not, both fit
        upright(label((1001, 1000)), 6, (100, 100, 1))


def test_a_table_holds_pictures_of_several_sizes(tmp_path: Path) -> None:
    header = "image_id,class_name,x_min,y_min,x_max,y_max,width,height"

    reading = read(tmp_path, header, "a,Mass,30,40,90,60,300,200", "b,Mass,30,40,90,60,400,400", "c,Mass,1,2,3,4,,")

    a, b, c = (one for one in reading.labels if isinstance(one, BoxLabel))
    assert placed(on_copy(a, (30, 20, 1)), 30, 20).lower == (2.5, 3.5, -0.5)
    assert placed(on_copy(b, (40, 40, 1)), 40, 40).lower == (2.5, 3.5, -0.5)
    assert (c.size, dict(reading.notes)["W_BOX_SIZE_UNKNOWN"]) == (None, "of 1 of 3 pictures with boxes")


def test_the_user_says_how_large_pictures_were_of_which_the_file_does_not(tmp_path: Path) -> None:
    rows = ("image_id,class,x,y,w,h,width,height", "a,Mass,1,2,3,4,300,200", "b,Mass,1,2,3,4,,")
    document = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "width": 30, "height": 20}],
        "categories": [{"id": 1, "name": "Mass"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))

    table = read(tmp_path, *rows, box_size=(1024, 512))
    nih = read(tmp_path, "Image Index,Finding Label,x,y,w,h", "a.png,Mass,1,2,3,4", box_size=(224, 224))
    coco = read_coco(tmp_path / "c.json", default_size=(1024, 512))

    sizes = [[one.size for one in reading.labels if isinstance(one, BoxLabel)] for reading in (table, nih, coco)]
    assert sizes == [[(300, 200), (1024, 512)], [(224, 224)], [(1024, 512), (30, 20)]]
    assert "W_BOX_SIZE_UNKNOWN" not in dict((*table.notes, *nih.notes, *coco.notes))
