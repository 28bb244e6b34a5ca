"""Boxes of images between the voxels of the stored image and those that a network sees.

A record's boxes are in continuous voxel indices, where voxel i covers [i - 0.5, i + 0.5]; those of a network are in
voxel edges, where voxel i covers [i, i + 1]. They are rows of D low and then D high corners and a class; D
is 2 in pictures and 3 in volumes.

Shapes: N images, M boxes, D axes.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.items import Box, ItemRecord
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.imaging.geometry import Affine
from medssl_cli.imaging.placement import move_boxes

Array = NDArray[np.float64]
NO_CLASS: Final = -1.0
"""Class of a row that holds no box."""
IGNORED: Final = -2.0
"""Class of a box that counts for nothing: what lies in it is neither a class nor background."""


def class_of(name: str, classes: Mapping[str, tuple[str, ...] | str]) -> int | None:
    """Place of the first class that takes boxes of a name; a class of `any` takes all. None if no class does."""
    for place, names in enumerate(classes.values()):
        if names == "any" or name in names:
            return place
    return None


def boxes_of(
    record: ItemRecord,
    label_set: str,
    classes: Mapping[str, tuple[str, ...] | str],
    *,
    ignore: Collection[str] = (),
    min_readers: int = 1,
    dims: int = 2,
) -> Array:
    """Boxes of an image that some class takes or that count for nothing, in voxel edges.

    Args:
        record: Record of the image.
        label_set: Name of the set of boxes.
        classes: Classes by name: the names of the boxes that are of the class, or `any`.
        ignore: Names of boxes that count for nothing.
        min_readers: Boxes of which it is known that fewer readers have marked them count for nothing.
        dims: D.

    Returns:
        `[M, 2 D + 1]`: low x, low y, (low z,) high x, high y, (high z,) class. An edge at x of the picture is voxel
        index x - 0.5.
    """
    rows = [
        (*(lower + 0.5 for lower in box.lower[:dims]), *(upper + 0.5 for upper in box.upper[:dims]), place)
        for box, place in _taken(record.boxes[label_set], classes, ignore, min_readers)
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 2 * dims + 1)


def diameters_of(
    record: ItemRecord,
    label_set: str,
    classes: Mapping[str, tuple[str, ...] | str],
    *,
    ignore: Collection[str] = (),
    min_readers: int = 1,
) -> Array:
    """Diameters in millimetres of the same boxes `[M]`; NaN of those that nobody measured."""
    taken = _taken(record.boxes[label_set], classes, ignore, min_readers)
    return np.array([np.nan if box.diameter_mm is None else box.diameter_mm for box, _ in taken], dtype=np.float64)


def _taken(
    boxes: Sequence[Box], classes: Mapping[str, tuple[str, ...] | str], ignore: Collection[str], min_readers: int
) -> list[tuple[Box, float]]:
    """Boxes that some class takes or that count for nothing, as points without an extent do, with their class."""
    found: list[tuple[Box, float]] = []
    for box in boxes:
        place = class_of(box.name, classes)
        has_few_readers = box.num_readers is not None and box.num_readers < min_readers
        is_point = any(low >= high for low, high in zip(box.lower, box.upper, strict=True))
        if box.name in ignore or (place is not None and (has_few_readers or is_point)):
            found.append((box, IGNORED))
        elif place is not None:
            found.append((box, float(place)))
    return found


def to_canvas(boxes: Array, record: ItemRecord, item: PreparedItem) -> Array:
    """Boxes `[M, 2 D + 1]` of a stored image, on the grid that a network sees of it.

    Args:
        boxes: Boxes in voxel edges of the stored image.
        record: Record of the image.
        item: The image, prepared.
    """
    return _moved(boxes, np.linalg.inv(item.affine) @ record.affine_array, (boxes.shape[1] - 1) // 2)


def from_canvas(boxes: Array, record: ItemRecord, item: PreparedItem) -> Array:
    """Boxes on the square, `[M, ...]` whose first four numbers are the corners, in voxel edges of the stored image."""
    return _moved(boxes, np.linalg.inv(record.affine_array) @ item.affine, 2)


def stacked(boxes: Sequence[Array]) -> NDArray[np.float32]:
    """Boxes of several images as one array, `[N, M, 2 D + 1]`; rows without a box have the class -1."""
    most = max([1, *map(len, boxes)])
    rows = np.zeros((len(boxes), most, boxes[0].shape[1]), dtype=np.float32)
    rows[..., -1] = NO_CLASS
    for place, own in enumerate(boxes):
        rows[place, : len(own)] = own
    return rows


def _moved(boxes: Array, matrix: Affine, dims: int) -> Array:
    """Rows of corners in voxel edges, by a map of voxel indices."""
    corners = np.zeros((len(boxes), 2, 3))
    corners[:, 0, :dims], corners[:, 1, :dims] = boxes[:, :dims], boxes[:, dims : 2 * dims]
    corners[:, :, :dims] -= 0.5
    moved = move_boxes(corners, matrix)[:, :, :dims] + 0.5
    return np.concatenate([moved.reshape(-1, 2 * dims), boxes[:, 2 * dims :]], axis=1)
