"""From what a network says of every place of its maps to boxes with scores.

Shapes: P places of all maps, M boxes, K classes, D axes of space (2 or 3), X Y Z space. Boxes are D low and then D high
corners, in voxel edges of the input; voxel i covers [i, i + 1].
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medssl_cli.heads import BoxesHead
from medssl_cli.imaging.geometry import Affine, Shape
from medssl_cli.imaging.placement import ChannelImages, move_boxes
from medssl_cli.imaging.preprocessing import NetworkInput, channel_images, network_input
from medssl_cli.imaging.probabilities import sigmoid
from medssl_cli.imaging.segment import Progress
from medssl_cli.imaging.tiling import centre_tile, padded_to, tile_starts
from medssl_cli.imaging.volume import Volume
from medssl_cli.imaging.whole import whole_input
from medssl_cli.metrics.marks import overlaps
from medssl_cli.preprocessing import Preprocessing

SIZE_PER_STRIDE: Final = 8
"""A map answers for boxes whose farthest edge is at most so many of its strides away, and no finer map's."""
CANDIDATES: Final = 10
"""Places per box that is kept at most, of each class, that are compared with each other."""
OUTER_SHARE: Final = 0.25
"""Share of the overlap of two tiles, at the edge of each, about which that tile says nothing: the other sees more."""
Array = NDArray[np.float32]


