"""Report lost: a second call into the same output folder replaces the report of the first, without --overwrite.

Right: after two calls report.json tells of both masks (or each call has a report of its own); a report.json that medssl
did not write is not replaced without --overwrite, as masks are not.
"""

import json
from pathlib import Path

from tests.cases._model import infer, patient, trained


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    for i, name in enumerate("ab"):
        patient(folder, name, i, images="in")
    for name in "ab":
        infer(medssl, model, folder / "out", folder / f"in/{name}.nii.gz")
    names = set()
    for path in (folder / "out").glob("*.json*"):
        text = path.read_text()
        names |= {n for n in "ab" if f'"name": "{n}"' in text}
    (folder / "mine").mkdir()
    (folder / "mine/report.json").write_text('{"mine": 1}')
    code, _ = infer(medssl, model, folder / "mine", folder / "in/a.nii.gz")
    kept = json.loads((folder / "mine/report.json").read_text()) == {"mine": 1}
    return {
        "expected": {"scans_in_reports": ["a", "b"], "foreign_report_kept": True},
        "found": {"exit": code, "scans_in_reports": sorted(names), "foreign_report_kept": kept},
    }
