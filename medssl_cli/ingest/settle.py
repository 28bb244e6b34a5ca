"""Waiting for folders that somebody else still writes: a modality, a copy, a download."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import InterruptedCleanlyError

PAUSE_S: Final = 1.0
PATIENCE_S: Final = 3600.0


def wait_until_settled(
    paths: Sequence[Path], settle_s: float, leave_out: Path, is_stopped: Callable[[], bool], say: Callable[[], None]
) -> None:
    """Return once nothing below some paths has changed for a while: names, lengths or times.

    Times of files are compared with each other only, never with a clock.

    Args:
        paths: Files and folders.
        settle_s: Seconds for which nothing may change; 0: do not even look.
        leave_out: The cache, resolved, wherever it lies.
        is_stopped: Asked again and again; ends the waiting.
        say: Called with each look.

    Raises:
        InterruptedCleanlyError: `E_NOT_SETTLED`, after an hour.
    """
    begin = since = time.monotonic()
    state = b""
    while settle_s and not is_stopped():
        say()
        now, seen = time.monotonic(), _state(paths, leave_out)
        if seen != state:
            state, since = seen, now
        elif now - since >= settle_s:
            return
        if now - begin > PATIENCE_S:
            raise InterruptedCleanlyError(
                "E_NOT_SETTLED", f"the input did not stay the same for {settle_s:g} seconds within an hour"
            )
        time.sleep(min(PAUSE_S, settle_s / 2))


def _state(paths: Sequence[Path], leave_out: Path) -> bytes:
    """Digest of what can be seen of all files without opening them."""
    digest = hashlib.sha256()
    for root in (path.resolve() for path in paths):
        _add(digest.update, root)
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if Path(folder, name) != leave_out)
            for name in sorted(names):
                _add(digest.update, Path(folder, name))
    return digest.digest()


def _add(update: Callable[[bytes], None], path: Path) -> None:
    try:
        status = path.lstat()
    except OSError:
        return
    update(os.fsencode(path) + b"\0%d %d %d\0" % (status.st_ino, status.st_size, status.st_mtime_ns))
