"""Cut and augment many crops of many volumes at once, on the volumes' device.

Random draws return parameters on the generator's device; the functions that apply them are deterministic.

Shapes: B batch, C channels, X Y Z canvas, x y z crop, G base crops, R random crops, N crops of any kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Augmentation:
    """How to change N crops, each on its own.

    Args:
        flips: Which of the axes x, y, z to mirror, bool [N, 3].
        quarter_turns: Rotations by 90 degrees in the x-y plane, from x towards y, integers 0 to 3, [N].
        shifts: Added to all voxels, [N].
    """

    flips: Tensor
    quarter_turns: Tensor
    shifts: Tensor

    def __getitem__(self, rows: Tensor) -> "Augmentation":
        """The changes of some of the crops, by index."""
        return Augmentation(self.flips[rows], self.quarter_turns[rows], self.shifts[rows])


def base_crops(canvas: Tensor, size: Size) -> Tensor:
    """Cut a canvas into the crops of the regular grid that fills it.

    Args:
        canvas: [B, C, X, Y, Z], a multiple of `size` along each axis.
        size: Crop size (x, y, z) in voxels.

    Returns:
        [B, G, C, x, y, z]; the crop of grid cell (i, j, k) has the index (i * gy + j) * gz + k.
    """
    grid = _windows(canvas, size, steps=size)
    batch, channels = canvas.shape[:2]
    return grid.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(batch, -1, channels, *size)


def crops_at(canvas: Tensor, offsets: Tensor, size: Size) -> Tensor:
    """Cut crops whose first voxels lie at given places.

    Args:
        canvas: [B, C, X, Y, Z].
        offsets: Index of each crop's first voxel, [B, R, 3].
        size: Crop size (x, y, z) in voxels.

    Returns:
        [B, R, C, x, y, z].
    """
    x, y, z = offsets.to(canvas.device).unbind(dim=-1)
    batch = torch.arange(canvas.shape[0], device=canvas.device)[:, None].expand_as(x)
    return _windows(canvas, size, steps=(1, 1, 1)).permute(0, 2, 3, 4, 1, 5, 6, 7)[batch, x, y, z]


def draw_offsets(shape: Sequence[int], num_starts: Size, generator: torch.Generator) -> Tensor:
    """Draw first voxels uniformly from {0, ..., num_starts - 1} per axis, integers [*shape, 3]."""
    draws = [torch.randint(count, tuple(shape), generator=generator, device=generator.device) for count in num_starts]
    return torch.stack(draws, dim=-1)


def draw_augmentation(
    count: int,
    *,
    flip_prob: float,
    rot90_prob: float,
    shift_prob: float,
    shift: float,
    generator: torch.Generator,
) -> Augmentation:
    """Draw independent changes for `count` crops.

    Args:
        flip_prob: Probability of a mirror image, per axis.
        rot90_prob: Probability of a rotation; 90, 180 and 270 degrees are equally likely.
        shift_prob: Probability of an intensity shift.
        shift: Largest shift; it is uniform on [-shift, shift].
        generator: Source of randomness.
    """

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device)

    flips = chance(count, 3) < flip_prob
    turns = torch.randint(1, 4, (count,), generator=generator, device=generator.device)
    turns = turns * (chance(count) < rot90_prob)
    shifts = (2.0 * chance(count) - 1.0) * shift * (chance(count) < shift_prob)
    return Augmentation(flips, turns, shifts)


def augment_(crops: Tensor, augmentation: Augmentation) -> Tensor:
    """Mirror, then rotate in the x-y plane, then shift intensities, crop by crop and in place.

    Only crops that change are copied. Nothing waits for the device if the augmentation was drawn on the CPU.

    Args:
        crops: [N, C, x, y, z]; turned only where x and y are equal.
        augmentation: For N crops.

    Returns:
        The crops.
    """
    for axis in range(3):
        rows = _rows(augmentation.flips[:, axis], crops)
        crops[rows] = crops[rows].flip(2 + axis)
    if crops.shape[2] == crops.shape[3]:
        for turns in (1, 2, 3):
            rows = _rows(augmentation.quarter_turns == turns, crops)
            crops[rows] = crops[rows].rot90(turns, (2, 3))
    return crops.add_(augmentation.shifts.to(crops)[:, None, None, None, None])


def draw_dropout(shape: tuple[int, ...], prob: float, generator: torch.Generator) -> Tensor:
    """Factors of dropout: 0 with the given probability, else 1 / (1 - prob). A shape [N, 1] drops whole rows."""
    kept = torch.rand(shape, generator=generator, device=generator.device) >= prob
    return kept / (1.0 - prob)


def own_rows(volumes: int, counts: Sequence[int], shard_index: int, num_shards: int) -> Tensor:
    """Places of one process's crops among those of a step, where crops of each kind follow one another.

    Args:
        volumes: Of each process.
        counts: Crops of each kind per volume.
        shard_index: The process.
        num_shards: Processes.
    """
    own = torch.arange(volumes) + shard_index * volumes
    rows, first = [], 0
    for count in counts:
        rows.append(first + (own[:, None] * count + torch.arange(count)).flatten())
        first += volumes * num_shards * count
    return torch.cat(rows)


def _rows(is_chosen: Tensor, crops: Tensor) -> Tensor:
    return is_chosen.nonzero().squeeze(1).to(crops.device)


def _windows(canvas: Tensor, size: Size, *, steps: Size) -> Tensor:
    """All boxes of a canvas as a view, [B, C, starts along x, y, z, x, y, z]."""
    for axis in range(3):
        canvas = canvas.unfold(2 + axis, size[axis], steps[axis])
    return canvas
