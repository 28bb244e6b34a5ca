"""Meaning lost: the channels of a Decathlon image that is split with --split-4d have no modality and no name.

Public: the dataset.json of the Medical Segmentation Decathlon, Task01 and Task05.
Right: two images, T2 and ADC, both MR, each with the label (TZ 60, PZ 60 voxels).
"""

import json
from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import noise, total
from tests.cases._nifti import SHAPE, blocks, write


def build(folder: Path) -> dict:
    root = folder / "prostate"
    volume = write(root / "imagesTr/prostate_00.nii.gz", noise(2, (*SHAPE, 2), 900, np.int16))
    write(root / "labelsTr/prostate_00.nii.gz", blocks({1: (2, 6, 2, 7, 2, 5), 2: (10, 14, 2, 7, 2, 5)}))
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "name": "PROSTATE",
                "tensorImageSize": "4D",
                "modality": {"0": "T2", "1": "ADC"},
                "labels": {"0": "background", "1": "TZ", "2": "PZ"},
                "numTraining": 1,
                "numTest": 0,
                "test": [],
                "training": [{"image": "./imagesTr/prostate_00.nii.gz", "label": "./labelsTr/prostate_00.nii.gz"}],
            }
        )
    )
    images = {
        name: {"sum": total(volume[..., i]), "modality": "MR", "labels": {"TZ": 60, "PZ": 60}}
        for i, name in enumerate(("T2", "ADC"))
    }
    return {"variants": {"prostate": variant(root, {"number": 2, "images": images}, "--split-4d")}}
