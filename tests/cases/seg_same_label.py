"""Part of a label lost: --structures X takes only the first of several segments that are called X.

Public: near QIICR/QuantitativeReporting#252.
Right: three segments "Lesion" of 5*7 = 35 voxels each; asked for by name, all 105 voxels are marked.
"""

from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import noise, segmentation, series, total


def build(folder: Path) -> dict:
    root = folder / "lesions"
    volume = noise(4, (30, 18, 6))
    files = series(root, volume, modality="MR")
    frames = []
    for n in (1, 2, 3):
        mask = np.zeros((18, 30), np.uint8)
        mask[4:9, 9 * n - 7 : 9 * n] = 1
        frames.append((n, (0, 0, 3.0 * n), mask, None))
    segmentation(root / "seg.dcm", files, frames, dict.fromkeys((1, 2, 3), "Lesion"))
    expect = {"images": {"mr": {"sum": total(volume), "voxels": 105}}}
    return {"variants": {"lesions": variant(root, expect, "--structures", "Lesion")}}
