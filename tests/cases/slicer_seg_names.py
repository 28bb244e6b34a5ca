"""Names lost: a .seg.nrrd of 3D Slicer keeps its label values and loses the names of its segments.

Public: the key/value fields SegmentN_Name and SegmentN_LabelValue that 3D Slicer writes.
Right: liver 5*4*3 = 60 and tumour 3*4*3 = 36 voxels.
"""

from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import total
from tests.cases._nifti import blocks, scan


def build(folder: Path) -> dict:
    root = folder / "slicer"
    volume = scan(root / "case001.nii.gz", 2, affine=np.diag([-1.5, -1.5, 3, 1.0]))
    mask = blocks({1: (4, 9, 5, 9, 2, 5), 2: (12, 15, 5, 9, 2, 5)})
    head = [
        "NRRD0004",
        "type: unsigned char",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: 20 18 8",
        "space directions: (1.5,0,0) (0,1.5,0) (0,0,3)",
        "kinds: domain domain domain",
        "encoding: raw",
        "space origin: (0,0,0)",
        "Segment0_Name:=liver",
        "Segment0_LabelValue:=1",
        "Segment0_Layer:=0",
        "Segment1_Name:=tumour",
        "Segment1_LabelValue:=2",
        "Segment1_Layer:=0",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    (root / "case001.seg.nrrd").write_bytes(("\n".join(head) + "\n\n").encode() + mask.tobytes(order="F"))
    return {
        "variants": {
            "slicer": variant(
                root,
                {"images": {"ct": {"sum": total(volume), "labels": {"liver": 60, "tumour": 36}}}},
                "--modality",
                "CT",
            )
        }
    }
