"""What two processes of one group compute, for comparison with one."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

WORLD = 2


def results_of_each(folder: Path, compute: Callable[[int], Any]) -> list[Any]:
    """What a function of the rank returns in each of two processes that talk over gloo, in order of rank.

    Args:
        folder: For what they exchange.
        compute: Importable; returns tensors and containers of them.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(rank, str(folder), compute)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _work(rank: int, folder: str, compute: Callable[[int], Any]) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120)
    )
    torch.save(compute(rank), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
