"""Grids for tests of readers, and files that SimpleITK writes of them: it is the reference for NRRD and MetaImage."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

VOXELS = (np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3) * 37) % 2000 - 1000
SPACINGS = ((0.7, 0.9, 2.5), (1.0, 1.5, 0.4), (3.0, 1.1, 1.2))
RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def signed_permutations() -> Iterator[np.ndarray]:
    """All 48 ways in which three array axes can run along the sides of a patient, as direction columns."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            directions = np.zeros((3, 3))
            for axis in range(3):
                directions[order[axis], axis] = signs[axis]
            yield directions


def oblique(seed: int) -> np.ndarray:
    """A random rotation as direction columns."""
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return matrix * np.sign(np.linalg.det(matrix))


def write_with_simpleitk(
    path: Path,
    voxels: np.ndarray = VOXELS,
    *,
    directions: np.ndarray | None = None,
    spacing: tuple[float, float, float] = SPACINGS[0],
    origin: tuple[float, float, float] = (-12.25, 34.5, 100.125),
    compressed: bool = False,
) -> np.ndarray:
    """Write `[X, Y, Z]` and return its RAS affine, computed here and not by the reader under test."""
    directions = np.eye(3) if directions is None else directions
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(directions.ravel().tolist())
    sitk.WriteImage(image, str(path), compressed)
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = directions * np.array(spacing), origin
    return RAS_OF_LPS @ lps
