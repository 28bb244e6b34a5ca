"""Boxes of pictures that were turned when they were read: on the block that they were drawn on, or refused."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import BoxLabel, Reference
from medssl_cli.formats.labels.boxes import PictureBoxes, upright
from medssl_cli.formats.labels.luna import Spheres
from medssl_cli.formats.loaded import exif_orientation

STORED = np.zeros((48, 64), np.uint8)
STORED[5:13, 7:19] = 220
BOX = (7.0, 5.0, 12.0, 8.0)


def shown(orientation: int) -> np.ndarray[Any, Any]:
    """The picture as another program shows it, [Y, X]."""
    picture = Image.fromarray(STORED)
    picture.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


def label(size: tuple[int, int] | None, *rectangles: tuple[float, float, float, float]) -> BoxLabel:
    return BoxLabel(Reference(name="x"), PictureBoxes(rectangles, ("n",) * len(rectangles)), size=size)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_where_turning_exchanges_the_sides_the_size_says_what_the_boxes_were_drawn_on(orientation: int) -> None:
    picture = shown(orientation).T[:, :, None]  # [X, Y, 1]
    assert picture.shape == (48, 64, 1)

    turned = upright(label((64, 48), BOX), orientation, picture.shape)

    (box,) = turned.to_grid(picture.shape, np.eye(4)).boxes
    (x0, y0), (x1, y1) = ([round(edge + 0.5) for edge in corner[:2]] for corner in (box.lower, box.upper))
    assert (picture[x0:x1, y0:y1] == 220).all()
    assert picture[x0:x1, y0:y1].size == (STORED == 220).sum()
    unchanged = label((48, 64), BOX)
    assert upright(unchanged, orientation, picture.shape) == unchanged


@pytest.mark.parametrize(
    ("orientation", "size", "shape"),
    [
        (2, (64, 48), (64, 48, 1)),
        (3, (64, 48), (64, 48, 1)),
        (4, None, (64, 48, 1)),
        (6, None, (48, 64, 1)),
        (8, (64, 64), (64, 64, 1)),
    ],
    ids=["mirrored", "half-turn", "upside-down", "no-size", "square"],
)
def test_where_nothing_says_it_the_boxes_are_refused(
    orientation: int, size: tuple[int, int] | None, shape: tuple[int, int, int]
) -> None:
    with pytest.raises(InputError, match="E_LABEL_ORIENTATION"):
        upright(label(size, BOX), orientation, shape)


def test_no_boxes_and_no_turn_need_no_answer() -> None:
    for one, orientation in ((label((64, 48), BOX), 1), (label((64, 48)), 3)):
        assert upright(one, orientation, (64, 48, 1)) == one
    points = BoxLabel(Reference(series_uid="1"), Spheres(((1, 2, 3, 4),), ("n",)))
    assert upright(points, 3, (64, 48, 1)) == points


def test_the_orientation_is_read_from_what_was_repaired() -> None:
    assert exif_orientation(("gaps=interpolate", "exif-orientation=6")) == 6
    assert exif_orientation(("gaps=interpolate",)) == exif_orientation(()) == 1


@pytest.mark.parametrize("beside", [(-3.0, 5.0, 2.5, 8.0), (64.5, 5.0, 0.4, 8.0)], ids=["left", "right"])
def test_a_box_wholly_beside_its_picture_is_refused(beside: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="E_LABEL_GRID_MISMATCH"):
        label(None, beside).to_grid((64, 48, 1), np.eye(4))
