"""Stored and then unusable: a series whose slices drift a little is accepted by ingest and fails in cache export.

Right: what ingest accepts can be exported; a failure names the item and does not stop the others.
"""

from pathlib import Path

from tests.cases._case import call, ingest
from tests.cases._dicom import noise, series


def run(medssl: str, folder: Path) -> dict:
    series(folder / "in/a", noise(1, (32, 30, 7)), spacing=(0.8, 0.8, 5.0), step=(0.006, 0, 5.0))
    series(folder / "in/b", noise(2, (32, 30, 7)), spacing=(0.8, 0.8, 5.0), patient="SYN-2")
    code, _ = ingest(medssl, folder / "cache", folder / "in")
    done = call(medssl, "cache", "export", folder / "out", "--cache", folder / "cache")
    return {
        "expected": {"ingest": 0, "export": 0, "written": 2},
        "found": {
            "ingest": code,
            "export": done.returncode,
            "written": len(list((folder / "out").glob("*.nii.gz"))) if (folder / "out").exists() else 0,
        },
    }
