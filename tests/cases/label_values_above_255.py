"""Labels refused: label maps with values above 255, as MM-WHS distributes them (205 ... 850).

Public: the MM-WHS download, which the shipped recipe heart-seg names.
Right: two structures of 48 voxels each are stored under their values, or an option maps them; heart-seg can be trained
on its own data.
"""

from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import total
from tests.cases._nifti import blocks, scan, write


def build(folder: Path) -> dict:
    root, images = folder / "mmwhs", {}
    mask = blocks({1: (2, 6, 2, 6, 2, 5), 2: (8, 12, 2, 6, 2, 5)}).astype(np.uint16)
    for i in (1, 2):
        images[f"heart_{i:02d}"] = {"sum": total(scan(root / f"images/heart_{i:02d}.nii.gz", i)), "voxels": 96}
        write(
            root / f"labels/heart_{i:02d}.nii.gz",
            np.where(mask == 1, 205, np.where(mask == 2, 850, 0)).astype(np.uint16),
        )
    return {"variants": {"mmwhs": variant(root, {"exit": [0], "number": 2, "images": images}, "--modality", "CT")}}
