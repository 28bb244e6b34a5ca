"""Batches as the training loop wants them: all of one step at once, and a wait for data ends when a signal comes."""

from collections.abc import Iterator
from time import sleep
from typing import Any, Final

from torch.utils.data import DataLoader

from medssl_cli.base.errors import StorageError
from medssl_cli.base.signals import StopRequest, WaitEndedError

SIGNALS_ARRIVE_WITHIN_S: Final = 0.5


class StepBatches:
    """The batches of one step after another.

    Args:
        loader: One batch per micro-step.
        accumulate: Batches per step.
        stop: Asked while waiting.
        is_alone: Whether no other process counts on this one to finish the step.
    """

    def __init__(self, loader: DataLoader[Any], accumulate: int, stop: StopRequest, *, is_alone: bool) -> None:
        self._batches: Iterator[Any] = iter(loader)
        self._accumulate = accumulate
        self._stop = stop
        self._is_alone = is_alone

    def next(self) -> list[Any] | None:
        """Batches of the next step, or None if a signal came first: nothing of the step is done then.

        Raises:
            StorageError: `E_WORKER_CRASH`, a process that reads is gone or does not answer.
        """
        try:
            if not self._is_alone:
                return self._read()
            with self._stop.waiting():
                return self._read()
        except WaitEndedError:
            return None
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            sleep(SIGNALS_ARRIVE_WITHIN_S)  # what ended the reader may be a signal to the whole group
            if self._stop.is_set and self._is_alone:
                return None
            raise StorageError("E_WORKER_CRASH", "a process that reads images is gone or does not answer") from error

    def _read(self) -> list[Any]:
        return [next(self._batches) for _ in range(self._accumulate)]
