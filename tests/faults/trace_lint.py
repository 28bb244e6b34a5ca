"""What a power cut could undo, read from a trace of system calls: a kill does not show it, the page cache survives.

Findings: a file or folder that got its final name while bytes of it were not yet on disk, and a success that was
announced before the folder of a new name was.
"""

import re
from pathlib import PurePosixPath

CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
OF_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
DERIVED = ("catalog.sqlite", "catalog-is-behind", "writing-", ".tmp-")


def findings(trace: str, acknowledgement: str) -> list[str]:
    """Findings in the output of `strace -f -y`, in order."""
    found: list[str] = []
    dirty: set[str] = set()
    unsynced: set[str] = set()
    for line in trace.splitlines():
        match = CALL.match(line)
        if match is None or int(match[3]) < 0:
            continue
        call, arguments = match[1], match[2]
        descriptor = OF_DESCRIPTOR.match(arguments)
        names = QUOTED.findall(arguments)
        if call in ("write", "pwrite64") and acknowledgement in arguments:
            found += [f"announced before the folder of {name} was on disk" for name in sorted(unsynced)]
        elif call in ("write", "pwrite64", "ftruncate") and descriptor:
            dirty.add(descriptor[1])
        elif call in ("fsync", "fdatasync") and descriptor:
            dirty.discard(descriptor[1])
            unsynced = {name for name in unsynced if str(PurePosixPath(name).parent) != descriptor[1]}
        elif call in ("rename", "renameat", "renameat2", "link", "linkat"):
            source, target = names[0], names[-1]
            found += [f"{name} named {target} before it was on disk" for name in sorted(dirty) if _is_in(name, source)]
            found += [f"{target} named before {name} was on disk" for name in sorted(unsynced) if _is_in(name, source)]
            unsynced.add(target)
        elif call in ("mkdir", "mkdirat"):
            unsynced.add(names[-1])
        elif call in ("unlink", "unlinkat", "rmdir"):
            unsynced.discard(names[-1])
        unsynced = {name for name in unsynced if not PurePosixPath(name).name.startswith(DERIVED)}
    return found


def _is_in(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder + "/")
