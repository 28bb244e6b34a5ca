"""Small NIfTI files."""

from pathlib import Path

import nibabel
import numpy as np

from tests.cases._dicom import noise

SHAPE = (20, 18, 8)


def write(path: Path, array, spacing=(1.5, 1.5, 3.0), affine=None) -> np.ndarray:
    """Write an array with the affine, or with axes along the patient's; returns the array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return array


def scan(path: Path, seed: int, shape=SHAPE, **options) -> np.ndarray:
    """An image of noise."""
    return write(path, noise(seed, shape, 900, np.int16), **options)


def blocks(sizes: dict, shape=SHAPE) -> np.ndarray:
    """A label map: value -> (x0, x1, y0, y1, z0, z1)."""
    out = np.zeros(shape, np.uint8)
    for value, (x0, x1, y0, y1, z0, z1) in sizes.items():
        out[x0:x1, y0:y1, z0:z1] = value
    return out
