"""Numbers per axis of space: strides, sizes of kernels, and what the sizes of crops must be multiples of."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

Axes = tuple[int, ...]
"""One whole number along each of x, y and z (x and y in 2D)."""
PerAxis = int | Sequence[int]
"""The same along all axes, or one number along each."""

AXIS_NAMES: Final = "xyz"
MAX_KERNEL: Final = 7


def per_axis(value: PerAxis, spatial_dims: int) -> Axes:
    """One number along each axis, from one number that counts for all axes or from a list of them.

    Raises:
        ValueError: It is neither one whole number of at least 1 nor `spatial_dims` of them.
    """
    values: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (value,) * spatial_dims
    if len(values) != spatial_dims or not all(isinstance(each, int) for each in values):
        raise ValueError(f"{value!r} is neither one whole number nor one for each of {spatial_dims} axes")
    if min(values) < 1:
        raise ValueError(f"{value!r} must be at least 1 along every axis")
    return values


def per_level(values: int | Sequence[PerAxis], num_levels: int, spatial_dims: int, what: str) -> tuple[Axes, ...]:
    """Numbers along each axis for each level of a network.

    Args:
        values: One number for all levels and axes, or for each level what `per_axis` takes.
        num_levels: How many levels the network has.
        spatial_dims: 2 or 3.
        what: Name of the values in a recipe.

    Raises:
        ValueError: There is not one value per level, or one is wrong.
    """
    listed = (values,) * num_levels if isinstance(values, int) else tuple(values)
    if len(listed) != num_levels:
        raise ValueError(f"{num_levels} channels and {len(listed)} {what}: need one of each per level")
    try:
        return tuple(per_axis(value, spatial_dims) for value in listed)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def kernels_per_level(values: int | Sequence[PerAxis], num_levels: int, spatial_dims: int) -> tuple[Axes, ...]:
    """Sizes of kernels that have a voxel in their middle; see `per_level`.

    Raises:
        ValueError: A size is even or larger than `MAX_KERNEL`, or there is not one value per level.
    """
    kernels = per_level(values, num_levels, spatial_dims, "kernel_sizes")
    if any(size % 2 == 0 or size > MAX_KERNEL for kernel in kernels for size in kernel):
        raise ValueError(f"kernel_sizes {[list(kernel) for kernel in kernels]} must be odd, and at most {MAX_KERNEL}")
    return kernels


def shortest(values: Sequence[int]) -> int | list[int]:
    """One number if it is the same along all axes, as recipes have it."""
    return values[0] if len(set(values)) == 1 else list(values)


def cumulative(strides: Sequence[Axes]) -> tuple[Axes, ...]:
    """Strides relative to the image from strides relative to the level before."""
    return tuple(accumulate(strides, lambda total, step: tuple(a * b for a, b in zip(total, step, strict=True))))


def misfit(size: Sequence[int], multiple: Axes) -> str | None:
    """Along which axes a size is no multiple of what it should be, in words; None if it is one along all.

    Args:
        size: Along x, y, z; axes beyond those of `multiple` do not count.
        multiple: What the size should be a multiple of.
    """
    wrong = [
        f"{extent} along {name} is no multiple of {step}"
        for name, extent, step in zip(AXIS_NAMES, size, multiple, strict=False)
        if extent % step
    ]
    return " and ".join(wrong) or None
