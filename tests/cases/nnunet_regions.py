"""Labels refused: regions of nnU-Net 2 (lists of values) count as undeclared values.

Public: MIC-DKFZ/nnUNet#1264, MIC-DKFZ/nnUNet#946.
Right: values 1, 2 and 3 of 72 voxels each are stored (they are declared as parts of regions); names may be the
regions'.
"""

import json
from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import total
from tests.cases._nifti import blocks, scan, write


def build(folder: Path) -> dict:
    root, images = folder / "regions", {}
    for i in (1, 2):
        images[f"case_{i:03d}"] = {"sum": total(scan(root / f"imagesTr/case_{i:03d}_0000.nii.gz", i)), "voxels": 216}
        write(
            root / f"labelsTr/case_{i:03d}.nii.gz", blocks({v: (4 * v - 2, 4 * v + 1, 3, 9, 2, 6) for v in (1, 2, 3)})
        )
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "FLAIR"},
                "labels": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing": 3},
                "regions_class_order": [1, 2, 3],
                "numTraining": 2,
                "file_ending": ".nii.gz",
            }
        )
    )
    return {"variants": {"regions": variant(root, {"exit": [0], "number": 2, "images": images})}}
