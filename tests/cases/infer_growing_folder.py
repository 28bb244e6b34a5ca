"""Masks change patients: names of outputs are numbered by position, so they move when a scan is added to the folder.

Right: the mask that a first call wrote keeps its name and content when a second call finds one more scan, and the new
scan gets a mask; the name depends on the scan alone (for example on its SeriesInstanceUID).
"""

from pathlib import Path

import pydicom

from tests.cases._dicom import noise, series
from tests.cases._model import infer, patient, trained


def _owners(out: Path) -> dict:
    return {p.name: str(pydicom.dcmread(p, stop_before_pixels=True).PatientID) for p in sorted(out.glob("*.dcm"))}


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    flat = folder / "flat"
    for n, start in ((2, "m"), (3, "x")):  # two patients in one folder, as an archive drops them
        for ds in series(
            folder / f"part{n}", noise(n, (24, 22, 12)), modality="MR", patient=f"SYN-{n}", spacing=(2, 2, 3)
        ):
            flat.mkdir(exist_ok=True)
            Path(ds.filename).rename(flat / f"{start}{ds.InstanceNumber:03d}.dcm")
    infer(medssl, model, folder / "out", flat)
    first = _owners(folder / "out")
    for ds in series(folder / "part1", noise(1, (24, 22, 12)), modality="MR", patient="SYN-1", spacing=(2, 2, 3)):
        Path(ds.filename).rename(flat / f"a{ds.InstanceNumber:03d}.dcm")  # sorts first
    code, _ = infer(medssl, model, folder / "out", flat, options=["--overwrite"])
    second = _owners(folder / "out")
    (folder / "in/p1").mkdir(parents=True)
    patient(folder / "in", "scan", 1, images="p1")
    infer(medssl, model, folder / "out-nifti", folder / "in")
    one = {p.name for p in (folder / "out-nifti").glob("*.nii.gz")}
    patient(folder / "in", "scan", 2, images="p2")
    infer(medssl, model, folder / "out-nifti", folder / "in")
    two = {p.name for p in (folder / "out-nifti").glob("*.nii.gz")}
    return {
        "expected": {
            "names_that_changed_patient": [],
            "patients_with_a_mask": ["SYN-1", "SYN-2", "SYN-3"],
            "nifti_masks_of_two_scans": 2,
        },
        "found": {
            "exit": code,
            "names_that_changed_patient": sorted(n for n in first if second.get(n) != first[n]),
            "patients_with_a_mask": sorted(set(second.values())),
            "nifti_masks_of_two_scans": len(one | two),
        },
    }
