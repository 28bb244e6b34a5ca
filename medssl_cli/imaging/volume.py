"""One image in memory: voxels and the affine that says where they are."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Affine, spacing_mm


@dataclass(frozen=True)
class Volume:
    """Voxels `[C, X, Y, Z]` and the affine that places them in the patient.

    Args:
        voxels: `[C, X, Y, Z]`, any real dtype.
        affine: `[4, 4]` float64, voxel-centre index (i, j, k, 1) to RAS+ millimetres.
        modality: DICOM modality ("CT", "MR", ...), or "unknown".
        units: "HU" for CT, "SUVbw" or "Bq/ml" for PET, otherwise "a.u.".
    """

    voxels: NDArray[np.generic]
    affine: Affine
    modality: str = "unknown"
    units: str = field(default="a.u.")

    def __post_init__(self) -> None:
        if self.voxels.ndim != 4:
            raise ValueError(f"voxels must be [C, X, Y, Z], got {self.voxels.ndim} dimensions")
        if self.affine.shape != (4, 4) or self.affine.dtype != np.float64:
            raise ValueError("affine must be a 4x4 float64 matrix")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size (X, Y, Z) in voxels."""
        _, x, y, z = self.voxels.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance (x, y, z) between voxel centres in millimetres."""
        return spacing_mm(self.affine)
