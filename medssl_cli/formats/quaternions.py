"""Rotations as NIfTI stores them: three components (b, c, d) of a unit quaternion whose first, a >= 0, follows."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

HALF_TURN: Final = 1e-7  # of a*a, below which nifti1_io.c takes a rotation for a half turn
ROUNDING: Final = 1.2e-7  # of a*a, where the other components have 24 significant bits
MAX_EXCESS: Final = 1e-5

Triple = tuple[float, float, float]


def rotation_of(quaternion: Triple, a: float | None = None) -> NDArray[np.float64] | None:
    """The rotation matrix `[3, 3]` of (a, b, c, d).

    As `nifti_quatern_to_mat44` of nifti1_io.c: what is a half turn within rounding is one, with a = 0.

    Args:
        quaternion: (b, c, d).
        a: The first component, if not the one that follows from the others; these are then scaled to match.

    Returns:
        None where no unit quaternion has these components.
    """
    square = _square(quaternion)
    if not square >= -MAX_EXCESS:
        return None
    b, c, d = quaternion
    if a is not None or square < HALF_TURN:
        a = a or 0.0
        b, c, d = np.array(quaternion) * np.sqrt(1 - a * a) / np.linalg.norm(quaternion)
    else:
        a = float(np.sqrt(square))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def within_rounding(quaternion: Triple) -> list[float]:
    """Other first components that a quaternion near a half turn may have had before the other three were rounded.

    Components of 32 bits leave 1 - b*b - c*c - d*d uncertain by `ROUNDING`. That is nothing for most rotations; within
    a few thousandths of a half turn it is all that is left of a*a.

    Args:
        quaternion: (b, c, d).
    """
    square = _square(quaternion)
    if not square <= 100 * ROUNDING:
        return []
    low, high = (float(np.sqrt(max(square + error, 0.0))) for error in (-ROUNDING, ROUNDING))
    return [float(a) for a in np.linspace(low, high, 5)]


def quaternion_of(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(b, c, d) of the unit quaternion with a >= 0: eigenvector of Bar-Itzhack's symmetric matrix (2000)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    matrix = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    vectors: NDArray[np.float64] = np.linalg.eigh(matrix)[1]
    b, c, d, a = vectors[:, -1]
    return np.array([b, c, d]) * (1.0 if a >= 0 else -1.0)


def _square(quaternion: Triple) -> float:
    """a * a of the unit quaternion (a, b, c, d)."""
    b, c, d = quaternion
    return 1.0 - (b * b + c * c + d * d)
