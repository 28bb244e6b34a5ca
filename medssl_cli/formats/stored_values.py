"""From stored numbers to voxels: finite, in a dtype that the cache keeps, whole numbers as integers."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.policy import Policy

MIN_SCALE: Final = 1e-30  # below, products with small numbers vanish in 32 bits
MAX_SCALE: Final = 1e6
_WHOLE_TYPES: Final = ("int16", "uint16", "int32", "uint32")


def native_and_finite(
    stored: NDArray[Any], policy: Policy, *, is_label: bool = False
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Voxels in the machine's byte order, without NaN and infinity, and the repairs that this took.

    Args:
        stored: Any shape, any byte order, integers or floats.
        policy: `nonfinite`.
        is_label: Label maps are never repaired.

    Raises:
        InputError: `E_NONFINITE_VOXELS`.
    """
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind != "f":
        return native, ()
    is_finite = np.isfinite(native)
    count = native.size - int(np.count_nonzero(is_finite))
    if count == 0:
        return native, ()
    if policy.nonfinite != "background" or is_label or count == native.size:
        hint = "" if is_label or count == native.size else "pass --nonfinite=background to give them the lowest value"
        raise InputError("E_NONFINITE_VOXELS", f"{count} of {native.size} voxels are NaN or infinite", hint=hint)
    return np.where(is_finite, native, native[is_finite].min()), ("nonfinite=background",)


def scaled(native: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """`native * slope + intercept`; whole numbers stay integers, in the stored type where they fit.

    Raises:
        InputError: `E_SCALE`.
    """
    if not MIN_SCALE <= abs(slope) <= MAX_SCALE or not np.isfinite(intercept):
        raise InputError("E_SCALE", f"intensity scale {slope:g}, intercept {intercept:g}")
    if slope == 1 and intercept == 0:
        return storable(native)
    with np.errstate(over="ignore"):
        values = native.astype(np.float64) * slope + intercept
    if not np.abs(values).max() <= np.finfo(np.float32).max:
        raise InputError("E_SCALE", f"intensity scale {slope:g} leaves the range of 32-bit numbers")
    names = (native.dtype.name, *_WHOLE_TYPES) if native.dtype.kind in "iu" else _WHOLE_TYPES
    whole = bool((values == np.rint(values)).all())
    for name in names if whole else ():
        if name not in ("int64", "uint64") and _fits(values, name):
            return values.astype(name)
    return values.astype(np.float32)


def storable(voxels: NDArray[Any]) -> NDArray[Any]:
    """64-bit integers become the smallest sufficient type; everything else stays.

    Raises:
        InputError: `E_DATATYPE`; `E_SCALE` for what 32-bit floats, in which all work is done, would make infinite.
    """
    if voxels.dtype == np.float64 and not np.abs(voxels).max() <= np.finfo(np.float32).max:
        raise InputError("E_SCALE", "the voxels leave the range of 32-bit numbers")
    if voxels.dtype.name not in ("int64", "uint64"):
        return voxels
    for name in _WHOLE_TYPES:
        if _fits(voxels, name):
            return voxels.astype(name)
    raise InputError("E_DATATYPE", "64-bit integers beyond the range of 32 bits")


def _fits(voxels: NDArray[Any], name: str) -> bool:
    limits = np.iinfo(name)
    return bool(limits.min <= voxels.min() and voxels.max() <= limits.max)