class Grid(NamedTuple):
    """The places of all maps.

    Args:
        places: Centres in voxel edges, [P, D].
        strides: Strides of each place's map along each axis, [P, D].
        sizes: Least and most distance to the farthest edge along each axis that a place answers for, [P, 2, D].
        maps: Number of each place's map, [P].
    """

    places: Array
    strides: Array
    sizes: Array
    maps: NDArray[np.int64]

    @classmethod
    def of(cls, size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> "Grid":
        """Places of maps of an image of X x Y (x Z) voxels, in the order of `network.DetectionHead`.

        Args:
            size: Voxels along each axis.
            strides: Strides of each map, along all axes or along each.
        """
        places, steps, sizes, maps = [], [], [], []
        low = np.zeros(len(size), dtype=np.float32)
        for number, stride in enumerate(strides):
            step = np.broadcast_to(np.array(stride, dtype=np.float32), len(size))
            axes = [
                (np.arange(-(-extent // int(each)), dtype=np.float32) + np.float32(0.5)) * each
                for extent, each in zip(size, step, strict=True)
            ]
            own = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(size)).astype(np.float32)
            high = np.full_like(low, np.inf) if number + 1 == len(strides) else SIZE_PER_STRIDE * step
            places.append(own)
            steps.append(np.tile(step, (len(own), 1)))
            sizes.append(np.tile(np.stack([low, high]), (len(own), 1, 1)))
            maps.append(np.full(len(own), number, dtype=np.int64))
            low = high
        return cls(*map(np.concatenate, (places, steps, sizes, maps)))

    def boxes(self, edges: Array) -> Array:
        """Boxes [P, 2 D] from distances to their edges."""
        dims = self.places.shape[1]
        return np.concatenate([self.places - edges[:, :dims], self.places + edges[:, dims:]], axis=1)


class FoundBoxes(NamedTuple):
    """Boxes of one image, best first: corners [M, 2 D], scores [M], classes [M]."""

    boxes: NDArray[Any]
    scores: Array
    classes: NDArray[np.int64]

    def chosen(self, places: NDArray[Any]) -> "FoundBoxes":
        """Some of them, by their numbers or by whether each is chosen."""
        return FoundBoxes(self.boxes[places], self.scores[places], self.classes[places])


def decode(
    logits: Array, grid: Grid, size: Sequence[int], *, min_score: float, max_overlap: float, max_boxes: int
) -> FoundBoxes:
    """The boxes of one image, of those that overlap the best.

    A score is the geometric mean of the probability of the class and of how good a box the place gives.

    Args:
        logits: [P, K + 1 + 2 D]; see `network.Answers`.
        grid: Grid of the image.
        size: Its voxels along each axis, at which boxes end.
        min_score: Boxes below it are dropped.
        max_overlap: Largest overlap (intersection over union) of two boxes of a class; beyond it the better one stays.
        max_boxes: Largest number of boxes of all classes together.
    """
    dims = len(size)
    scores = np.sqrt(sigmoid(logits[:, : -2 * dims - 1]) * sigmoid(logits[:, -2 * dims - 1])[:, None])
    corners = grid.boxes(logits[:, -2 * dims :]).clip(min=0, max=np.array([*size, *size], dtype=np.float32))
    each = []
    for number in range(scores.shape[1]):
        best = _best_first(scores[:, number])[: CANDIDATES * max_boxes]
        best = best[scores[best, number] >= min_score]
        best = best[(corners[best, dims:] > corners[best, :dims]).all(axis=1)]
        kept = best[_apart(corners[best], max_overlap=max_overlap)[:max_boxes]]
        each.append(FoundBoxes(corners[kept], scores[kept, number], np.full(len(kept), number, dtype=np.int64)))
    return _best_of(each, max_boxes)


def _best_of(parts: Sequence[FoundBoxes], max_boxes: int) -> FoundBoxes:
    """The best of several lists of boxes."""
    together = FoundBoxes(*map(np.concatenate, zip(*parts, strict=True)))
    return together.chosen(_best_first(together.scores)[:max_boxes])


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
    predict: Callable[..., Array],
    images: Volume | ChannelImages,
    *,
    preprocessing: Preprocessing,
    head: BoxesHead,
    progress: Progress | None = None,
    on_centre: Callable[[Array], None] | None = None,
) -> FoundBoxes:
    """The boxes of a whole picture or volume, in its own voxel edges: voxel 0 of the image as it came covers 0 to 1.

    Boxes may reach beyond a picture, where the network saw padding; those of volumes end with the volume.

    Args:
        predict: The network: images `[N, C, X, Y]` or tiles `[N, C, X, Y, Z]` to what every place says,
            `[N, P, K + 1 + 2 D]`.
        images: One per channel, as a reader or the cache returns them.
        preprocessing: What the network sees of them.
        head: How its answers are read.
        progress: Called after every tile of a volume.
        on_centre: Told before the first tile of a volume which one is the nearest to the middle, `[C, X, Y, Z]`.
    """
    if head.tile_size is not None:
        volume = network_input(channel_images(images), preprocessing)
        if on_centre is not None:
            on_centre(centre_tile(volume.voxels, head.tile_size, head.overlap))
        return _boxes_of_volume(predict, volume, head, head.tile_size, progress)
    seen = whole_input(images, preprocessing)
    x, y = seen.arrays[0].shape[2:]
    found = _decoded(predict(*seen.arrays)[0], Grid.of((x, y), head.strides), (x, y), head)
    return found._replace(boxes=_moved(found.boxes, seen.placement.to_source))


def _decoded(logits: Array, grid: Grid, size: Sequence[int], head: BoxesHead) -> FoundBoxes:
    """See `decode`; by a head."""
    return decode(logits, grid, size, min_score=head.min_score, max_overlap=head.max_overlap, max_boxes=head.max_boxes)


def _boxes_of_volume(
    predict: Callable[..., Array],
    seen: NetworkInput,
    head: BoxesHead,
    tile: Shape,
    progress: Progress | None,
) -> FoundBoxes:
    """The boxes of a volume that is searched tile by tile.

    Of what two tiles share, each leaves the quarter at its own edge to the other, which sees what is around a box
    there; where both have found a box, the better one stays. How much boxes overlap is the same in voxels and in
    millimetres, as the grid's axes are at right angles.
    """
    voxels, offset = padded_to(seen.voxels, tile)
    starts = tile_starts(voxels.shape[1:], tile, head.overlap)
    grid, inner = Grid.of(tile, head.strides), _inner(starts, tile)
    parts = [FoundBoxes(np.zeros((0, 6), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))]
    for number, start in enumerate(starts, start=1):
        box = tuple(slice(low, low + length) for low, length in zip(start, tile, strict=True))
        found = _decoded(predict(voxels[(slice(None), *box)][None])[0], grid, tile, head)
        low, high = inner[start]
        centres = (found.boxes[:, :3] + found.boxes[:, 3:]) / 2
        own = found.chosen(np.all((centres >= low) & (centres < high), axis=1))
        parts.append(own._replace(boxes=own.boxes + np.tile(np.subtract(start, offset), 2).astype(np.float32)))
        if progress is not None:
            progress(number, len(starts))
    together = FoundBoxes(*map(np.concatenate, zip(*parts, strict=True)))
    end = np.tile(seen.voxels.shape[1:], 2).astype(np.float32)
    together = together._replace(boxes=together.boxes.clip(min=0, max=end))
    together = together.chosen(np.all(together.boxes[:, 3:] > together.boxes[:, :3], axis=1))
    each = []
    for place in range(len(head.names)):
        own = together.chosen(together.classes == place)
        own = own.chosen(_best_first(own.scores))
        each.append(own.chosen(_apart(own.boxes, max_overlap=head.max_overlap)))
    found = _best_of(each, head.max_boxes)
    return found._replace(boxes=_moved(found.boxes, seen.placement.to_source))


def _inner(starts: Sequence[Shape], tile: Shape) -> dict[Shape, NDArray[np.float64]]:
    """Between which voxel edges of each tile, known by its first voxel, the centres of its boxes lie, [2, 3]."""
    sides: list[dict[int, tuple[float, float]]] = []
    for axis, length in enumerate(tile):
        places = sorted({start[axis] for start in starts})
        shared = [OUTER_SHARE * (length - (after - before)) for before, after in itertools.pairwise(places)]
        low, high = [-math.inf, *shared], [*(length - share for share in shared), math.inf]
        sides.append(dict(zip(places, zip(low, high, strict=True), strict=True)))
    return {start: np.array([own[first] for own, first in zip(sides, start, strict=True)]).T for start in starts}


def _moved(boxes: NDArray[Any], matrix: Affine) -> NDArray[np.float64]:
    """Boxes in voxel edges `[M, 2 D]`, by a map of voxel indices."""
    dims = boxes.shape[1] // 2
    corners = np.zeros((len(boxes), 2, 3))
    corners[..., :dims] = boxes.reshape(-1, 2, dims) - 0.5
    moved = move_boxes(corners, matrix)[..., :dims] + 0.5
    return moved.reshape(-1, 2 * dims)
