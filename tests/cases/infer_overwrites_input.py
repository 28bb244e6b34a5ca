"""Data lost: the hint of a refusal, followed, replaces the scan by its mask.

Right: an output that is one of the inputs is refused, with or without --overwrite.
"""

import hashlib
from pathlib import Path

from tests.cases._case import call
from tests.cases._model import patient, trained


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    patient(folder, "scan", 1, images="in")
    scan = folder / "in/scan.nii.gz"
    before = hashlib.sha256(scan.read_bytes()).hexdigest()
    done = call(
        medssl, "infer", scan, "--task", model, "-o", scan, "--device", "cpu", "--no-preview", "--overwrite", "-q"
    )
    return {
        "expected": {"scan_intact": True},
        "found": {"exit": done.returncode, "scan_intact": hashlib.sha256(scan.read_bytes()).hexdigest() == before},
    }
