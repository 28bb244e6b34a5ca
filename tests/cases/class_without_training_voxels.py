"""A class that cannot be learnt: no training or validation patient has a voxel of it, and nothing says so.

Public: MIC-DKFZ/nnUNet#2976, MIC-DKFZ/nnUNet#2438.
Right: finetune names the class (the cache knows the counts), as a note or a refusal.
"""

import shutil
from pathlib import Path

import nibabel
import numpy as np

from tests.cases._case import ingest
from tests.cases._model import finetune, short, split
from tests.cases._nifti import write


def run(medssl: str, folder: Path) -> dict:
    key = folder / "site.key"
    test = split(medssl, folder / "first", key)["test"]
    shutil.copytree(folder / "first/patients", folder / "patients")
    for path in (folder / "patients/labels").glob("*.nii.gz"):
        if path.name[:-7] not in test:
            mask = np.asarray(nibabel.load(path).dataobj)
            write(path, np.where(mask == 2, 0, mask).astype(np.uint8), (2.0, 2.0, 2.0))
    ingest(medssl, folder / "cache", folder / "patients", "--modality", "MR", "--key-file", key)
    done = finetune(medssl, folder / "first/balls.yaml", folder / "cache", folder / "run", *short(4))
    text = done.stderr + done.stdout
    return {
        "expected": {"told": True},
        "found": {
            "exit": done.returncode,
            "told": "two" in text and ("no voxel" in text or "W_" in text or "E_" in text),
        },
    }
