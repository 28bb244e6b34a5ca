"""From what a network says of every place of its maps to boxes with scores.

Shapes: P places of all maps, M boxes, K classes, X Y pixels. Boxes are low x, low y, high x, high y in pixel edges of
the input; pixel i covers [i, i + 1].
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medssl_cli.heads import BoxesHead
from medssl_cli.imaging.placement import ChannelImages, move_boxes
from medssl_cli.imaging.probabilities import sigmoid
from medssl_cli.imaging.volume import Volume
from medssl_cli.imaging.whole import whole_input
from medssl_cli.metrics.marks import overlaps
from medssl_cli.preprocessing import Preprocessing

SIZE_PER_STRIDE: Final = 8
"""A map answers for boxes whose farthest edge is at most so many of its strides away, and no finer map's."""
CANDIDATES: Final = 10
"""Places per box that is kept at most, of each class, that are compared with each other."""
Array = NDArray[np.float32]


class Grid(NamedTuple):
    """The places of all maps.

    Args:
        places: Centres in pixel edges, [P, 2].
        strides: Of each place's map, [P].
        sizes: Least and most distance to the farthest edge that a place answers for, [P, 2].
    """

    places: Array
    strides: Array
    sizes: Array

    @classmethod
    def of(cls, size: tuple[int, int], strides: Sequence[int]) -> "Grid":
        """Places of maps of an image of X x Y pixels, in the order of `network.DetectionHead`."""
        places, steps, sizes = [], [], []
        low = 0.0
        for number, stride in enumerate(strides):
            axes = [(np.arange(-(-extent // stride), dtype=np.float32) + np.float32(0.5)) * stride for extent in size]
            own = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)
            high = math.inf if number + 1 == len(strides) else float(SIZE_PER_STRIDE * stride)
            places.append(own)
            steps.append(np.full(len(own), stride, dtype=np.float32))
            sizes.append(np.tile(np.array([low, high], dtype=np.float32), (len(own), 1)))
            low = high
        return cls(np.concatenate(places), np.concatenate(steps), np.concatenate(sizes))

    def boxes(self, edges: Array) -> Array:
        """Boxes [P, 4] from distances to their edges."""
        return np.concatenate([self.places - edges[:, :2], self.places + edges[:, 2:]], axis=1)


class FoundBoxes(NamedTuple):
    """Boxes of one image, best first: corners [M, 4], scores [M], classes [M]."""

    boxes: NDArray[Any]
    scores: Array
    classes: NDArray[np.int64]


def decode(
    logits: Array, grid: Grid, size: tuple[int, int], *, min_score: float, max_overlap: float, max_boxes: int
) -> FoundBoxes:
    """The boxes of one image, of those that overlap the best.

    A score is the geometric mean of the probability of the class and the centredness.

    Args:
        logits: [P, K + 5]; see `network.Answers`.
        grid: Of the image.
        size: Its pixels along x and y, at which boxes end.
        min_score: Boxes below it are dropped.
        max_overlap: Of two boxes of a class that overlap more (intersection over union) the better one stays.
        max_boxes: Of all classes together.
    """
    scores = np.sqrt(sigmoid(logits[:, :-5]) * sigmoid(logits[:, -5])[:, None])
    corners = grid.boxes(logits[:, -4:]).clip(min=0, max=np.array([*size, *size], dtype=np.float32))
    boxes, marks, classes = [], [], []
    for number in range(scores.shape[1]):
        best = _best_first(scores[:, number])[: CANDIDATES * max_boxes]
        best = best[scores[best, number] >= min_score]
        best = best[(corners[best, 2:] > corners[best, :2]).all(axis=1)]
        kept = best[_apart(corners[best], max_overlap=max_overlap)[:max_boxes]]
        boxes.append(corners[kept])
        marks.append(scores[kept, number])
        classes.append(np.full(len(kept), number, dtype=np.int64))
    together = FoundBoxes(np.concatenate(boxes), np.concatenate(marks), np.concatenate(classes))
    order = _best_first(together.scores)[:max_boxes]
    return FoundBoxes(together.boxes[order], together.scores[order], together.classes[order])


def _best_first(scores: Array) -> NDArray[np.intp]:
    """Order of falling scores; of equal ones the earlier comes first."""
    return np.argsort(-scores, kind="stable")


def _apart(corners: Array, *, max_overlap: float) -> NDArray[np.intp]:
    """Which boxes, best first, overlap none of the better ones that stay by more than a share."""
    boxes, rest, kept = corners.astype(np.float64), np.arange(len(corners)), []
    while len(rest):
        first, rest = rest[0], rest[1:]
        kept.append(first)
        rest = rest[overlaps(boxes[rest], boxes[[first]])[:, 0] <= max_overlap]
    return np.array(kept, dtype=np.intp)


def answer(
    predict: Callable[..., Array], images: Volume | ChannelImages, *, preprocessing: Preprocessing, head: BoxesHead
) -> FoundBoxes:
    """The boxes of a whole picture, in its own pixel edges: pixel 0 of the image as it came covers 0 to 1.

    Boxes may reach beyond the picture, where the network saw padding.

    Args:
        predict: The network: images `[N, C, X, Y]` to what every place says, `[N, P, K + 5]`.
        images: One per channel, as a reader or the cache returns them.
        preprocessing: What the network sees of them.
        head: How its answers are read.
    """
    seen = whole_input(images, preprocessing)
    x, y = seen.arrays[0].shape[2:]
    found = decode(
        predict(*seen.arrays)[0],
        Grid.of((x, y), head.strides),
        (x, y),
        min_score=head.min_score,
        max_overlap=head.max_overlap,
        max_boxes=head.max_boxes,
    )
    corners = np.zeros((len(found.boxes), 2, 3))
    corners[..., :2] = found.boxes.reshape(-1, 2, 2) - 0.5
    moved = move_boxes(corners, seen.placement.to_source)[..., :2] + 0.5
    return found._replace(boxes=moved.reshape(-1, 4))
