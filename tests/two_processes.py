"""What two processes of one group compute, for comparison with one.

The two live as long as the tests of this process, and are forks of one that has imported torch.
"""

import atexit
import functools
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tests import warm
from tests.warm import WarmChild

WORLD = 2
LIMIT_S = 240


def results_of_each(folder: Path, compute: Callable[[int], Any]) -> list[Any]:
    """What a function of the rank returns in each of two processes that talk over gloo, in order of rank.

    Args:
        folder: For what they exchange.
        compute: Importable; returns tensors and containers of them.
    """
    pair = _pair()
    try:
        for _, connection in pair:
            connection.send((str(folder), compute))
        for _, connection in pair:
            assert connection.poll(LIMIT_S), "a process has not answered"
            assert connection.recv() == "done"
    except (AssertionError, EOFError, OSError):
        _end(pair)
        _pair.cache_clear()
        raise
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@functools.cache
def _pair() -> tuple[tuple[WarmChild, Connection], ...]:
    found = tuple(warm.start_child("tests.two_processes", rank, kind="training") for rank in range(WORLD))
    atexit.register(_end, found)
    return found


def _end(pair: tuple[tuple[WarmChild, Connection], ...]) -> None:
    for process, connection in pair:
        connection.close()
        process.kill()
        process.wait()


def serve(descriptor: int, _: int, rank: int) -> None:
    """Compute what is asked for, until nobody can ask any more."""
    connection = Connection(descriptor)
    while True:
        try:
            folder, compute = connection.recv()
        except EOFError:
            return
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120)
        )
        torch.save(compute(rank), f"{folder}/{rank}.pt")
        distributed.destroy_process_group()
        connection.send("done")
