"""Outputs that nobody else can read: masks and reports have mode 0600 whatever the umask.

Right: results of infer and installed models follow the umask (0644 under 022); a cache may stay private.
"""

import os
from pathlib import Path

from tests.cases._model import infer, patient, trained


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    patient(folder, "a", 1, images="in")
    old = os.umask(0o022)
    try:
        infer(medssl, model, folder / "out", folder / "in")
    finally:
        os.umask(old)
    modes = {p.suffix: oct(p.stat().st_mode & 0o777) for p in (folder / "out").iterdir()}
    return {"expected": {".gz": "0o644", ".json": "0o644"}, "found": modes}
