"""Boxes of 2D images between the voxels of the stored image and the pixels of the square that a network sees.

A record's boxes are in continuous voxel indices, where voxel i covers [i - 0.5, i + 0.5]; those of a network are in
pixel edges, where pixel i covers [i, i + 1].

Shapes: N images, M boxes.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.imaging.geometry import Affine
from medssl_cli.imaging.placement import move_boxes

Array = NDArray[np.float64]
NO_CLASS: Final = -1.0
"""Class of a row that holds no box."""


def class_of(name: str, classes: Mapping[str, tuple[str, ...] | str]) -> int | None:
    """Place of the first class that takes boxes of a name; a class of `any` takes all. None if no class does."""
    for place, names in enumerate(classes.values()):
        if names == "any" or name in names:
            return place
    return None


def boxes_of(record: ItemRecord, label_set: str, classes: Mapping[str, tuple[str, ...] | str]) -> Array:
    """Boxes of an image that some class takes, in voxel edges.

    Returns:
        `[M, 5]`: low x, low y, high x, high y, class. An edge at x of the picture is voxel index x - 0.5.
    """
    rows = [
        (*(lower + 0.5 for lower in box.lower[:2]), *(upper + 0.5 for upper in box.upper[:2]), float(place))
        for box in record.boxes[label_set]
        if (place := class_of(box.name, classes)) is not None
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def to_canvas(boxes: Array, record: ItemRecord, item: PreparedItem) -> Array:
    """Boxes `[M, 5]` of a stored image, on the square that a network sees of it.

    Args:
        boxes: In voxel edges of the stored image.
        record: Of the image.
        item: The image, prepared to fit the square.
    """
    return _moved(boxes, np.linalg.inv(item.affine) @ record.affine_array)


def from_canvas(boxes: Array, record: ItemRecord, item: PreparedItem) -> Array:
    """Boxes on the square, `[M, ...]` whose first four numbers are the corners, in voxel edges of the stored image."""
    return _moved(boxes, np.linalg.inv(record.affine_array) @ item.affine)


def stacked(boxes: Sequence[Array]) -> NDArray[np.float32]:
    """Boxes of several images as one array, `[N, M, 5]`; rows without a box have the class -1."""
    most = max([1, *map(len, boxes)])
    rows = np.zeros((len(boxes), most, 5), dtype=np.float32)
    rows[..., 4] = NO_CLASS
    for place, own in enumerate(boxes):
        rows[place, : len(own)] = own
    return rows


def _moved(boxes: Array, matrix: Affine) -> Array:
    """Rows of corners in voxel edges, by a map of voxel indices."""
    corners = np.zeros((len(boxes), 2, 3))
    corners[:, 0, :2], corners[:, 1, :2] = boxes[:, :2], boxes[:, 2:4]
    corners[:, :, :2] -= 0.5
    moved = move_boxes(corners, matrix)[:, :, :2] + 0.5
    return np.concatenate([moved.reshape(-1, 4), boxes[:, 4:]], axis=1)
