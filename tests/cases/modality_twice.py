"""Every image twice: scans that were ingested without --modality are stored again with it.

Right: 4 images after the second call (the modality is corrected), or a warning that the same voxels are there already.
"""

from pathlib import Path

from tests.cases._case import ingest, stored
from tests.cases._nifti import scan


def run(medssl: str, folder: Path) -> dict:
    for i in range(4):
        scan(folder / f"in/case{i:03d}.nii.gz", i)
    cache = folder / "cache"
    ingest(medssl, cache, folder / "in")
    code, report = ingest(medssl, cache, folder / "in", "--modality", "MR")
    images = len(stored(medssl, cache))
    warned = any(c.startswith(("W_NEAR", "W_SUPER", "E_")) for c in report.get("by_code") or {})
    return {
        "expected": {"four_or_warned": True},
        "found": {"exit": code, "images": images, "four_or_warned": images == 4 or warned},
    }
