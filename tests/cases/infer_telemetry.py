"""Data leaves the site: ONNX Runtime reports to its maker, and nothing in the product turns it off or mentions it.

Public: OHF-Voice/wyoming-piper#64, microsoft/onnxruntime#25573.
Right: ORT_DISABLE_TELEMETRY=1 is in the environment before onnxruntime is imported; after infer with an empty HOME
there is no ~/.cache/Microsoft. The run is made without network where `unshare` allows it.
"""

import os
import shutil
import subprocess
from pathlib import Path

from tests.cases._model import patient, trained


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    patient(folder, "a", 1, images="in")
    home = folder / "home"
    home.mkdir()
    alone = (
        ["unshare", "-rn"]
        if shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
        else []
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))} | {
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            *alone,
            *medssl.split(),
            "infer",
            str(folder / "in"),
            "--task",
            str(model),
            "-o",
            str(folder / "out"),
            "--device",
            "cpu",
            "-q",
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    files = sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and "Microsoft" in str(p))
    return {"expected": {"files": []}, "found": {"exit": done.returncode, "files": files}}
