"""Scans left out without a word: infer does not read what ingest reads, and does not say so.

Right: an NRRD, a MetaImage and a NIfTI behind a link to a folder are segmented as ingest takes them, or each is named
in the report with a code.
"""

import json
from pathlib import Path

import SimpleITK as sitk

from tests.cases._model import infer, patient, trained


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    patient(folder, "a", 1, images="in")
    patient(folder, "b", 2, images="elsewhere")
    (folder / "in/linked").symlink_to(folder.resolve() / "elsewhere")
    image = sitk.ReadImage(str(folder / "in/a.nii.gz")) + 1
    sitk.WriteImage(image, str(folder / "in/c.nrrd"))
    sitk.WriteImage(image + 1, str(folder / "in/d.mha"))
    code, report = infer(medssl, model, folder / "out", folder / "in")
    text = json.dumps(report)
    told = [n for n in ("c", "d", "linked") if any(f'"{n}{end}' in text for end in ('"', ".", "/"))]
    return {
        "expected": {"told": ["c", "d", "linked"]},
        "found": {"exit": code, "told": told, "masks": len(list((folder / "out").glob("*.nii.gz")))},
    }
