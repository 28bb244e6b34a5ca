"""Contradiction: a segmentation that names two series is stored with the one whose grid fits, and reported as refused.

Right: 35*3 = 105 voxels on the T2 and exit 0 (the other series was only viewed); or refused and not stored.
"""

from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import noise, segmentation, series, total, uid


def build(folder: Path) -> dict:
    root = folder / "two"
    shared = {"modality": "MR", "study": uid("two study"), "frame": uid("two frame")}
    t2, adc = noise(4, (20, 18, 6)), noise(5, (10, 9, 6))
    files = series(root / "t2", t2, **shared) + series(root / "adc", adc, spacing=(2, 2, 3), **shared)
    mask = np.zeros((18, 20), np.uint8)
    mask[4:9, 5:12] = 1
    segmentation(root / "seg.dcm", files, [(1, (0, 0, 3.0 * k), mask, None) for k in (1, 2, 3)], {1: "Lesion"})
    images = {"t2": {"sum": total(t2), "labels": {"Lesion": 105}}, "adc": {"sum": total(adc), "labels": None}}
    return {"variants": {"two": variant(root, {"exit": [0], "number": 2, "images": images})}}
