"""Processes that train together: started by ourselves, torchrun or SLURM, they fail together and only one speaks."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar

import torch

from medssl_cli.base.errors import MedsslError, StorageError, UsageError
from medssl_cli.work.child import die_with_parent

Strategy = Literal["auto", "ddp", "fsdp"]
T = TypeVar("T")
TIMEOUT: Final = timedelta(minutes=30)
CHILDREN_END_WITHIN_S: Final = 20.0
BUSY: Final = "busy"
PARTED: Final = "medssl/parted"
WORDS_OF_A_LOST_PEER: Final = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "broken pipe")


@dataclass(frozen=True)
class Spread:
    """Over how much hardware a training is spread: a matter of the machine, never of the recipe.

    Args:
        num_devices: Number of devices per machine.
        num_nodes: Machines.
        strategy: `ddp` keeps the network on every device, `fsdp` a part of it on each; `auto` is `ddp`.
    """

    num_devices: int = 1
    num_nodes: int = 1
    strategy: Strategy = "auto"

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.num_devices * self.num_nodes


class Processes:
    """This process among those that train together.

    Args:
        fabric: Launched.
    """

    def __init__(self, fabric: Any) -> None:
        self.fabric = fabric
        self.size: int = fabric.world_size
        self.rank: int = fabric.global_rank

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share_of(self, batch_size: int, option: str = "data.batch_size") -> int:
        """Samples of a batch that each process computes.

        Args:
            batch_size: Images per step of all processes together.
            option: Where a recipe sets it.

        Raises:
            UsageError: `E_USAGE`, they cannot be dealt out evenly.
        """
        if batch_size % self.size:
            raise UsageError(
                "E_USAGE",
                f"{option} {batch_size} cannot be dealt out to {self.size} processes",
                hint="it counts what a step sees on all devices together: make it a multiple of their number",
            )
        return batch_size // self.size

    def main_first(self, work: Callable[[Callable[[], None]], T]) -> T:
        """Let the main process do work that writes files, then the others, which find it done.

        Args:
            work: Gets a function to call now and then, at least every few minutes: it keeps the others waiting.

        Raises:
            MedsslError: The main process's, in every process.
        """
        if self.size == 1:
            return work(_nothing)
        if not self.is_main:
            while (outcome := self.fabric.broadcast(None)) == BUSY:
                pass
            if isinstance(outcome, MedsslError):
                raise shared(outcome)
            return work(_nothing)
        try:
            result = work(lambda: self.fabric.broadcast(BUSY))
        except MedsslError as error:
            self.fabric.broadcast(error)
            raise shared(error) from None
        except BaseException:
            self.fabric.broadcast(_lost())
            raise
        self.fabric.broadcast(None)
        return result

    def of_main(self, work: Callable[[], T]) -> T:
        """What the main process finds, in every process."""
        if self.size == 1:
            return work()
        found: T = self.fabric.broadcast(work() if self.is_main else None)
        return found

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Numbers averaged over processes; all must bring the same names."""
        if self.size == 1:
            return dict(values)
        numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=self.fabric.device)
        torch.distributed.all_reduce(numbers)
        return dict(zip(values, (numbers / self.size).tolist(), strict=True))

    def from_all(self, words: list[str]) -> list[str]:
        """Words of all processes, by rank."""
        if self.size == 1:
            return words
        lists: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(lists, words)
        return [word for part in lists for word in part]


def shared(error: MedsslError) -> MedsslError:
    """Mark an error that every process raises, so that only the main one says it."""
    error.is_shared = True
    return error


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Around what every process does alike: if it fails, it fails in all of them."""
    try:
        yield
    except MedsslError as error:
        raise shared(error) from error.__cause__


@contextlib.contextmanager
def launched(fabric: Any) -> Iterator[Processes]:
    """Start the processes and end them together.

    Raises:
        UsageError: `E_DEVICE`, the cluster gave other resources than the command asks for.
        StorageError: `E_PROCESS_LOST`, another process ended; what was saved stays.
    """
    try:
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise UsageError("E_DEVICE", f"the processes cannot be started: {str(error).splitlines()[0][:200]}") from error
    processes = Processes(fabric)
    if processes.size > 1 and fabric.local_rank > 0:
        die_with_parent(os.getppid())
    try:
        yield processes
        _part(processes)
    except MedsslError as error:
        if error.is_shared:
            _part(processes)
        raise
    except RuntimeError as error:
        if processes.size > 1 and any(word in str(error).lower() for word in WORDS_OF_A_LOST_PEER):
            raise shared(_lost()) from error
        raise
    finally:
        _end_children(fabric)


def _part(processes: Processes) -> None:
    """Leave together, the main process last.

    Without the barrier some processes abort after success (seen in 3 of 8 runs with gloo). The main process may hold
    the store that the others still ask while they take their groups down, so it waits until they have.
    """
    if processes.size == 1:
        return
    with contextlib.suppress(RuntimeError):
        store = torch.distributed.distributed_c10d._get_default_store()
        processes.fabric.barrier()
        torch.distributed.destroy_process_group()
        deadline = time.monotonic() + CHILDREN_END_WITHIN_S
        parted = store.add(PARTED, 0 if processes.is_main else 1)
        while processes.is_main and parted < processes.size - 1 and time.monotonic() < deadline:
            time.sleep(0.02)
            parted = store.add(PARTED, 0)


def _end_children(fabric: Any) -> None:
    """Children that this process started end with it, also those that wait for it on a device."""
    for child in getattr(fabric.strategy.launcher, "procs", []):
        try:
            child.wait(CHILDREN_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            child.kill()


def _lost() -> StorageError:
    return StorageError("E_PROCESS_LOST", "another process of this training ended before its time")


def _nothing() -> None:
    return None
