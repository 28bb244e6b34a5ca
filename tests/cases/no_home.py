"""Called a bug: a user without HOME and without an entry in the password file (as in clean container launchers).

Public: Deep-MI/FastSurfer#286.
Right: `infer -t ./model.onnx`, `models ls` and `ingest --cache` need no home folder; what does need one says which
option or variable to set. Needs root (setpriv) and an installation that other users can read.
"""

import os
import shutil
import subprocess
from pathlib import Path


def run(medssl: str, folder: Path) -> dict:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return {"expected": {}, "found": {"skipped": "needs root and setpriv"}}
    command = [
        "env",
        "-i",
        f"PATH={os.environ['PATH']}",
        "setpriv",
        "--reuid=54321",
        "--regid=54321",
        "--clear-groups",
        *[shutil.which(w) or w for w in medssl.split()],
        "models",
        "ls",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    return {
        "expected": {"bug": False},
        "found": {"exit": done.returncode, "bug": "bug in medssl" in done.stderr, "said": done.stderr[-200:]},
    }
