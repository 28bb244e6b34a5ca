"""From a volume and a network to a label map on the volume's own grid: the one composition that everybody uses.

Validation during training, evaluation, the parity check of export and inference all call `segment_volume`; they differ
in the network that they pass and in nothing else.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.preprocessing import preprocess, restore_labels
from medssl_cli.imaging.tiling import Predict, sliding_window, tile_starts
from medssl_cli.imaging.volume import Volume
from medssl_cli.recipe import Preprocessing

Progress = Callable[[int, int], None]
"""Called with (calls of the network done, calls in all)."""


def segment_volume(
    predict: Predict,
    volume: Volume,
    *,
    preprocessing: Preprocessing,
    tile: tuple[int, int, int],
    overlap: float,
    mirror_axes: tuple[int, ...] = (),
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Segment a volume of any orientation, spacing and size.

    Args:
        predict: Network on tiles, `[B, C, *tile]` to logits `[B, K, *tile]`.
        volume: `[C, X, Y, Z]` as a reader or the cache returns it.
        preprocessing: The recipe's.
        tile: Sliding window in voxels of the preprocessed grid.
        overlap: Fraction shared by neighbouring tiles.
        mirror_axes: Average over flips along these axes.
        progress: Called after every call of the network.

    Returns:
        `[X, Y, Z]` class of every voxel, on the grid of `volume`.
    """
    prepared = preprocess(volume, preprocessing)
    values = prepared.voxels.astype(np.float32, copy=False)
    if progress is not None:
        predict = _counted(predict, progress, num_calls(prepared, tile, overlap, mirror_axes))
    logits = sliding_window(predict, values, tile=tile, overlap=overlap, mirror_axes=mirror_axes)
    return restore_labels(logits, prepared.affine, volume.affine, volume.shape)


def num_calls(prepared: Volume, tile: tuple[int, int, int], overlap: float, mirror_axes: tuple[int, ...] = ()) -> int:
    """How often `segment_volume` calls the network for a preprocessed volume."""
    x, y, z = (max(size, length) for size, length in zip(prepared.shape, tile, strict=True))
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
