"""Failures of tasks as values: what a child process returns instead of raising, and what its end means."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TypeVar

from medssl_cli.base.errors import MarkError, MedsslError, StorageError
from medssl_cli.work.child import OUT_OF_MEMORY

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """Why a task has no result.

    Args:
        code: Stable code.
        message: What happened, with numbers.
        hint: What to do about it.
        is_fatal: Ends the whole ingest: the disk, not the input, is at fault.
        row: Row of a label, where what is at fault stands in its file; 0 if it is none of its rows.
    """

    code: str
    message: str
    hint: str = ""
    is_fatal: bool = False
    row: int = 0


def as_values(function: Callable[[Task], Result]) -> Callable[[Task], Result | Failure]:
    """Return failures instead of raising them; silence libraries, whose warnings quote headers and paths."""

    @wraps(function)
    def guarded(task: Task) -> Result | Failure:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function(task)
        except MedsslError as error:
            row = error.row if isinstance(error, MarkError) else 0
            return Failure(error.code, error.message, error.hint, is_fatal=isinstance(error, StorageError), row=row)
        except MemoryError:
            return Failure("E_TOO_BIG", "the image does not fit into the memory of a worker")

    return guarded


def crash(failure: str) -> Failure:
    """What the end of a child means for its task: a decoder that died or hung, or a fault of ours (its class)."""
    if failure == OUT_OF_MEMORY:
        return Failure("E_WORKER_OOM", "the process that read it ran out of memory")
    if failure.startswith(("died", "timed out")):
        return Failure("E_DECODER_CRASH", f"the process that read it {failure}")
    return Failure("E_WORKER_CRASH", f"the process that read it failed with {failure}", "please report this")
