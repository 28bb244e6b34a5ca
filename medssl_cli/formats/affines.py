"""From what NIfTI, NRRD and MetaImage files say about place to one orthogonal RAS affine, or a refusal.

Shape letters: X Y Z voxels of the array.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError, UsageError
from medssl_cli.formats.policy import Policy
from medssl_cli.imaging.geometry import (
    Affine,
    Shape,
    corner_displacement_mm,
    corner_indices,
    displacement_limit_mm,
    is_invertible,
    orthonormalised,
)

MAX_SIDE: Final = 32767
MAX_MM: Final = 1e9
ROUNDING_MM: Final = 0.01
MAX_GROWTH: Final = 8
_SIDES: Final = {
    "R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1),
}  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """Where the voxels of a file will lie, known before they are read.

    Args:
        affine: Affine of the voxels that the reader returns, with orthogonal axes.
        shape: Their number (X, Y, Z); another than the file's only if `stored` is given.
        warnings: `W_` codes.
        repairs: As in `LoadedImage`.
        stored: The sheared affine of the voxels in the file, if they must be resampled.
    """

    affine: Affine
    shape: Shape
    warnings: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    stored: Affine | None = None

    def apply(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Voxels `[X, Y, Z]` of the file on the grid that is returned; outside of them lies their minimum."""
        if self.stored is None:
            return voxels
        from medssl_cli.imaging.resample import resample

        sampled = resample(voxels[None], self.stored, self.affine, self.shape)[0]
        sampled[_is_outside(np.linalg.inv(self.stored) @ self.affine, self.shape, voxels.shape)] = voxels.min()
        return sampled


def placed(affine: Affine, shape: Shape, policy: Policy, *, is_label: bool = False) -> Placement:
    """Judge an affine: take it, straighten it, plan to resample, or refuse.

    Args:
        affine: As the file states it, in RAS.
        shape: Shape of the file's voxels.
        policy: `shear`.
        is_label: Label maps are never resampled.

    Raises:
        InputError: `E_AFFINE_INVALID`, `E_AFFINE_SHEAR`, `E_TOO_BIG`.
    """
    checked(affine)
    straight = orthonormalised(affine)
    shear_mm = corner_displacement_mm(affine, straight, shape)
    if shear_mm > displacement_limit_mm(affine):
        # Where slices lean, turning wide slices by half of the lean moves their corners further than the lean does.
        upright = _upright(affine)
        upright_mm = corner_displacement_mm(affine, upright, shape)
        straight, shear_mm = min((straight, shear_mm), (upright, upright_mm), key=lambda pair: pair[1])
    if shear_mm <= ROUNDING_MM:
        return Placement(affine, shape)
    if shear_mm <= displacement_limit_mm(affine):
        return Placement(straight, shape, warnings=("W_AFFINE_ORTHONORMALISED",))
    if policy.shear != "resample" or is_label:
        hint = "" if is_label else "resample the image upstream, or pass --shear=resample"
        raise InputError("E_AFFINE_SHEAR", f"removing the shear would move a voxel by {shear_mm:.3g} mm", hint=hint)
    upright, size = _upright_grid(affine, shape, policy.max_volume_bytes)
    return Placement(upright, size, repairs=("shear=resample",), stored=affine)


def checked(affine: Affine) -> Affine:
    """The same affine, if voxels can have places in it.

    Raises:
        InputError: `E_AFFINE_INVALID`.
    """
    if not np.abs(affine).max() <= MAX_MM or not is_invertible(affine):
        raise InputError("E_AFFINE_INVALID", "the affine is singular or not finite")
    return affine


def assumed_affine(policy: Policy, spacing_mm: tuple[float, ...]) -> Affine:
    """The affine of a file that does not say how it lies: the policy's sides, voxel 0 at the origin.

    Args:
        policy: `assume_orientation`, as three letters: towards which side each axis runs.
        spacing_mm: Spacing in mm of the three axes.

    Raises:
        InputError: `E_NO_ORIENTATION` without the policy, `E_SPACING_INVALID`.
        UsageError: `E_USAGE`, the three letters do not name three axes.
    """
    letters = policy.assume_orientation
    if letters is None:
        raise InputError(
            "E_NO_ORIENTATION",
            "the file does not say how its axes lie in the patient",
            hint="if you know it, pass e.g. --assume-orientation=RAS",
        )
    axes = np.array([_SIDES.get(letter, (0, 0, 0)) for letter in letters], dtype=np.float64)
    if axes.shape != (3, 3) or abs(np.linalg.det(axes)) != 1:
        raise UsageError("E_USAGE", "an orientation is three letters, one of R or L, A or P, S or I, e.g. RAS")
    if len(spacing_mm) != 3 or not all(0 < length <= MAX_MM for length in spacing_mm):
        raise InputError("E_SPACING_INVALID", "a voxel spacing is zero, negative or not finite")
    affine = np.eye(4)
    affine[:3, :3] = axes.T * np.array(spacing_mm)
    return checked(affine)


def assumed_repair(policy: Policy) -> str:
    """How `assumed_affine` is named among the repairs of an image."""
    return f"assume-orientation={policy.assume_orientation}"


def _upright(affine: Affine) -> Affine:
    """The affine with orthogonal axes that keeps voxel 0, the first axis and the planes of the first two."""
    rotation, upper = np.linalg.qr(affine[:3, :3])
    upright = affine.copy()
    upright[:3, :3] = rotation * np.diag(upper)
    return upright


def _upright_grid(affine: Affine, shape: Shape, max_bytes: int) -> tuple[Affine, Shape]:
    """The orthogonal grid that keeps the first axis and the planes of the first two, and holds every voxel."""
    upright = _upright(affine)
    corners = np.linalg.inv(upright) @ affine @ corner_indices(shape)
    low, high = (corners[:3].min(axis=1) + 1e-6), (corners[:3].max(axis=1) - 1e-6)
    first, last = np.floor(low), np.ceil(high)
    size = np.maximum(last - first + 1, 1)
    if (size > MAX_SIDE).any() or np.prod(size) > MAX_GROWTH * np.prod(np.array(shape, dtype=np.float64)):
        raise InputError("E_AFFINE_SHEAR", f"the shear is too strong: an upright grid needs {np.prod(size):.3g} voxels")
    if np.prod(size) * np.dtype(np.float64).itemsize > max_bytes:
        raise InputError("E_TOO_BIG", f"the upright grid needs {np.prod(size):.3g} voxels")
    upright[:3, 3] = (upright @ np.array([*first, 1.0]))[:3]
    return upright, (int(size[0]), int(size[1]), int(size[2]))


def _is_outside(to_source: Affine, shape: Shape, source_shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which voxels `[X, Y, Z]` of a grid lie more than half a voxel outside of another one."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    outside = np.zeros(shape, dtype=np.bool_)
    for axis in range(3):
        a, b, c, start = (np.float32(number) for number in to_source[axis])
        index = a * i.astype(np.float32) + b * j.astype(np.float32) + c * k.astype(np.float32) + start
        outside |= (index < -0.501) | (index > source_shape[axis] - 0.499)
    return outside
