"""Who started this process: the user, medssl itself, torchrun or SLURM. They say so in the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from medssl_cli.base.errors import Exit, MedsslError

RANKS: Final = ("RANK", "SLURM_PROCID")
SAID_BY_MAIN: Final = (Exit.USAGE, Exit.NOTHING)


def is_main() -> bool:
    """Whether this process speaks: the only one, or the first of several that train together."""
    return _rank() == 0


def started_devices() -> int:
    """Processes per machine that torchrun or SLURM started; 1 if neither did."""
    nodes = started_nodes()
    return _number("LOCAL_WORLD_SIZE") or max(1, _number("SLURM_NTASKS") // nodes)


def started_nodes() -> int:
    """Machines on which torchrun or SLURM started processes; 1 if neither did."""
    if _number("LOCAL_WORLD_SIZE"):
        return max(1, _number("WORLD_SIZE") // _number("LOCAL_WORLD_SIZE"))
    return max(1, _number("SLURM_NNODES")) if _number("SLURM_NTASKS") > 1 else 1


@contextmanager
def main_speaks() -> Iterator[None]:
    """What all processes fail with is said by the main one; the others end without a word.

    A child that medssl started ends with 0 then: with another status its watcher kills the main process, which may
    still be writing.
    """
    try:
        yield
    except MedsslError as error:
        if is_main() or not (error.is_shared or error.exit_code in SAID_BY_MAIN):
            raise
        was_started_by_us = _number("LOCAL_RANK") > 0 and not any(name in os.environ for name in RANKS)
        raise typer.Exit(0 if was_started_by_us else int(error.exit_code)) from None


def _rank() -> int:
    """Place among all processes; where medssl starts them, at least whether it is the first."""
    started = [_number(name) for name in RANKS if name in os.environ]
    return started[0] if started else _number("NODE_RANK") or _number("LOCAL_RANK")


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else 0
