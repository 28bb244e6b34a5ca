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
from medssl_cli.data.slices import place_on_canvas
from medssl_cli.imaging.geometry import Affine

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


def to_canvas(boxes: Array, record: ItemRecord, item: PreparedItem, canvas: int) -> Array:
    """Boxes `[M, 5]` of a stored image, on the square that a network sees of it.

    Args:
        boxes: In voxel edges of the stored image.
        record: Of the image.
        item: The prepared image, whose axes may run differently.
        canvas: Edge of the square in pixels.
    """
    return _moved(boxes, _canvas_affine(record, item, canvas))


def from_canvas(boxes: Array, record: ItemRecord, item: PreparedItem, canvas: int) -> Array:
    """Boxes on the square, `[M, ...]` whose first four numbers are the corners, in voxel edges of the stored image."""
    return _moved(boxes, np.linalg.inv(_canvas_affine(record, item, canvas)).astype(np.float64))


def stacked(boxes: Sequence[Array]) -> NDArray[np.float32]:
    """Boxes of several images as one array, `[N, M, 5]`; rows without a box have the class -1."""
    most = max([1, *map(len, boxes)])
    rows = np.zeros((len(boxes), most, 5), dtype=np.float32)
    rows[..., 4] = NO_CLASS
    for place, own in enumerate(boxes):
        rows[place, : len(own)] = own
    return rows


def _canvas_affine(record: ItemRecord, item: PreparedItem, canvas: int) -> Affine:
    """Voxel edges of the stored image to pixel edges of the square, in homogeneous (x, y, z)."""
    to_index, to_edge = _shift(-0.5), _shift(0.5)
    size, first = place_on_canvas(item, canvas)
    scale = np.diag([size[0] / item.shape[0], size[1] / item.shape[1], 1.0, 1.0])
    move = np.eye(4)
    move[:2, 3] = first
    affine: Affine = move @ scale @ to_edge @ np.linalg.inv(item.affine) @ record.affine_array @ to_index
    return affine


def _shift(by: float) -> Affine:
    affine = np.eye(4)
    affine[:3, 3] = by
    return affine


def _moved(boxes: Array, affine: Affine) -> Array:
    if not len(boxes):
        return boxes
    corners = np.stack(
        [np.stack([boxes[:, x], boxes[:, y], np.full(len(boxes), 0.5), np.ones(len(boxes))], axis=1)
         for x in (0, 2) for y in (1, 3)]
    )  # fmt: skip
    places = (corners @ affine.T)[..., :2]
    return np.concatenate([places.min(axis=0), places.max(axis=0), boxes[:, 4:]], axis=1)
