"""What an answer about a scan takes in memory, from the sizes alone, part by part; nothing is allocated.

A scan is read, preprocessed, seen tile by tile, and its mask, where it gets one, is written: see `segment_volume`. Not
all parts exist at once, so the plan is the largest of these four.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from medssl_cli.imaging.geometry import Affine, Shape
from medssl_cli.imaging.restoring import BLOCK_VOXELS
from medssl_cli.imaging.segment import BYTES_PER_TILE, blend_bytes, expected_sizes, rolling_axis
from medssl_cli.preprocessing import Preprocessing

WRITING_COPIES: Final = 4
"""Copies of a mask while it is written: the file before it is packed, packed, unpacked again, and what differs."""
BYTES_PER_BLOCK: Final = 4 * 4 * BLOCK_VOXELS
"""Bytes of a class while probabilities of a block are made, in 32 bits."""
BLOCKS_BYTES: Final = 32 * 2**20
"""Bytes of the blocks that logits are interpolated in, and of the planes that images are resampled by."""


@dataclass(frozen=True)
class VolumeMemory:
    """Bytes of each part, and how much work there is.

    Args:
        grid: Size (X', Y', Z') of the grid, not rounded.
        tiles: Calls of the network, without mirroring.
        along: Axis that tiles are computed along.
        scan: Voxels as they are read.
        reading: More of them while they are read.
        input: What the network sees.
        preprocessing: More of it while it is made.
        logits: Logits of the slab that tiles add to.
        exchange: Tiles and logits of one call, on their way.
        answer: Label map or masks.
        writing: More of these while they are written.
        places: Where the tiles are.
        kept: The answer about a constant tile, where that is kept.
        probabilities: Probabilities of the planes that tiles add to, and of a block while they are made.
    """

    grid: tuple[float, float, float]
    tiles: float
    along: int
    scan: float
    reading: float
    input: float
    preprocessing: float
    logits: float
    exchange: float
    answer: float
    writing: float
    places: float
    kept: float
    probabilities: float = 0.0

    @property
    def total(self) -> float:
        """The most that there is at once; infinite for a spacing that no computer could hold."""
        seen = self.input + self.logits + self.exchange + self.answer + self.places + BLOCKS_BYTES + self.probabilities
        step = max(self.reading, self.input + self.preprocessing, seen, self.answer + self.writing)
        return self.scan + self.kept + step


def volume_memory(
    shape: Shape,
    affine: Affine,
    *,
    preprocessing: Preprocessing,
    tile: Shape,
    overlap: float,
    num_outputs: int,
    num_channels: int = 1,
    num_masks: int = 1,
    bytes_per_voxel: float = 4,
    is_mirrored: bool = False,
    is_kept: bool = False,
    has_probabilities: bool = False,
) -> VolumeMemory:
    """What reading a scan, preprocessing it, asking a network and writing the answer take.

    Args:
        shape: Size (X, Y, Z) of the image.
        affine: Its affine.
        preprocessing: The recipe's, whose geometry decides about the size of the grid.
        tile: A smaller grid is padded to it.
        overlap: Fraction shared by neighbouring tiles; it decides how many there are.
        num_outputs: Number of outputs of the network for each voxel; 0 of findings and boxes.
        num_channels: Number of channels of the image.
        num_masks: How many the answer has: 1 for a label map, else one for each region; 0 of findings and boxes.
        bytes_per_voxel: Bytes per voxel of the image as it is held.
        is_mirrored: Flipped tiles are averaged.
        is_kept: The answer about a constant tile is kept; see `ConstantTiles`.
        has_probabilities: Probabilities are written, too.
    """
    voxels, content = float(math.prod(shape)), expected_sizes(shape, affine, preprocessing)
    x, y, z = (max(1.0, size, length) for size, length in zip(content, tile, strict=True))
    grid = 4 * x * y * z
    num_tiles = 1.0
    for size, length in zip((x, y, z), tile, strict=True):
        num_tiles *= 1 + float(np.ceil((size - length) / max(1, int(length * (1 - overlap)))))
    along = rolling_axis((x, y, z), tile, num_outputs)
    has_statistics = any(rule.window_hu is None for rule in preprocessing.rules)
    is_resized = preprocessing.fit is not None or preprocessing.stretch is not None
    is_padded = any(size < length for size, length in zip(content, tile, strict=True))
    tile_bytes = 4 * math.prod(tile)
    share_of_planes = min(1.0, (1 + tile[along]) / (x, y, z)[along])
    return VolumeMemory(
        grid=(x, y, z),
        tiles=num_tiles,
        along=along,
        scan=voxels * num_channels * bytes_per_voxel,
        reading=voxels * (bytes_per_voxel + 2),
        input=grid * num_channels * (1 + is_padded),
        preprocessing=grid * (1 + is_resized + 2.5 * has_statistics)
        + (voxels * max(4.0, bytes_per_voxel) if preprocessing.spacing_mm is None else 0),
        logits=blend_bytes((x, y, z), tile, num_outputs, along=along) * (1 + 1 / (num_outputs + 1)) if num_masks else 0,
        exchange=tile_bytes * (2 * num_channels + num_outputs * (1 + 3 * is_mirrored)),
        answer=voxels * num_masks,
        writing=voxels * (WRITING_COPIES + num_masks - 1) if num_masks else 0,
        places=BYTES_PER_TILE * num_tiles,
        kept=tile_bytes * num_outputs * is_kept,
        probabilities=has_probabilities * num_outputs * (voxels * share_of_planes + BYTES_PER_BLOCK),
    )


def parts_of(memory: VolumeMemory) -> dict[str, Any]:
    """The parts by name, in bytes, for people and programs."""
    names = ("scan", "reading", "input", "preprocessing", "logits", "exchange", "answer", "writing", "kept")
    parts = {name: getattr(memory, name) for name in names}
    return {**parts, "probabilities": memory.probabilities} if memory.probabilities else parts
