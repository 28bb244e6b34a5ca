"""Invalid output: the DICOM SEG repeats attributes of its source that break the standard.

Public: none; 5 of 10 real series tried give such objects.
Right: PatientAge "0Y" is no AS (PS3.5 6.2: nnnY), StudyID has at most 16 characters (SH), and PatientIdentityRemoved
YES asks for DeidentificationMethod or its code (PS3.3 C.7.1.1). Left out or completed in the SEG, or a note says so.
"""

from pathlib import Path

import pydicom

from tests.cases._dicom import noise, raw, series
from tests.cases._model import infer, trained


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    for ds in series(folder / "in/mr", noise(3, (24, 22, 12)), modality="MR", spacing=(2, 2, 3)):
        path = Path(ds.filename)
        for tag, vr, text in (
            (0x00101010, "AS", "0Y"),
            (0x00200010, "SH", "12345678901234567890"),
            (0x00120062, "CS", "YES"),
        ):
            raw(path, tag, vr, text)
    code, _report = infer(medssl, model, folder / "out", folder / "in")
    bad = []
    for path in (folder / "out").glob("*.dcm"):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        bad += ["PatientAge"] * (ds.get("PatientAge", "") == "0Y") + ["StudyID"] * (len(ds.get("StudyID", "")) > 16)
        if ds.get("PatientIdentityRemoved") == "YES" and not (
            "DeidentificationMethod" in ds or "DeidentificationMethodCodeSequence" in ds
        ):
            bad.append("DeidentificationMethod")
    return {
        "expected": {"exit": 0, "segs": 1, "invalid": []},
        "found": {"exit": code, "segs": len(list((folder / "out").glob("*.dcm"))), "invalid": bad},
    }
