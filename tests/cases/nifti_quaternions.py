"""Unfair refusal: NIfTI files whose two affines are equal are called E_SFORM_QFORM_CONFLICT.

Public: nibabel takes a = 0 below 3 machine epsilons of float32, nifti1_io below 1e-7.
Right: 48 axis orders and directions of one scan, both affines written by nibabel from the same matrix (they differ by
0.0000 mm): 48 images. Near half turns float32 leaves a quaternion's a = sqrt(1 - b*b - c*c - d*d) at 2e-4 instead of 0.
"""

import itertools
from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import noise
from tests.cases._nifti import write


def build(folder: Path) -> dict:
    root = folder / "orders"
    volume = noise(7, (24, 20, 16), 900, np.int16)
    affine = np.array([[-15.2, 0, 0, 180], [0, 18.3, 0, -150], [0, 0, 21.7, -90], [0, 0, 0, 1.0]])
    for n, (order, signs) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        change = np.zeros((4, 4))
        change[3, 3] = 1
        for new, old in enumerate(order):
            change[old, new] = signs[new]
            change[old, 3] += 0 if signs[new] == 1 else volume.shape[old] - 1
        turned = volume.transpose(order)[tuple(slice(None, None, s) for s in signs)]
        turned = turned + np.int16(n)  # 48 different images
        write(root / f"case{n:02d}.nii.gz", np.ascontiguousarray(turned), affine=affine @ change)
    return {"variants": {"orders": variant(root, {"exit": [0], "number": 48}, "--modality", "CT")}}
