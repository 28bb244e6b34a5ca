"""Repairs that a site may ask for: missing slices filled in, a leaning stack made upright. Never the default.

S slices stored, Z slices of the finished grid; X columns, Y rows.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Affine, Shape

MAX_FILLED_SHARE: Final = 0.5
MAX_TILT_DEGREES: Final = 45.0

_WHOLE_STEP: Final = 1e-9
_SAME_MULTIPLE: Final = 0.1

Voxels = NDArray[Any]


@dataclass(frozen=True)
class Repair:
    """What the stored slices need before they fill the grid of their affine.

    Args:
        slots: Index of each stored slice along the finished grid, ascending; empty where none is missing.
        step: Columns and rows by which each slice of the finished grid is displaced against the one before it.
    """

    slots: tuple[int, ...] = ()
    step: tuple[float, float] = (0.0, 0.0)
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = (("gaps=interpolate", bool(self.slots)), ("tilt=resample", any(self.step)))
        object.__setattr__(self, "names", tuple(name for name, is_needed in found if is_needed))

    def shape(self, stored: Shape) -> Shape:
        """Size (X, Y, Z) of the finished grid for S stored slices of X columns and Y rows."""
        columns, rows, count = stored
        slices = self.slots[-1] + 1 if self.slots else count
        (left, right), (up, down) = (_margins(step, slices) for step in self.step)
        return columns + left + right, rows + up + down, slices


NO_REPAIR: Final = Repair()


def slots_of(gaps: NDArray[np.float64]) -> tuple[int, ...]:
    """Slice indices on an evenly spaced grid with missing slices; empty where the gaps do not allow that.

    Args:
        gaps: Positive distances `[S - 1]` between neighbouring slices.

    Returns:
        S ascending indices from 0. Empty if a gap is not a multiple of the smallest one, or if more than
        `MAX_FILLED_SHARE` of the stored number would have to be invented.
    """
    multiples = gaps / gaps.min()
    if np.abs(multiples - np.rint(multiples)).max() >= _SAME_MULTIPLE:
        return ()
    if multiples.sum() > (len(gaps) + 1) * (1 + MAX_FILLED_SHARE):
        return ()
    return (0, *(int(slot) for slot in np.cumsum(np.rint(multiples))))


def upright(leaning: Affine, slices: int) -> tuple[Affine, tuple[float, float]]:
    """The grid with the same slices, pixels and slice planes whose third axis is the normal of the slices.

    It covers everything that the leaning stack covers.

    Args:
        leaning: Affine of a stack whose third axis is not perpendicular to the other two.
        slices: Z.

    Returns:
        Its affine, and the columns and rows by which each slice of the leaning stack is displaced.
    """
    columns, rows, lean = leaning[:3, 0], leaning[:3, 1], leaning[:3, 2]
    normal = np.cross(columns, rows)
    normal /= np.linalg.norm(normal)
    along = (lean @ normal) * normal
    step = np.linalg.lstsq(leaning[:3, :2], lean - along, rcond=None)[0]
    affine = leaning.copy()
    affine[:3, 2] = along
    for axis in (0, 1):
        affine[:3, 3] -= _margins(float(step[axis]), slices)[0] * leaning[:3, axis]
    return affine, (float(step[0]), float(step[1]))


def repaired(stack: Voxels, repair: Repair) -> Voxels:
    """Fill and straighten a stack linearly.

    Args:
        stack: `[S, Y, X]` scaled values.
        repair: What is needed.

    Returns:
        `[Z, Y', X']` float32; where the leaning stack had no voxel, the smallest value of the stack.
    """
    filled = _filled(stack, repair.slots) if repair.slots else stack.astype(np.float32)
    return _straightened(filled, repair.step) if any(repair.step) else filled


def _filled(stack: Voxels, slots: tuple[int, ...]) -> Voxels:
    result = np.empty((slots[-1] + 1, *stack.shape[1:]), dtype=np.float32)
    for number, slot in enumerate(slots):
        result[slot] = stack[number]
        before = slots[number - 1] if number else slot
        for missing in range(before + 1, slot):
            share = (missing - before) / (slot - before)
            result[missing] = (1 - share) * stack[number - 1].astype(np.float64) + share * stack[number]
    return result


def _straightened(stack: Voxels, step: tuple[float, float]) -> Voxels:
    slices, rows, columns = stack.shape
    (left, right), (up, down) = (_margins(one, slices) for one in step)
    result = np.empty((slices, up + rows + down, left + columns + right), dtype=np.float32)
    background = stack.min()
    for k in range(slices):
        moved = _shifted(stack[k].astype(np.float64), up + step[1] * k, result.shape[1], background)
        result[k] = _shifted(moved.T, left + step[0] * k, result.shape[2], background).T
    return result


def _margins(step: float, slices: int) -> tuple[int, int]:
    """Whole pixels to add before and after, so that a stack displaced by `step` per slice stays inside."""
    total = step * (slices - 1)
    return math.ceil(max(0.0, -total) - _WHOLE_STEP), math.ceil(max(0.0, total) - _WHOLE_STEP)


def _shifted(values: Voxels, shift: float, size: int, background: float) -> Voxels:
    """Rows moved by a fraction of a row with linear interpolation: result[y] = values[y - shift]."""
    whole = math.floor(shift + _WHOLE_STEP)
    fraction = shift - whole
    result = np.full((size, values.shape[1]), background, dtype=np.float64)
    if fraction <= _WHOLE_STEP:
        result[whole : whole + len(values)] = values
    else:
        result[whole + 1 : whole + len(values)] = (1 - fraction) * values[1:] + fraction * values[:-1]
    return result
