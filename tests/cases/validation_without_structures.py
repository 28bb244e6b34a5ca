"""Wrong checkpoint: where no validation patient has a structure, the first checkpoint is kept as the best.

Public: MIC-DKFZ/nnUNet#2767, MIC-DKFZ/nnUNet#1460.
Right: scores that say nothing choose nothing: the last checkpoint is kept and a note says so, or the training is
refused.
"""

import shutil
from pathlib import Path

import nibabel
import numpy as np

from tests.cases._case import ingest
from tests.cases._model import finetune, split
from tests.cases._nifti import write


def run(medssl: str, folder: Path) -> dict:
    key = folder / "site.key"
    val = split(medssl, folder / "first", key)["val"]
    shutil.copytree(folder / "first/patients", folder / "patients")
    for name in val:
        path = folder / f"patients/labels/{name}.nii.gz"
        write(path, np.asarray(nibabel.load(path).dataobj) * np.uint8(0), (2.0, 2.0, 2.0))
    ingest(medssl, folder / "cache", folder / "patients", "--modality", "MR", "--key-file", key)
    done = finetune(
        medssl,
        folder / "first/balls.yaml",
        folder / "cache",
        folder / "run",
        "validate_every=20",
        "checkpoint_every=20",
    )
    best = [p.name for p in (folder / "run/checkpoints").glob("best-*")]
    first = any(int(name.split("-")[1]) == 20 for name in best)
    return {
        "expected": {"first_checkpoint_kept": False},
        "found": {"exit": done.returncode, "best": [b[:13] for b in best], "first_checkpoint_kept": first},
    }
