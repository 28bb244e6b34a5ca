"""What `medssl infer` makes of its options about many scans: other processes, shares of them, parts of the work."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.options import bytes_of

if TYPE_CHECKING:
    from medssl_cli.deploy.choosing import Part
    from medssl_cli.work.workers import TaskMap


@contextlib.contextmanager
def other_processes(workers: int, cluster: str | None) -> Iterator["TaskMap | None"]:
    """What does several scans at a time; None where this process does one after the other.

    Raises:
        UsageError: `E_USAGE`.
        StorageError: `E_CLUSTER`.
    """
    if cluster is not None and workers > 1:
        raise UsageError("E_USAGE", "--workers are processes here, --cluster has its own", hint="leave one out")
    if cluster is not None:
        from medssl_cli.work.cluster import cluster_workers

        with cluster_workers(cluster) as mapping:
            yield mapping
    elif workers > 1:
        from medssl_cli.deploy.limits import free_memory_bytes
        from medssl_cli.work.workers import Workers

        with Workers(workers, retire_above_bytes=free_memory_bytes() // (2 * workers)) as mapping:
            yield mapping
    else:
        yield None


def shares(threads: int | None, max_ram_gib: float | None, workers: int) -> tuple[int | None, int | None]:
    """Threads and bytes of memory for each of several processes; None where a single one may take what it finds."""
    total_bytes = None if max_ram_gib is None else bytes_of(max_ram_gib)
    if workers == 1:
        return threads, total_bytes
    from medssl_cli.deploy.limits import FREE_SHARE, free_memory_bytes
    from medssl_cli.work.workers import available_cores

    allowed = total_bytes or int(FREE_SHARE * free_memory_bytes())
    return threads or max(1, available_cores() // workers), allowed // workers


def part_of(text: str | None) -> "Part | None":
    """The part of the work that this call does; None for all.

    Raises:
        UsageError: `E_USAGE`.
    """
    from medssl_cli.deploy.choosing import Part

    return None if text is None else Part.parse(text)


def require_one_way(
    watch: Path | None,
    *,
    scans: Sequence[Path],
    channels: Sequence[str],
    part: str | None,
    dry_run: bool,
    page: bool,
) -> None:
    """Refuse options that have no meaning for a folder that is watched.

    Raises:
        UsageError: `E_USAGE`, `E_NOT_FOUND`.
    """
    if watch is None:
        return
    if scans or part is not None or dry_run or any("=" in one for one in channels):
        raise UsageError(
            "E_USAGE", "--watch stands for the scans, all of them", hint="leave out paths, --part and --dry-run"
        )
    if page:
        raise UsageError("E_USAGE", "--page is of a call that ends, and --watch goes on", hint="leave one out")
    if not watch.is_dir():
        raise UsageError("E_NOT_FOUND", f"no folder {watch}", hint="make it first, or check the spelling")
