"""Label maps become training images: dataset.json lists image and label pairs in folders that have other names.

Public: MIC-DKFZ/nnUNet#188, and the documented key `dataset` of nnU-Net 2.
Right: two CT images, with liver 6*5*5 = 150 and 6*5*6 = 180 voxels; or a refusal. Backslashes come from Windows.
"""

import json
from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import total
from tests.cases._nifti import blocks, scan, write


def build(folder: Path) -> dict:
    variants = {}
    for key in ("dataset", "training", "backslashes"):
        root, images = folder / key, {}
        for i in (1, 2):
            volume = scan(root / f"volumes/case_{i}.nii.gz", i)
            write(root / f"annotations/case_{i}.nii.gz", blocks({1: (3, 9, 4, 9, 2, 6 + i)}))
            images[f"case_{i}"] = {"sum": total(volume), "labels": {"liver": 30 * (4 + i)}}
        if key == "dataset":
            text = {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "liver": 1},
                "numTraining": 2,
                "file_ending": ".nii.gz",
                "dataset": {
                    f"case_{i}": {"images": [f"./volumes/case_{i}.nii.gz"], "label": f"./annotations/case_{i}.nii.gz"}
                    for i in (1, 2)
                },
            }
        else:
            s = "\\" if key == "backslashes" else "/"
            text = {
                "modality": {"0": "CT"},
                "labels": {"0": "background", "1": "liver"},
                "numTraining": 2,
                "numTest": 0,
                "test": [],
                "training": [
                    {"image": f".{s}volumes{s}case_{i}.nii.gz", "label": f".{s}annotations{s}case_{i}.nii.gz"}
                    for i in (1, 2)
                ],
            }
        (root / "dataset.json").write_text(json.dumps(text))
        variants[key] = variant(root, {"number": 2, "images": images, "or_refused": True})
    return {"variants": variants}
