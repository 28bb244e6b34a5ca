"""Memory: a file of about 80 bytes makes `weights import` take as much memory as it asks for.

Public: none; the unpickler allows bytearray(n).
Right: the memory of reading a checkpoint is bounded by its size (a few hundred MB for a small file); refused with a
code.
"""

import os
import pickle
import subprocess
from pathlib import Path

BYTES = 2_500_000_000


class _Huge:
    def __reduce__(self):
        return bytearray, (BYTES,)


def run(medssl: str, folder: Path) -> dict:
    path = folder / "small.pt"
    path.write_bytes(pickle.dumps({"state_dict": {"a": _Huge()}}, protocol=2))
    command = [*medssl.split(), "weights", "import", str(path), str(folder / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    peak = usage.ru_maxrss / 2**20  # GiB, of the largest of the process and its children
    process.returncode = os.waitstatus_to_exitcode(status)
    found = {"exit": process.returncode, "peak_gib": round(peak, 2), "below_2_gib": peak < 2}
    return {"expected": {"below_2_gib": True}, "found": found}
