"""The geometry gate: one affine for a stack of slices, or a named refusal.

Every slice's own raw header says where its corners are; the fitted affine must put them there to within the limit of
`imaging.geometry`. Formulas are in LPS, as DICOM states them (PS3.3 C.7.6.2.1.1); LPS becomes RAS in `fit` only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.headers import Header
from medssl_cli.formats.dicom.repair import MAX_TILT_DEGREES, NO_REPAIR, Repair, slots_of, upright
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.imaging.geometry import Affine, displacement_limit_mm

MAX_SLICES: Final = 20_000
COSINE_TOLERANCE: Final = 1e-3
JITTER_MM: Final = 0.01
REPAIRABLE: Final = frozenset({"CT", "MR", "PT"})

_RETRIEVE: Final = "retrieve the series again"
Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fit:
    """A stack that passed: slices in ascending order along the normal, and where they are.

    Args:
        headers: S slices.
        affine: `[4, 4]` voxel-centre index to RAS+ mm, of the finished grid.
        mcd_mm: Largest distance between a slice corner's place by its own header and by the affine of the slices as
            they are stored.
        repair: What a policy allowed to be changed on the way to that grid.
        warnings: `W_` codes.
    """

    headers: tuple[Header, ...]
    affine: Affine
    mcd_mm: float
    repair: Repair = NO_REPAIR
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Stack:
    """Raw geometry of S slices in LPS: positions `[S, 3]`, cosines `[S, 6]`, spacings `[S, 2]` (row, column)."""

    positions: Matrix
    cosines: Matrix
    spacings: Matrix

    @property
    def normal(self) -> Matrix:
        row, column = _directions(self)
        normal = np.cross(row, column)
        return normal / np.linalg.norm(normal)


def fit(headers: Sequence[Header], policy: Policy = STRICT) -> Fit:
    """Fit one affine to slices of one matrix size and prove it against every slice's own header.

    Args:
        headers: Slices in any order.
        policy: How few slices are enough; whether missing slices and a leaning stack may be repaired.

    Raises:
        InputError: `E_GEOM_MISSING`, `E_SPACING_INVALID`, `E_IOP_NOT_ORTHONORMAL`, `E_TOO_FEW_SLICES`, `E_TOO_BIG`,
            `E_DUP_POSITION`, `E_PIXEL_SPACING_VARIES`, `E_ORIENTATION_VARIES`, `E_MISSING_SLICES`,
            `E_SPACING_NOT_UNIFORM`, `E_GANTRY_TILT` or `E_GEOMETRY_INEXACT`.
    """
    check_slices(headers)
    if len(headers) < policy.min_slices:
        raise InputError("E_TOO_FEW_SLICES", f"{len(headers)} slices; a volume needs {policy.min_slices}")
    if len(headers) == 1:
        return _single(headers[0])
    stack = _stack(headers)
    heights = stack.positions @ stack.normal
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    # Re-sent slices may differ in the last printed digit; 1 % of the mean gap is far below any real spacing.
    if gaps.min() <= 0.01 * gaps.mean():
        raise InputError(
            "E_DUP_POSITION",
            f"{len(headers)} slices at {1 + int((gaps > 0.01 * gaps.mean()).sum())} positions",
            hint="export each time point, echo or phase as its own series",
        )
    if len(headers) > MAX_SLICES:
        raise InputError("E_TOO_BIG", f"{len(headers)} slices; {MAX_SLICES} are the limit")
    ordered = tuple(headers[index] for index in order)
    stack = _stack(ordered)
    affine = _affine_lps(stack)
    limit = displacement_limit_mm(affine)
    mcd = mcd_mm(ordered, LPS_TO_RAS @ affine)
    slots: tuple[int, ...] = ()
    if not mcd <= limit:
        refusal = _misfit(stack, ordered[0], gaps, mcd, limit)
        if refusal.code == "E_MISSING_SLICES" and policy.gaps == "interpolate" and ordered[0].Modality in REPAIRABLE:
            slots = slots_of(gaps)
        if not slots:
            raise refusal
        affine[:3, 2] *= (len(ordered) - 1) / slots[-1]
        limit = displacement_limit_mm(affine)
        mcd = mcd_mm(ordered, LPS_TO_RAS @ affine, slots)
        if not mcd <= limit:
            raise refusal
    affine, step = _without_tilt(stack, affine, slots[-1] + 1 if slots else len(ordered), limit, policy)
    return Fit(ordered, LPS_TO_RAS @ affine, mcd, Repair(slots, step))


def mcd_mm(headers: Sequence[Header], affine: Affine, slots: Sequence[int] = ()) -> float:
    """Maximum corner displacement between slices' own raw headers and an affine, in mm.

    Cosines are deliberately not normalised: that would hide a wrong length.

    Args:
        headers: S slices.
        affine: `[4, 4]` voxel-centre index to RAS+ mm.
        slots: Slice index k of each; their places in the sequence if empty.
    """
    stack = _stack(headers)
    columns, rows = headers[0].Columns - 1, headers[0].Rows - 1
    slices = np.array(slots or range(len(headers)), dtype=np.float64)
    to_lps = LPS_TO_RAS @ affine
    worst = 0.0
    for i, j in ((0, 0), (columns, 0), (0, rows), (columns, rows)):
        own = (
            stack.positions
            + stack.cosines[:, :3] * stack.spacings[:, 1:] * i
            + stack.cosines[:, 3:] * stack.spacings[:, :1] * j
        )
        index = np.stack([np.full_like(slices, i), np.full_like(slices, j), slices, np.ones_like(slices)])
        worst = max(worst, float(np.linalg.norm(own - (to_lps @ index)[:3].T, axis=1).max()))
    return worst


def check_slices(headers: Sequence[Header]) -> None:
    """Refuse slices that cannot be placed at all, each by its own header.

    Raises:
        InputError: `E_GEOM_MISSING`, `E_SPACING_INVALID` or `E_IOP_NOT_ORTHONORMAL`.
    """
    missing = sum(
        None in (header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing) for header in headers
    )
    if missing:
        raise InputError("E_GEOM_MISSING", f"{missing} of {len(headers)} slices lack position, orientation or spacing")
    stack = _stack(headers)
    if not (stack.spacings > 1e-6).all():
        raise InputError("E_SPACING_INVALID", "a pixel spacing is zero or negative")
    row, column = stack.cosines[:, :3], stack.cosines[:, 3:]
    lengths = np.abs(np.linalg.norm(np.stack([row, column]), axis=2) - 1).max()
    worst = max(float(lengths), float(np.abs((row * column).sum(axis=1)).max()))
    if worst > COSINE_TOLERANCE:
        raise InputError("E_IOP_NOT_ORTHONORMAL", f"direction cosines are off by {worst:.4f}", hint=_RETRIEVE)


def _stack(headers: Sequence[Header]) -> _Stack:
    return _Stack(
        np.array([header.ImagePositionPatient for header in headers], dtype=np.float64),
        np.array([header.ImageOrientationPatient for header in headers], dtype=np.float64),
        np.array([header.PixelSpacing for header in headers], dtype=np.float64),
    )


def _directions(stack: _Stack) -> tuple[Matrix, Matrix]:
    """Unit row and column directions; the median lets one odd slice not turn the whole stack."""
    median = np.median(stack.cosines, axis=0)
    return median[:3] / np.linalg.norm(median[:3]), median[3:] / np.linalg.norm(median[3:])


def _affine_lps(stack: _Stack) -> Affine:
    """(column, row, slice, 1) to LPS millimetres: PS3.3 equation C.7.6.2.1-1, with the step between slices for k.

    PixelSpacing is [between rows, between columns]: the column index i advances by the second number.
    """
    row, column = _directions(stack)
    spacing = np.median(stack.spacings, axis=0)
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2] = (stack.positions[-1] - stack.positions[0]) / (len(stack.positions) - 1)
    affine[:3, 3] = stack.positions[0]
    return affine


def _misfit(stack: _Stack, header: Header, gaps: Matrix, mcd: float, limit: float) -> InputError:
    """The most telling name for slices that do not fit one affine."""
    extent = np.array([header.Rows - 1, header.Columns - 1])
    spacing = np.median(stack.spacings, axis=0)
    if (np.abs(stack.spacings - spacing) * extent).max() > limit:
        low, high = stack.spacings.min(), stack.spacings.max()
        return InputError(
            "E_PIXEL_SPACING_VARIES", f"pixel spacing of {low:g} to {high:g} mm in one stack", hint=_RETRIEVE
        )
    turns = np.abs(stack.cosines - np.median(stack.cosines, axis=0)).max() * (extent * spacing).max()
    if turns > limit:
        return InputError("E_ORIENTATION_VARIES", f"slices are turned against each other by up to {turns:.2f} mm")
    message = f"slices are not evenly spaced: gaps of {gaps.min():g} to {gaps.max():g} mm"
    if gaps.max() - gaps.min() > limit:
        multiples = gaps / gaps.min()
        is_multiple = np.abs(multiples - np.rint(multiples)) < 0.1
        if is_multiple.all() and multiples.max() > 1.5:
            return InputError(
                "E_MISSING_SLICES", message, hint=f"a slice is missing; {_RETRIEVE}, or pass --gaps=interpolate"
            )
        return InputError("E_SPACING_NOT_UNIFORM", message, hint="export the series with equal slice spacing")
    return InputError(
        "E_GEOMETRY_INEXACT", f"slices deviate from one affine by {mcd:.3f} mm, {limit:.3f} mm are allowed"
    )


def _without_tilt(
    stack: _Stack, affine: Affine, slices: int, limit: float, policy: Policy
) -> tuple[Affine, tuple[float, float]]:
    """The affine and (0, 0) of an upright stack; of a leaning one, if allowed, the upright grid and the lean."""
    path = stack.positions[-1] - stack.positions[0]
    along = float(path @ stack.normal)
    drift = float(np.linalg.norm(path - along * stack.normal))
    if drift <= limit:
        return affine, (0.0, 0.0)
    degrees = math.degrees(math.atan2(drift, along))
    if policy.tilt == "resample" and degrees <= MAX_TILT_DEGREES:
        return upright(affine, slices)
    raise InputError(
        "E_GANTRY_TILT",
        f"the stack leans by {degrees:.1f} degrees ({drift:.2f} mm)",
        hint="export the series corrected for gantry tilt, or pass --tilt=resample",
    )


def _single(header: Header) -> Fit:
    """A lone slice is as thick as it says; without a thickness it is no volume."""
    thickness = header.acquisition.slice_thickness_mm
    if not thickness or thickness <= 0:
        raise InputError("E_GEOM_MISSING", "a single slice without a thickness in element (0018,0050)")
    stack = _stack([header])
    row, column = _directions(stack)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * stack.spacings[0, 1], column * stack.spacings[0, 0]
    affine[:3, 2], affine[:3, 3] = stack.normal * thickness, stack.positions[0]
    return Fit((header,), LPS_TO_RAS @ affine, mcd_mm([header], LPS_TO_RAS @ affine))
