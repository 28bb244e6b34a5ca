"""Another mask for the same numbers: images of integers are rounded when they are resampled, images of floats are not.

Public: spinalcordtoolbox/spinalcordtoolbox#4210.
Right: whole numbers 0 to 8 stored as uint8 and as float32 give the same mask (to 1 voxel in 1000).
"""

from pathlib import Path

import nibabel
import numpy as np

from tests.cases._model import infer, trained
from tests.cases._nifti import blocks, write


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    shape = (24, 22, 20)
    mask = blocks({1: (3, 10, 4, 12, 5, 14), 2: (12, 19, 9, 18, 5, 14)}, shape)
    levels = np.random.default_rng(1).integers(0, 3, shape) + 3 * mask
    for kind in (np.uint8, np.float32):
        write(folder / f"in/{np.dtype(kind).name}.nii.gz", levels.astype(kind), (2.9, 2.7, 2.6))
    infer(medssl, model, folder / "out", folder / "in")
    one, two = (
        np.asarray(nibabel.load(next((folder / "out").glob(f"{n}*.nii.gz"))).dataobj) for n in ("uint8", "float32")
    )
    differ = int((one != two).sum())
    return {
        "expected": {"equal": True},
        "found": {
            "voxels": one.size,
            "marked": int((two > 0).sum()),
            "differ": differ,
            "equal": differ <= one.size / 1000,
        },
    }
