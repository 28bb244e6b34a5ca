"""What inference leaves behind: masks that are proven before they are named, volumes, and never a silent overwrite."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl_cli.errors import InputError
from medssl_cli.files import remove_temporaries, storage_errors, write_atomic
from medssl_cli.imaging.geometry import Affine

CUBIC_MM_PER_ML = 1000.0


def nifti_mask(
    labels: NDArray[np.uint8], affine: Affine, *, like_header: bytes | None, is_compressed: bool = True
) -> bytes:
    """A NIfTI file of a label map, read back in memory before it is returned.

    Args:
        labels: `[X, Y, Z]`.
        affine: To RAS+ millimetres.
        like_header: Header of the scan, whose geometry is copied bit for bit; None writes `affine` with code 1.
        is_compressed: `.nii.gz`, else `.nii`.

    Raises:
        GateError: `E_OUTPUT_CHECK`.
        InputError: `E_AFFINE_SHEAR`.
    """
    from medssl_cli.formats.gzip_strict import gzip_bytes
    from medssl_cli.formats.nifti import encode_nifti, prove_nifti

    plain = encode_nifti(labels, affine, like_header=like_header)
    data = gzip_bytes(plain) if is_compressed else plain
    prove_nifti(data, labels, affine, like_header=like_header)
    return data


def volumes_ml(labels: NDArray[np.uint8], affine: Affine, classes: Mapping[int, str]) -> dict[str, float]:
    """Volume of every structure in millilitres."""
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / CUBIC_MM_PER_ML
    counts = np.bincount(labels.ravel(), minlength=max(classes) + 1)
    return {classes[value]: round(int(counts[value]) * voxel_ml, 6) for value in sorted(classes)}


def publish(files: Mapping[Path, bytes], *, overwrite: bool) -> list[Path]:
    """Write files under their final names, each atomically; identical ones are left untouched.

    Returns:
        The files that were written.

    Raises:
        InputError: `E_OUTPUT_EXISTS` if one exists with other content; then none is written.
        StorageError: `E_IO`.
    """
    changed = {path: data for path, data in files.items() if not (path.is_file() and path.read_bytes() == data)}
    conflicts = sorted(path.name for path in changed if path.exists())
    if conflicts and not overwrite:
        raise InputError(
            "E_OUTPUT_EXISTS",
            f"{', '.join(conflicts)} exists already and differs",
            hint="pass --overwrite, or choose another folder with -o",
        )
    for folder in {path.parent for path in changed}:
        with storage_errors("the output folder"):
            folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder)
    for path, data in changed.items():
        write_atomic(path, data)
    return list(changed)
