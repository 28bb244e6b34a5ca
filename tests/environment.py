"""Where commands of a test run, and a key with which pseudonyms and splits are the same each time."""

import os
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "BLOSC_NTHREADS": "1"}
"""Of a subprocess that runs the command line."""


def give_known_key(cache: Path) -> None:
    """Give a cache that is still to be made a fixed key, which decides who is a test patient."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    (cache / "site.key").write_bytes(b"k" * 32)
    (cache / "site.key").chmod(0o600)
