"""Work lost: SIGTERM in a batch leaves no report, and the same command computes everything again.

Public: none; README promises exit 75 and "typed again, a command goes on where it stopped".
Right: exit 75, report.json tells of the scans that were done, and the same command computes only the rest.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.cases._model import patient, trained


def run(medssl: str, folder: Path) -> dict:
    model, _, _ = trained(medssl, folder)
    for i in range(24):
        patient(folder, f"p{i:02d}", i, images="in", shape=(64, 64, 64))
    out = folder / "out"
    process = subprocess.Popen(
        [*medssl.split(), "infer", str(folder / "in"), "--task", str(model), "-o", str(out), "--device", "cpu", "-q"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and len(list(out.glob("*.nii.gz"))) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    return {
        "expected": {"exit": 75, "report": True},
        "found": {
            "exit": process.returncode if process.returncode >= 0 else 128 - process.returncode,
            "report": (out / "report.json").exists(),
            "masks": len(list(out.glob("*.nii.gz"))),
        },
    }
