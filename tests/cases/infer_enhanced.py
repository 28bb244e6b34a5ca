"""Batch lost: an enhanced multi-frame scan ends infer as a bug; later scans are not started and there is no report.

Right: of a.nii.gz, an enhanced MR and z.nii.gz all three get a mask (the DICOM also a SEG whose frames name the source
frames); whatever happens to one scan, report.json tells of the others.
"""

from pathlib import Path

from tests.cases._dicom import enhanced, noise
from tests.cases._model import infer, patient, trained


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    patient(folder, "a", 1, images="in")
    enhanced(folder / "in/mf/mf.dcm", [noise(3, (24, 22, 12))], spacing=(2, 2, 3))
    patient(folder, "z", 2, images="in")
    code, report = infer(medssl, model, folder / "out", folder / "in")
    results = (report or {}).get("results", [])
    return {
        "expected": {"exit": 0, "results": 3, "masks": 3, "segs": 1},
        "found": {
            "exit": code,
            "results": len(results),
            "masks": len(list((folder / "out").glob("*.nii.gz"))),
            "segs": len(list((folder / "out").glob("*.dcm"))),
        },
    }
