"""Wrong class: nnU-Net's reserved label "ignore" (voxels that nobody judged) is stored as a structure.

Public: MIC-DKFZ/nnUNet#2884, MIC-DKFZ/nnUNet#1821.
Right: liver has 3*6*4 = 72 voxels; the 72 voxels of "ignore" are no class (unknown), or the label map is refused or
noted.
"""

import json
from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import total
from tests.cases._nifti import blocks, scan, write


def build(folder: Path) -> dict:
    root, images = folder / "ignore", {}
    for i in (1, 2):
        images[f"case_{i:03d}"] = {
            "sum": total(scan(root / f"imagesTr/case_{i:03d}_0000.nii.gz", i)),
            "labels": {"liver": 72},
        }
        write(root / f"labelsTr/case_{i:03d}.nii.gz", blocks({1: (2, 5, 3, 9, 2, 6), 2: (6, 9, 3, 9, 2, 6)}))
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "liver": 1, "ignore": 2},
                "numTraining": 2,
                "file_ending": ".nii.gz",
            }
        )
    )
    return {"variants": {"ignore": variant(root, {"number": 2, "images": images, "or_refused": True, "or_note": True})}}
