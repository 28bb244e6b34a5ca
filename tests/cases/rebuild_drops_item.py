"""Images lost without a word: `cache rebuild` leaves out an item whose item.json is damaged.

Right: 3 of 4 items are listed, the damaged one is named, and the exit code is not 0.
"""

from pathlib import Path

from tests.cases._case import call, ingest
from tests.cases._nifti import scan


def run(medssl: str, folder: Path) -> dict:
    for i in range(4):
        scan(folder / f"in/case{i:03d}.nii.gz", i)
    ingest(medssl, folder / "cache", folder / "in", "--modality", "MR")
    record = sorted((folder / "cache/items").rglob("item.json"))[0]
    text = record.read_text()
    record.chmod(0o600)
    record.write_text(text[:-40])
    done = call(medssl, "cache", "rebuild", "--cache", folder / "cache")
    return {
        "expected": {"told": True},
        "found": {
            "exit": done.returncode,
            "told": done.returncode != 0,
            "said": (done.stdout + done.stderr).strip()[-200:],
        },
    }
