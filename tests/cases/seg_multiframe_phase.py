"""Label on the wrong images: a segmentation of one time point of an enhanced multi-frame MR is stored with all three.

Public: ImagingDataCommons/highdicom#369, OHIF/Viewers#4789, QIICR/dcmqi#558.
Right: PS3.3 C.7.6.16.2.6 and table 10-3: each frame names its source frame (ReferencedFrameNumber); only time point 2
carries 3 slices * 30 = 90 voxels.
"""

from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import enhanced, noise, segmentation, total


def build(folder: Path) -> dict:
    root = folder / "phases"
    volumes = [noise(3 + t, (16, 12, 5), 500) + np.uint16(1000 * t) for t in range(3)]
    source, pairs = enhanced(root / "mf.dcm", volumes)
    mask = np.zeros((12, 16), np.uint8)
    mask[3:8, 4:10] = 1
    frames = [(1, (0, 0, 3.0 * k), mask, 1 + pairs.index((1, k))) for k in (1, 2, 3)]
    segmentation(root / "seg.dcm", [source], frames, {1: "Lesion"})
    images = {
        f"time point {t + 1}": {"sum": total(v), "labels": {"Lesion": 90} if t == 1 else None}
        for t, v in enumerate(volumes)
    }
    return {"variants": {"phases": variant(root, {"number": 3, "images": images})}}
