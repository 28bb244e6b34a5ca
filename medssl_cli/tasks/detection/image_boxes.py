"""Boxes of one image as scores compare them, and those that are there.

Shapes: M boxes, D axes of space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.items import ItemRecord
from medssl_cli.data.boxes import IGNORED, boxes_of, diameters_of
from medssl_cli.heads import BoxesHead
from medssl_cli.metrics.marks import Marks, marks_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ImageBoxes:
    """Boxes of one image, in voxel edges of the stored image.

    Args:
        corners: D low and D high ones, `[M, 2 D]`.
        classes: `[M]`; of boxes that are there, -2 means that it counts for nothing.
        scores: `[M]`; 1 of boxes that are there.
        diameters_mm: Diameters of boxes that are there, `[M]`; NaN where nobody measured it.
    """

    corners: Array
    classes: NDArray[np.int64]
    scores: Array
    diameters_mm: Array | None = None

    def of(self, place: int) -> "ImageBoxes":
        """Those of one class."""
        return self.chosen(self.classes == place)

    @property
    def ignored(self) -> "ImageBoxes":
        """Those that count for nothing."""
        return self.of(int(IGNORED))

    @property
    def that_count(self) -> "ImageBoxes":
        """Those of the classes."""
        return self.chosen(self.classes >= 0)

    def chosen(self, which: NDArray[np.bool_]) -> "ImageBoxes":
        """Some of them."""
        diameters = None if self.diameters_mm is None else self.diameters_mm[which]
        return ImageBoxes(self.corners[which], self.classes[which], self.scores[which], diameters)


def class_marks(found: Sequence[ImageBoxes], truth: Sequence[ImageBoxes], place: int, *, min_overlap: float) -> Marks:
    """Marks of one class on all images."""
    own, there = [boxes.of(place) for boxes in found], [boxes.of(place) for boxes in truth]
    return marks_of(
        [boxes.corners for boxes in own],
        [boxes.scores for boxes in own],
        [boxes.corners for boxes in there],
        min_overlap=min_overlap,
        ignored=[boxes.ignored.corners for boxes in truth],
    )


def truth_of(records: Sequence[ItemRecord], label_set: str, head: BoxesHead) -> list[ImageBoxes]:
    """The boxes that are there, of each image.

    Args:
        records: Records of the images.
        label_set: Name of the set of boxes.
        head: Which boxes are of which class, and which count for nothing.
    """
    classes: dict[str, Any] = {name: head.label_classes[name] for name in head.names}
    wishes: dict[str, Any] = {"ignore": head.label_ignore, "min_readers": head.min_readers}
    dims = 2 if head.tile_size is None else 3
    found = []
    for record in records:
        own = boxes_of(record, label_set, classes, dims=dims, **wishes)
        diameters = diameters_of(record, label_set, classes, **wishes)
        found.append(ImageBoxes(own[:, :-1], own[:, -1].astype(np.int64), np.ones(len(own)), diameters))
    return found
