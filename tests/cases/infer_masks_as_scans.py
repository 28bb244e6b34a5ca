"""Masks become scans: outputs below the input folder are segmented by the next call.

Right: three calls with three output folders inside the input folder give one mask each; what infer wrote is no scan.
"""

from pathlib import Path

from tests.cases._model import infer, patient, trained


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    patient(folder, "a", 1, images="study")
    masks = []
    for n in (1, 2, 3):
        infer(medssl, model, folder / f"study/out{n}", folder / "study")
        masks.append(len(list((folder / f"study/out{n}").glob("*.nii.gz"))))
    return {"expected": {"masks": [1, 1, 1]}, "found": {"masks": masks}}
