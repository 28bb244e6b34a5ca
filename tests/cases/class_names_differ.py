"""Two organs under one value: subjects that lack an organ file get other values, and training goes on.

Public: wasserth/TotalSegmentator#440, wasserth/TotalSegmentator#168, MIC-DKFZ/nnUNet#1104.
Right: value 2 is liver in half of the subjects and spleen in the other half, as the records say; finetune refuses, or
maps by name.
"""

from pathlib import Path

import numpy as np

from tests.cases._case import ingest
from tests.cases._dicom import noise
from tests.cases._model import RECIPE, finetune
from tests.cases._nifti import blocks, write


def run(medssl: str, folder: Path) -> dict:
    shape = (24, 22, 20)
    for i in range(12):
        root = folder / "in" / f"s{i:04d}"
        write(root / "ct.nii.gz", noise(i, shape, 1800, np.int16) - np.int16(900), (2, 2, 2))
        for organ, x in (("kidney_left", 1), ("liver", 8), ("spleen", 16)):
            if organ != "liver" or i % 2:
                write(root / f"segmentations/{organ}.nii.gz", blocks({1: (x, x + 6, 4, 12, 5, 15)}, shape), (2, 2, 2))
    ingest(medssl, folder / "cache", folder / "in")
    text = RECIPE.replace("{1: one, 2: two}", "{1: kidney_left, 2: liver, 3: spleen}").replace("60", "4")
    (folder / "organs.yaml").write_text(
        text.replace("modality: MR, zscore: true", "modality: CT, window_hu: [-900, 900]")
    )
    done = finetune(medssl, folder / "organs.yaml", folder / "cache", folder / "run")
    return {
        "expected": {"refused_or_mapped": True},
        "found": {
            "exit": done.returncode,
            "refused_or_mapped": done.returncode != 0 or "by name" in done.stderr,
            "said": [x for x in done.stderr.splitlines() if "label 2" in x],
        },
    }
