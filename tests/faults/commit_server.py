"""A process that does one commit per line of its input, each in a child that waits to be traced.

The library is loaded once; a child begins with the first system call of the commit, so that a fault at the n-th call
is a fault of the commit and not of an import. Lines: `FOLDER`; answers: `PID`, then, after the line `go`, the status.
"""

import os
import sys
from pathlib import Path

import numpy as np

from medssl_cli.base.errors import MedsslError
from medssl_cli.cache.store import Cache
from tests.small_cache import label_of, record_of, volume_of

ACKNOWLEDGEMENT = b"STORED\n"


def commit(root: Path) -> int:
    """Make a cache of one labelled image in a folder, and say so; 74 if the disk refuses."""
    try:
        cache = Cache.open_or_create(root)
        with cache.writing():
            volume = volume_of()
            record = record_of(cache, volume)
            cache.add(volume, record)
            cache.add_label(record.item_id, "seg", label_of(np.ones((6, 5, 4), dtype=np.uint8)), {1: "a"})
            cache.update_record(record.item_id, lambda now: now.model_copy(update={"findings": {"csv": {"a": 1.0}}}))
        os.write(1, ACKNOWLEDGEMENT)
    except MedsslError as error:
        return int(error.exit_code)
    except OSError:
        return 74  # what the boundary of the command line makes of it
    return 0


def serve() -> None:
    """Until the input ends."""
    commit(Path(sys.argv[1]))  # everything that is loaded late is loaded now
    while root := sys.stdin.readline().strip():
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(commit(Path(root)))
        os.close(read_end)
        sys.stderr.write(f"{child}\n")
        sys.stderr.flush()
        sys.stdin.readline()
        os.write(write_end, b"x")
        os.close(write_end)
        _, status = os.waitpid(child, 0)
        sys.stderr.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    serve()
