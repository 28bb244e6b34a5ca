"""One person in training and in test: file names begin with the sequence or the scanner, which is taken for the
patient.

Public: near UCSD-AI4H/COVID-CT#11.
Right: T1_001 and T2_001 are one person, T1_001 and T1_002 are two; or a note asks for --patient-pattern.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import total
from tests.cases._nifti import scan

NAMES = {
    "sequence": [["T1_001", "T2_001"], ["T1_002", "T2_002"], ["T1_003", "T2_003"]],
    "field": [["3T_sub01", "7T_sub01"], ["3T_sub02", "7T_sub02"]],
    "visit": [["scan1_patient07", "scan2_patient07"], ["scan1_patient08", "scan2_patient08"]],
}


def build(folder: Path) -> dict:
    variants = {}
    for key, people in NAMES.items():
        root, images = folder / key, {}
        for i, name in enumerate(n for person in people for n in person):
            images[name] = {"sum": total(scan(root / f"{name}.nii.gz", i))}
        variants[key] = variant(root, {"number": len(images), "images": images, "patients": people}, "--modality", "MR")
    return {"variants": variants}
