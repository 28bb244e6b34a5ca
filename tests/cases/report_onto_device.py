"""The machine harmed: --report onto a device or a pipe replaces it by a regular file.

Right: `ingest ... --report PIPE` writes into it or refuses; a pipe is a pipe afterwards. As root, with /dev/null or
/dev/stdout, the replacement breaks the machine for everybody (containers run as root); never try it on the real nodes.
"""

import os
import stat
import threading
from pathlib import Path

from tests.cases._case import call
from tests.cases._dicom import noise, series


def run(medssl: str, folder: Path) -> dict:
    series(folder / "in", noise(1, (24, 22, 6)))
    pipe = folder / "pipe"
    os.mkfifo(pipe)

    def drain():
        descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # a reader, so that writing does not wait
        try:
            pipe.stat()
            threading.Event().wait(60)
        finally:
            os.close(descriptor)

    threading.Thread(target=drain, daemon=True).start()
    done = call(
        medssl,
        "ingest",
        folder / "in",
        "--cache",
        folder / "cache",
        "--report",
        pipe,
        "-q",
        "--workers",
        "1",
        timeout=300,
    )
    return {
        "expected": {"still_a_pipe": True},
        "found": {"exit": done.returncode, "still_a_pipe": stat.S_ISFIFO(os.lstat(pipe).st_mode)},
    }
