"""Unfair refusal: a segmentation in RLE Lossless, as web viewers store it.

Public: dcmjs-org/dcmjs#72, dcmjs-org/dcmjs#78.
Right: PS3.5 annex G; three frames of 5*7 = 35 voxels, 105 in all (8 bits, FRACTIONAL, 0 or 255, read with
--seg-fraction 0.5).
"""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import RLELossless

from tests.cases._case import variant
from tests.cases._dicom import noise, segmentation, series, total


def build(folder: Path) -> dict:
    root = folder / "rle"
    volume = noise(3, (20, 18, 6))
    files = series(root, volume, modality="MR")
    mask = np.zeros((18, 20), np.uint8)
    mask[4:9, 5:12] = 1
    segmentation(root / "seg.dcm", files, [(1, (0, 0, 3.0 * k), mask, None) for k in (1, 2, 3)], {1: "Lesion"})
    ds = pydicom.dcmread(root / "seg.dcm")
    ds.SegmentationType, ds.SegmentationFractionalType, ds.MaximumFractionalValue = "FRACTIONAL", "OCCUPANCY", 255
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = (np.stack([mask] * 3) * 255).tobytes()
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(root / "seg.dcm")
    expect = {"exit": [0], "images": {"mr": {"sum": total(volume), "labels": {"Lesion": 105}}}}
    return {"variants": {"rle": variant(root, expect, "--seg-fraction", "0.5")}}
