"""From images and a network to a label map or masks on their own grid: the one composition that everybody uses.

Validation during training, evaluation, the parity check of export and inference all call `segment_volume`; they differ
in the network that they pass and in nothing else.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.classes import Activation
from medssl_cli.imaging.geometry import Affine, Shape, axis_order, spacing_mm
from medssl_cli.imaging.kept_probabilities import ProbabilityPlanes, ProbabilityWriter
from medssl_cli.imaging.placement import ChannelImages
from medssl_cli.imaging.preprocessing import channel_images, network_input
from medssl_cli.imaging.restoring import RestoredLabels, RestoredMasks
from medssl_cli.imaging.tiling import Predict, centre_tile, rolling_window, tile_starts
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing

Progress = Callable[[int, int], None]
"""Called with (calls of the network done, calls in all)."""

WORTH_BYTES: Final = 2**29
"""Memory for which tiles are computed along another axis than x."""
BYTES_PER_TILE: Final = 200
"""Where it begins."""


def segment_volume(
    predict: Predict,
    images: Volume | ChannelImages,
    *,
    preprocessing: Preprocessing,
    tile: tuple[int, int, int],
    overlap: float,
    mirror_axes: tuple[int, ...] = (),
    activation: Activation = "softmax",
    num_outputs: int = 1,
    progress: Progress | None = None,
    probabilities: ProbabilityPlanes | None = None,
    on_centre: Callable[[NDArray[np.float32]], None] | None = None,
) -> NDArray[np.uint8]:
    """Segment an example of any orientation, spacing and size.

    Args:
        predict: Network on tiles, `[B, C, *tile]` to logits `[B, K, *tile]`; each answer is used before the next call.
        images: One per channel, `[1, X, Y, Z]` as a reader or the cache returns them; a single one needs no sequence.
        preprocessing: The recipe's.
        tile: Sliding window in voxels of the preprocessed grid.
        overlap: Fraction shared by neighbouring tiles.
        mirror_axes: Average over flips along these axes.
        activation: What the outputs mean.
        num_outputs: How many the network has, where it is known; see `rolling_axis`.
        progress: Called after every call of the network.
        probabilities: Gets those of every class, too.
        on_centre: Told before the first call which tile, `[C, *tile]`, is the nearest to the middle.

    Returns:
        `[X, Y, Z]` class of every voxel, or of regions masks `[K, X, Y, Z]` of 0 and 1, on the grid of the first image
        and in its order in memory.
    """
    images = channel_images(images)
    seen, like = network_input(images, preprocessing), images[0].voxels[0]
    if on_centre is not None:
        on_centre(centre_tile(seen.voxels, tile, overlap))
    if progress is not None:
        predict = _counted(predict, progress, num_calls(seen.placement.shape, tile, overlap, mirror_axes))
    along = rolling_axis(seen.placement.shape, tile, num_outputs)
    restored: RestoredLabels | RestoredMasks | None = None
    writer: ProbabilityWriter | None = None
    for first, planes in rolling_window(
        predict, seen.voxels, tile=tile, overlap=overlap, mirror_axes=mirror_axes, along=along
    ):
        if restored is None and activation == "softmax":
            restored = RestoredLabels(seen.placement, along=along, like=like)
        elif restored is None:
            restored = RestoredMasks(seen.placement, len(planes), along=along, like=like)
        if writer is None and probabilities is not None:
            writer = ProbabilityWriter(restored, probabilities, activation, len(planes))
            restored.beside = writer.write
        restored.add(first, planes)
        if writer is not None:
            writer.settle()
    if restored is None:
        raise ValueError("an empty image has no voxels")
    return restored.answer.view(np.uint8)


def expected_sizes(shape: Shape, affine: Affine, preprocessing: Preprocessing) -> list[float]:
    """Voxels of the grid along each axis, before they are rounded and before anything is cut away."""
    order, _ = axis_order(affine)
    spacing = spacing_mm(affine)
    if preprocessing.spacing_mm is None:
        own = [float(shape[axis]) for axis in order]
        fit = preprocessing.fit or preprocessing.stretch or ()
        return [*map(float, fit), *own[len(fit) :]]
    return [shape[axis] * spacing[axis] / target for axis, target in zip(order, preprocessing.spacing_mm, strict=True)]


def rolling_axis(grid: Sequence[float], tile: Shape, num_outputs: int) -> int:
    """The axis that tiles are computed along: x, unless logits along another one take far less memory.

    It depends on nothing but the sizes, and so do the last digits of logits.
    """
    sizes = [blend_bytes(grid, tile, num_outputs, along=axis) for axis in range(3)]
    least = sizes.index(min(sizes))
    return least if sizes[0] - sizes[least] > WORTH_BYTES else 0


def blend_bytes(grid: Sequence[float], tile: Shape, num_outputs: int, *, along: int) -> float:
    """Memory of the logits and weights that tiles along an axis add to."""
    planes = [1 + tile[along] if axis == along else max(grid[axis], tile[axis]) for axis in range(3)]
    return 4 * (num_outputs + 1) * math.prod(planes)


def num_calls(grid: Shape, tile: Shape, overlap: float, mirror_axes: tuple[int, ...] = ()) -> int:
    """How often `segment_volume` calls the network for a grid of a size."""
    x, y, z = (max(size, length) for size, length in zip(grid, tile, strict=True))
    return len(tile_starts((x, y, z), tile, overlap)) << len(mirror_axes)


def _counted(predict: Predict, progress: Progress, total: int) -> Predict:
    done = 0

    def counted(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal done
        logits = predict(tiles)
        done += 1
        progress(done, total)
        return logits

    return counted
