"""Called a bug, or waiting for ever: run folders that are damaged or not written by medssl.

Right: a code and an exit code other than 1, within seconds: the manifest is a JSON list; the checkpoint is garbage
under its right SHA-256; the manifest is a pipe.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.cases._case import call
from tests.cases._model import trained


def run(medssl: str, folder: Path) -> dict:
    _, good, cache = trained(medssl, folder)

    def manifest(root, make):
        (root / "manifest.json").unlink()
        make(root / "manifest.json")

    def checkpoint(root):
        data = b"garbage" * 100
        for path in (root / "checkpoints").iterdir():
            path.unlink()
        for kind in ("best", "step"):
            (root / f"checkpoints/{kind}-00000060-{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)

    faults = {
        "list": lambda r: manifest(r, lambda p: p.write_text("[]")),
        "garbage": checkpoint,
        "pipe": lambda r: manifest(r, os.mkfifo),
    }
    found = {}
    for name, fault in faults.items():
        root = folder / name
        shutil.copytree(good, root)
        fault(root)
        try:
            done = call(medssl, "evaluate", root, "--cache", cache, "-o", folder / f"{name}-out", timeout=120)
            found[name] = "bug" if "bug" in done.stderr or done.returncode == 1 else "refused"
        except subprocess.TimeoutExpired:
            found[name] = "waits"
    return {"expected": dict.fromkeys(faults, "refused"), "found": found}
