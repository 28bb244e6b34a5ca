"""Findings on the wrong images: the first key column of a table decides, not the most specific one.

Public: near LalehSeyyed/CheXclusion#6, MIT-LCP/mimic-code#1101 (labels are of a study).
Right: the table has PatientID and StudyInstanceUID; a row is about its study. The patient's other study has no row.
Where both studies have rows that differ, each gets its own.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import radiograph, total, uid


def build(folder: Path) -> dict:
    one, two = uid("study", 1), uid("study", 2)
    root = folder / "one_row"
    a = radiograph(root / "a.dcm", study=one, patient="SYN-1", seed=1)
    b = radiograph(root / "b.dcm", study=two, patient="SYN-1", seed=2)
    (root / "labels.csv").write_text(f"PatientID,StudyInstanceUID,Pneumonia,Edema\nSYN-1,{one},1,0\n")
    first = {
        "study 1": {"sum": total(a.pixel_array), "findings": {"Pneumonia": 1.0, "Edema": 0.0}},
        "study 2": {"sum": total(b.pixel_array), "findings": None},
    }
    root = folder / "two_rows"
    c = radiograph(root / "a.dcm", study=one, patient="SYN-1", seed=3)
    d = radiograph(root / "b.dcm", study=two, patient="SYN-1", seed=4)
    (root / "labels.csv").write_text(f"PatientID,StudyInstanceUID,Pneumonia\nSYN-1,{one},1\nSYN-1,{two},0\n")
    second = {
        "study 1": {"sum": total(c.pixel_array), "findings": {"Pneumonia": 1.0}},
        "study 2": {"sum": total(d.pixel_array), "findings": {"Pneumonia": 0.0}},
    }
    return {
        "variants": {
            "one_row": variant(folder / "one_row", {"number": 2, "images": first}),
            "two_rows": variant(root, {"exit": [0], "number": 2, "images": second}),
        }
    }
