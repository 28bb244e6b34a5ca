"""What inference leaves behind: masks that are proven before they are named, volumes, and never a silent overwrite."""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.base.files import make_output_folder, remove_temporaries, require_place_for_file, write_atomic
from medssl_cli.formats.policy import Policy
from medssl_cli.imaging.geometry import Affine

CUBIC_MM_PER_ML: Final = 1000.0
HEAD_BYTES: Final = 4096
LARGEST_LABEL: Final = 255
COUNTED_AT_ONCE: Final = 2**20
OVERWRITE: Final = "pass --overwrite, or choose another folder with -o"
ELSEWHERE: Final = "choose another folder with -o; --overwrite replaces only what medssl infer wrote"


def nifti_mask(
    labels: NDArray[np.uint8], affine: Affine, *, like_header: bytes | None, is_compressed: bool = True
) -> bytes:
    """A NIfTI file of a label map that bears the mark of a prediction, read back in memory before it is returned.

    Args:
        labels: `[X, Y, Z]`.
        affine: Affine to RAS+ millimetres.
        like_header: Header of the scan, whose geometry is copied bit for bit; None writes `affine` with code 1.
        is_compressed: `.nii.gz`, else `.nii`.

    Raises:
        GateError: `E_OUTPUT_CHECK`.
        InputError: `E_AFFINE_SHEAR`.
    """
    from medssl_cli.formats.gzip_strict import gzip_bytes
    from medssl_cli.formats.nifti import encode_nifti, prove_nifti

    plain = encode_nifti(labels, affine, like_header=like_header, is_prediction=True)
    data = gzip_bytes(plain, has_runs=True) if is_compressed else plain
    prove_nifti(data, labels, affine, like_header=like_header)
    return data


def read_mask(path: Path, policy: Policy) -> NDArray[np.uint8]:
    """A mask that was written, `[X, Y, Z]` on the grid of its scan.

    Args:
        path: Its file.
        policy: What was accepted of the scan, whose geometry it has.

    Raises:
        InputError: It cannot be read.
    """
    from medssl_cli.formats.nifti import read_nifti

    mask = read_nifti(path, policy=policy, is_label=True).image.volume.voxels[0]
    return mask.astype(np.uint8, copy=False)


def volumes_ml(labels: NDArray[np.uint8], affine: Affine, classes: Mapping[int, str]) -> dict[str, float]:
    """Volume of every structure in millilitres.

    Args:
        labels: Label map `[X, Y, Z]`, or masks of regions `[K, X, Y, Z]` of 0 and 1.
        affine: Affine of its grid.
        classes: Names by value, or by place from 1 on.
    """
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / CUBIC_MM_PER_ML
    if labels.ndim == 4:
        counts = np.array([0, *(np.count_nonzero(mask) for mask in labels)])
    else:
        flat = labels.ravel(order="K")
        counts = np.zeros(max(*classes, LARGEST_LABEL) + 1, dtype=np.int64)
        for start in range(0, flat.size, COUNTED_AT_ONCE):  # of each piece, a copy in 64 bits is made
            counts += np.bincount(flat[start : start + COUNTED_AT_ONCE], minlength=len(counts))
    return {classes[value]: round(int(counts[value]) * voxel_ml, 6) for value in sorted(classes)}


def require_replaceable(
    paths: Iterable[Path], *, inputs: Container[tuple[int, int]], recorded: Container[str], overwrite: bool
) -> None:
    """Before anything is computed, refuse outputs that would replace what must stay.

    Args:
        paths: Where outputs will be written.
        inputs: Device and inode of every file that is read.
        recorded: Names of files that the report says were made from this scan, but from another content or by another
            model.
        overwrite: Such files may be replaced. Nothing that medssl did not write ever is.

    Raises:
        UsageError: `E_OUTPUT_SPECIAL`.
        InputError: `E_OUTPUT_EXISTS`.
    """
    for path in paths:
        require_place_for_file(path)
        try:
            status = path.stat()
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in inputs:
            raise InputError("E_OUTPUT_EXISTS", f"{path.name} is one of the inputs", hint=ELSEWHERE)
        if path.name in recorded and not overwrite:
            message = f"{path.name} was made from another content of the scan, by another model, or was changed"
            raise InputError("E_OUTPUT_EXISTS", message, hint=OVERWRITE)
        if path.name not in recorded and not is_own(path):
            raise InputError("E_OUTPUT_EXISTS", f"{path.name} exists, and medssl did not write it", hint=ELSEWHERE)


def is_own(path: Path) -> bool:
    """Whether a file bears the mark of what inference writes."""
    from medssl_cli.formats.predictions import is_prediction
    from medssl_cli.formats.source import read_head

    try:
        return is_prediction(read_head(path, HEAD_BYTES))
    except InputError:
        return False


def publish(files: Mapping[Path, bytes], *, overwrite: bool) -> list[Path]:
    """Write files under their final names, each atomically; identical ones are left untouched.

    Returns:
        The files that were written.

    Raises:
        InputError: `E_OUTPUT_EXISTS` if one exists with other content; then none is written. A preview that inference
            drew is drawn again.
        UsageError: `E_OUTPUT_SPECIAL`.
        StorageError: `E_IO`.
    """
    for path in files:
        require_place_for_file(path)
    changed = {path: data for path, data in files.items() if not (path.is_file() and path.read_bytes() == data)}
    conflicts = [path.name for path in changed if path.exists() and not (path.suffix == ".png" and is_own(path))]
    if conflicts and not overwrite:
        message = f"{', '.join(sorted(conflicts))} exists already and differs"
        raise InputError("E_OUTPUT_EXISTS", message, hint=OVERWRITE)
    for folder in {path.parent for path in changed}:
        make_output_folder(folder)
        remove_temporaries(folder)
    for path, data in changed.items():
        write_atomic(path, data, is_output=True)
    return list(changed)
