"""What headers announce about scans, so that one which cannot fit is refused before its voxels are read."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medssl_cli.base.errors import InputError
from medssl_cli.deploy.scans import Scan
from medssl_cli.formats.policy import Policy
from medssl_cli.imaging.geometry import Affine, Shape

if TYPE_CHECKING:
    from medssl_cli.formats.series import SeriesPart


class Announced(NamedTuple):
    """Size and affine of an image, and bytes of each of its voxels at least."""

    shape: Shape
    affine: Affine
    bytes_per_voxel: float


def announced(scan: Scan, policy: Policy) -> Announced | None:
    """What the header of a scan announces, of a case the first image's; None where only reading tells."""
    first = scan.parts[0]
    if first.series is not None:
        return _of_series(first.series)
    if first.kind != "nifti":
        return None
    from medssl_cli.formats.nifti import announced_grid

    try:
        shape, affine, size = announced_grid(first.sources[0], policy)
    except InputError:
        return None  # reading it will say what is wrong
    return Announced(shape, affine, size)


def _of_series(series: "SeriesPart") -> Announced | None:
    """Rows and columns of slices, and how far apart the first and the last lie."""
    headers = series.headers
    first = headers[0]
    places = [header.ImagePositionPatient for header in headers if header.ImagePositionPatient is not None]
    if first.PixelSpacing is None or first.ImageOrientationPatient is None or len(places) < len(headers):
        return None
    column_mm, row_mm = first.PixelSpacing
    rows, columns = np.array(first.ImageOrientationPatient[:3]), np.array(first.ImageOrientationPatient[3:])
    normal = np.cross(rows, columns)
    heights = np.array(places) @ normal
    affine = np.eye(4)
    step = float(np.ptp(heights)) / max(1, len(headers) - 1) or 1.0
    affine[:3, :3] = np.stack([rows * row_mm, columns * column_mm, normal * step], axis=1)
    if abs(np.linalg.det(affine)) < 1e-9:
        return None
    return Announced((first.Columns, first.Rows, len(headers)), affine, first.BitsAllocated / 8)
