"""Output missing with exit 0: no DICOM SEG for a series whose orientation is rounded in two ways.

Public: none; found with a real brain MR.
Right: ingest and infer accept the series (the corners agree to 0.001 mm), so the SEG is written, with the mean
orientation; or the exit code and the message say why there is none.
"""

from pathlib import Path

from tests.cases._dicom import noise, series
from tests.cases._model import infer, trained


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)

    def each(ds, k):
        ds.ImageOrientationPatient = (
            ["0.99862953", "0.05233596", "0", "-0.05233596", "0.99862953", "0"]
            if k % 2
            else ["0.9986295", "0.0523360", "0", "-0.0523360", "0.9986295", "0"]
        )

    series(folder / "in/mr", noise(3, (24, 22, 12)), modality="MR", spacing=(2, 2, 3), each=each)
    code, report = infer(medssl, model, folder / "out", folder / "in")
    segs = len(list((folder / "out").glob("*.dcm")))
    told = code != 0 or any(r.get("message") for r in (report or {}).get("results", []))
    return {
        "expected": {"seg_or_reason": True},
        "found": {"exit": code, "segs": segs, "seg_or_reason": bool(segs or told)},
    }
