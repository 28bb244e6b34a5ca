"""Unfair refusal: four voxels that two organ files share cost a subject all its labels.

Public: wasserth/TotalSegmentator#440 (all published cases overlap a little).
Right: kidney_left and spleen keep their 20 voxels each and 4 voxels of liver and spleen are settled by a rule that is
said; or an option chooses the rule.
"""

from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import noise, total
from tests.cases._nifti import SHAPE, blocks, write


def build(folder: Path) -> dict:
    root, images = folder / "overlap", {}
    for i, subject in enumerate(("s0001", "s0002")):
        volume = write(root / subject / "ct.nii.gz", noise(i, SHAPE, 1800, np.int16) - np.int16(900))
        for organ, x in (("kidney_left", 1), ("liver", 6), ("spleen", 10)):
            write(root / subject / "segmentations" / f"{organ}.nii.gz", blocks({1: (x, x + 5, 2, 6, 3, 4)}))
        images[subject] = {"sum": total(volume), "voxels": 56}  # 3 * 20 - 4
    return {"variants": {"overlap": variant(root, {"number": 2, "images": images})}}
