"""Stopping on request: a signal sets a flag, the loop finishes its step, saves and says so."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from medssl_cli.errors import InterruptedCleanlyError


class StopRequest:
    """Whether the process was asked to stop.

    Args:
        outer: Request of the block around this one, which must not miss a signal that this one does not act on.
    """

    def __init__(self, outer: "StopRequest | None" = None) -> None:
        self._outer = outer
        self.signal_number = None if outer is None else outer.signal_number

    @property
    def is_set(self) -> bool:
        """True after the first signal."""
        return self.signal_number is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals: note the first one, here and in the blocks around this one."""
        if self.is_set:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        request: StopRequest | None = self
        while request is not None:
            request.signal_number = number
            request = request._outer

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
    handler = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    request = StopRequest(handler if isinstance(handler, StopRequest) else None)
    caught = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    previous = {number: signal.signal(number, request.handle) for number in caught}
    try:
        yield request
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
