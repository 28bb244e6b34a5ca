"""Loaders: which samples each batch of each process shows, and the processes that read them.

Sample (step, slot) of a data set is the same whatever the number of processes, of readers and of interruptions.
"""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from medssl_cli.work.child import die_with_parent

BATCH_TIMEOUT_S: Final = 600
START_METHOD: Final = "spawn"


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (step, slot) for one of several processes, from a step on.

    Args:
        first_step: Where to begin.
        num_steps: Where to end.
        batch_size: Slots per process.
        rank: This process.
    """

    def __init__(self, first_step: int, num_steps: int, batch_size: int, *, rank: int = 0) -> None:
        self._steps = range(first_step, num_steps)
        self._slots = range(rank * batch_size, (rank + 1) * batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            yield [(step, slot) for slot in self._slots]

    def __len__(self) -> int:
        return len(self._steps)


def step_loader(
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    *,
    first_step: int,
    num_steps: int,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
) -> DataLoader[Any]:
    """Loader of batches `first_step` to `num_steps`; arrays are opened in the workers only.

    Args:
        dataset: Data set by (step, slot).
        collate: Function that stacks samples into a batch.
        first_step: Where to begin.
        num_steps: Where to end.
        batch_size: Samples per process.
        num_workers: Processes that read.
        rank: This process.
    """
    return DataLoader(
        dataset,
        batch_sampler=StepSampler(first_step, num_steps, batch_size, rank=rank),
        collate_fn=collate,
        **worker_options(num_workers),
    )


def worker_options(num_workers: int) -> dict[str, Any]:
    """How every loader starts and ends the processes that read for it."""
    return {
        "num_workers": num_workers,
        "timeout": BATCH_TIMEOUT_S if num_workers else 0,
        "multiprocessing_context": START_METHOD if num_workers else None,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": partial(_serve, parent=os.getpid()) if num_workers else None,
    }


def _serve(number: int, *, parent: int) -> None:
    """A worker ends with its parent and leaves signals that reach the whole group to it.

    It exits with 0 on SIGTERM: with another status torch would interrupt the parent in the middle of a step.
    """
    for name in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    die_with_parent(parent)
