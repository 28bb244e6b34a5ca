"""Stopping on request: a signal sets a flag, the loop finishes its step, saves and says so."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from medssl_cli.errors import InterruptedCleanlyError


class StopRequest:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    @property
    def is_set(self) -> bool:
        """True after the first signal."""
        return self.signal_number is not None

    def raise_interrupted(self, what: str) -> None:
        """End the command after its state was saved.

        Raises:
            KeyboardInterrupt: It was Ctrl-C.
            InterruptedCleanlyError: `E_INTERRUPTED`.
        """
        if self.signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        raise InterruptedCleanlyError("E_INTERRUPTED", what, hint="run the same command again to go on")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGTERM, SIGINT and SIGUSR1 inside the block; a second one of them ends the process at once."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.is_set:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        request.signal_number = number

    caught = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    previous = {number: signal.signal(number, handle) for number in caught}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
