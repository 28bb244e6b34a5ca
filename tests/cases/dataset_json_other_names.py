"""Labels refused: dataset.json pairs img0001.nii.gz with label0001.nii.gz, the names under which BTCV is distributed.

Public: the BTCV download and its dataset.json of MONAI's and VoCo's tutorials.
Right: two images with their labels of 4*4*4 = 64 voxels.
"""

import json
from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import total
from tests.cases._nifti import blocks, scan, write


def build(folder: Path) -> dict:
    root, images = folder / "btcv", {}
    for i in (1, 2):
        volume = scan(root / f"images/img{i:04d}.nii.gz", i)
        write(root / f"labels/label{i:04d}.nii.gz", blocks({1: (3, 7, 3, 7, 2, 6)}))
        images[f"img{i:04d}"] = {"sum": total(volume), "labels": {"spleen": 64}}
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "modality": {"0": "CT"},
                "labels": {"0": "background", "1": "spleen"},
                "numTraining": 2,
                "training": [
                    {"image": f"images/img{i:04d}.nii.gz", "label": f"labels/label{i:04d}.nii.gz"} for i in (1, 2)
                ],
            }
        )
    )
    return {"variants": {"btcv": variant(root, {"exit": [0], "number": 2, "images": images})}}
