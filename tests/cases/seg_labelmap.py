"""Label lost: a Label Map Segmentation (SOP class 1.2.840.10008.5.1.4.1.1.66.7) is not recognised as a label.

Public: QIICR/dcmqi#491, QIICR/dcmqi#537, cornerstonejs/cornerstone3D#2611, cornerstonejs/cornerstone3D#2919.
Right: PS3.3 A.86; liver 3*5*7 = 105 and spleen 3*4*5 = 60 voxels, as for the BINARY object of the same mask.
"""

import warnings
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.sr.codedict import codes

from tests.cases._case import variant
from tests.cases._dicom import noise, series, total, uid


def build(folder: Path) -> dict:
    variants = {}
    for kind in ("LABELMAP", "BINARY"):
        root = folder / kind.lower()
        volume = noise(3, (20, 18, 6))
        files = series(root, volume, modality="MR")
        mask = np.zeros((6, 18, 20), np.uint8)
        mask[1:4, 4:9, 5:12], mask[1:4, 10:14, 2:7] = 1, 2
        segments = [
            hd.seg.SegmentDescription(n, name, codes.SCT.Organ, code, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
            for n, name, code in ((1, "liver", codes.SCT.Liver), (2, "spleen", codes.SCT.Spleen))
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hd.seg.Segmentation(
                [pydicom.dcmread(f.filename) for f in files],
                mask,
                hd.seg.SegmentationTypeValues[kind],
                segments,
                uid(kind, "series"),
                2,
                uid(kind, "sop"),
                1,
                "SYN",
                "SYN",
                "1",
                "1",
            ).save_as(root / "seg.dcm")
        expect = {
            "exit": [0],
            "number": 1,
            "images": {"mr": {"sum": total(volume), "labels": {"liver": 105, "spleen": 60}}},
        }
        variants[kind.lower()] = variant(root, expect)
    return {"variants": variants}
