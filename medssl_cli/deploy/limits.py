"""What a model may cost: memory and seconds, from what its tiles could need and from what this machine has free."""

import contextlib
import math
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from medssl_cli.deploy.bundle import Bundle

GIB: Final = 2**30
FREE_SHARE: Final = 0.8
"""Share of the free memory that a command takes unless the user allows another amount."""
FLOATS_PER_VOXEL: Final = 3072
"""Float32 that a network may hold per voxel of a tile; a SwinUNETR of 48 features was seen to hold 1,200."""
USUAL_FLOATS_PER_VOXEL: Final = 1280
"""What it does hold where it is large: room for that is not looked into before a scan is begun."""
BASE_BYTES: Final = 3 * GIB // 2
COPIES_OF_MODEL: Final = 4
BASE_S: Final = 30.0
SECONDS_PER_VOXEL: Final = 3e-4
"""Half a minute, and five more for a tile of 96 voxels a side: for a SwinUNETR of 48 features on two cores, ten times
what was measured."""

MAX_S: Final = 3600.0
"""Whatever size of a tile a bundle claims."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the process that runs a model.

    Args:
        max_ram_bytes: Memory of a whole command: the model's process and the scan in this one.
        model_bytes: Memory of the model's process.
        tile_s: Seconds of one call of the network, and of loading the model.
        usual_bytes: What hardly any model of its size exceeds.
    """

    max_ram_bytes: int
    model_bytes: int
    tile_s: float
    usual_bytes: int = 0


def limits_of(
    bundle: Bundle, num_model_bytes: int, *, max_ram_bytes: int | None = None, tile_timeout_s: float | None = None
) -> Limits:
    """Limits for a model on this machine.

    Args:
        bundle: The model's; it gives the size of a tile.
        num_model_bytes: Size of the file.
        max_ram_bytes: As the user allows; None for `FREE_SHARE` of what is free.
        tile_timeout_s: As the user allows; None for a time that grows with the tile.
    """
    voxels = math.prod(bundle.call_size)
    allowed = max_ram_bytes or int(FREE_SHARE * free_memory_bytes())
    loaded = BASE_BYTES + COPIES_OF_MODEL * num_model_bytes
    plausible, usual = (loaded + floats * 4 * voxels for floats in (FLOATS_PER_VOXEL, USUAL_FLOATS_PER_VOXEL))
    # Who says how much a command may take has decided for the model, too.
    model_bytes = max_ram_bytes or min(allowed, plausible)
    seconds = tile_timeout_s or min(MAX_S, BASE_S + SECONDS_PER_VOXEL * voxels)
    return Limits(allowed, model_bytes, seconds, usual)


def free_memory_bytes() -> int:
    """Memory that this process may still take: the machine's, within its own limits (`ulimit`, `prlimit`) and those of
    its control groups (a container's)."""
    groups = _group_room(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return int(min(_available(Path("/proc/meminfo")), groups, _own_room(Path("/proc/self/status"))))


def _available(meminfo: Path) -> float:
    """`MemAvailable` of Linux; elsewhere half of the physical memory."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def _own_room(status: Path) -> float:
    """The least room below the process's own limits of address space and data; infinite if none."""
    rooms = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        used = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            limit, _ = resource.getrlimit(kind)
            if limit != resource.RLIM_INFINITY and name in used:
                rooms.append(limit - 1024 * int(used[name].split()[0]))
    return max(0.0, min(rooms))


def _group_room(root: Path, membership: Path) -> float:
    """The least room below a limit of memory, from a process's control group up to the root; infinite if none."""
    rooms = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = root / "memory" if controllers else root
            place = top / group.strip("/")
            rooms += [_room_of(folder) for folder in (place, *place.parents) if folder.is_relative_to(top)]
    return max(0.0, min(rooms))


def _room_of(folder: Path) -> float:
    """Limit minus use; pages of files that could be dropped count as room. Version 2 and 1 name the files otherwise."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            text = (folder / limit).read_text().strip()
            if text == "max":
                return math.inf
            return int(text) - int((folder / used).read_text()) + _droppable(folder)
    return math.inf


def _droppable(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(value) for name, value in pairs if name in ("inactive_file", "active_file"))
    return 0
