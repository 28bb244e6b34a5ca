"""Unfair refusal: a label map on the same voxels with its axes in another direction is said to be many millimetres
away.

Public: MIC-DKFZ/nnUNet#1287, MIC-DKFZ/nnUNet#2551.
Right: 5*4*3 = 60 voxels, turned without loss (every voxel centre of the label is one of the image); or a message that
says that the axes differ.
"""

from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import total
from tests.cases._nifti import SHAPE, blocks, scan, write


def build(folder: Path) -> dict:
    root, images = folder / "flipped", {}
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])  # the first two axes run the other way
    affine[:2, 3] = 1.5 * (SHAPE[0] - 1), 1.5 * (SHAPE[1] - 1)
    for i in (1, 2):
        images[f"p{i}"] = {"sum": total(scan(root / f"images/p{i}.nii.gz", i)), "voxels": 60}
        write(
            root / f"labels/p{i}.nii.gz",
            np.ascontiguousarray(blocks({1: (3, 8, 4, 8, 2, 5)})[::-1, ::-1]),
            affine=affine,
        )
    return {"variants": {"flipped": variant(root, {"exit": [0], "number": 2, "images": images}, "--modality", "MR")}}
