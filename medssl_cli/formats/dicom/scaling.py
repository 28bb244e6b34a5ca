"""From stored words to values: bits, signs and scales, exactly, in integers wherever integers can hold the result."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError

_INTEGERS: Final = (np.uint8, np.int16, np.uint16, np.int32, np.uint32)

Voxels = NDArray[Any]
Scale = tuple[float, float]
Span = tuple[int, int]


def span_of(values: Voxels) -> Span:
    """Smallest and largest of an array of integers."""
    return int(values.min()), int(values.max())


def mask_bits(stored: Voxels, *, bits_stored: int, is_signed: bool) -> tuple[Voxels, bool]:
    """Keep the bits that are stored; the rest of each word may hold overlays or anything else (PS3.5 8.1.1).

    Args:
        stored: Integers of BitsAllocated bits, any shape.
        bits_stored: Meaningful low bits.
        is_signed: Two's complement within those bits.

    Returns:
        Values of the same width, signed or not, a view of the words where none has to change; and whether bits above
        were set other than by sign extension.
    """
    width = stored.dtype.itemsize * 8
    kind = "i" if is_signed else "u"
    own = stored.view(f"{kind}{width // 8}")
    lowest = -(1 << (bits_stored - 1)) if is_signed else 0
    if bits_stored == width or (lowest <= own.min() and own.max() < lowest + (1 << bits_stored)):
        return own, False
    shift = width - bits_stored
    words = stored.view(f"u{width // 8}")
    values = (words << shift).view(own.dtype) >> shift
    return values, bool(((values.view(words.dtype) != words) & (words >> bits_stored != 0)).any())


def invert(values: Voxels, *, bits_stored: int) -> Voxels:
    """Dark for bright: the range that the bits can hold runs the other way, whatever the picture uses.

    Args:
        values: Masked stored values.
        bits_stored: b; x becomes 2^b - 1 - x, or -1 - x where values are signed.
    """
    if values.dtype.kind == "i":
        return ~values
    return values ^ values.dtype.type((1 << bits_stored) - 1)


def darkened(values: Voxels, is_padding: NDArray[np.bool_]) -> tuple[Voxels, bool]:
    """Padding of a projection, where no X-ray was, as dark as the darkest of what it shows.

    Args:
        values: Scaled and with bright for bright, any shape; changed in place.
        is_padding: Which of the values are padding, of the same shape.

    Returns:
        The values, and whether any had to change: padding that is the darkest already stays as it is.
    """
    shown = values[~is_padding]
    if not shown.size:
        return values, False
    is_bright = is_padding & (values > shown.min())
    values[is_bright] = shown.min()
    return values, bool(is_bright.any())


def rescale(stack: Voxels, scales: Sequence[Scale], spans: Sequence[Span] | None = None) -> Voxels:
    """Apply each slice's own slope and intercept, exactly where integers can hold the result.

    Args:
        stack: `[S, Y, X]` stored integers; overwritten where the result has the same width.
        scales: (slope, intercept) of each slice.
        spans: Spans of each slice, if known.

    Returns:
        `[S, Y, X]`, smallest of the integer dtypes that holds all values exactly, else float32.

    Raises:
        InputError: `E_NONFINITE_VOXELS` if float32 cannot hold a value.
    """
    spans = [span_of(values) for values in stack] if spans is None else spans
    ends = np.array(
        [
            (low * slope + intercept, high * slope + intercept)
            for (low, high), (slope, intercept) in zip(spans, scales, strict=True)
        ]
    )
    with np.errstate(over="ignore"):
        if not np.isfinite(ends.astype(np.float32)).all():
            raise InputError("E_NONFINITE_VOXELS", "scaled values exceed the range of 32-bit floats")
    are_whole = all(slope.is_integer() and intercept.is_integer() for slope, intercept in scales)
    dtype = _integer_dtype(ends) if are_whole or _is_whole(stack, scales) else None
    if dtype is None:
        result = np.empty(stack.shape, dtype=np.float32)
        for target, values, (slope, intercept) in zip(result, stack, scales, strict=True):
            target[...] = values.astype(np.float64) * slope + intercept
        return result
    return _rescale_exactly(stack, scales, dtype) if are_whole else _rescale_rounded(stack, scales, dtype)


def _integer_dtype(ends: NDArray[np.float64]) -> np.dtype[Any] | None:
    low, high = ends.min(), ends.max()
    return next(
        (np.dtype(kind) for kind in _INTEGERS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max), None
    )


def _is_whole(stack: Voxels, scales: Sequence[Scale]) -> bool:
    """Whether every scaled value is a whole number although some slope or intercept is not."""
    for values, (slope, intercept) in zip(stack, scales, strict=True):
        scaled = values.astype(np.float64) * slope + intercept
        if not (scaled == np.rint(scaled)).all():
            return False
    return True


def _rescale_exactly(stack: Voxels, scales: Sequence[Scale], dtype: np.dtype[Any]) -> Voxels:
    """Whole slopes and intercepts. Arithmetic modulo a power of two is exact wherever the true result fits."""
    width = max(stack.dtype.itemsize, dtype.itemsize)
    words = stack if stack.dtype.itemsize == width else stack.astype(f"{stack.dtype.kind}{width}")
    words = words.view(f"u{width}")
    for values, (slope, intercept) in zip(words, scales, strict=True):
        if slope != 1:
            values *= words.dtype.type(int(slope) % (1 << 8 * width))
        if intercept != 0:
            values += words.dtype.type(int(intercept) % (1 << 8 * width))
    return words.view(f"{dtype.kind}{width}").astype(dtype, copy=False)


def _rescale_rounded(stack: Voxels, scales: Sequence[Scale], dtype: np.dtype[Any]) -> Voxels:
    result = np.empty(stack.shape, dtype=dtype)
    for target, values, (slope, intercept) in zip(result, stack, scales, strict=True):
        target[...] = np.rint(values.astype(np.float64) * slope + intercept)
    return result
