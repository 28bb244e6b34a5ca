"""Stopping on request: a signal sets a flag, the loop finishes its step, saves and says so."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final

from medssl_cli.base.errors import Exit, InterruptedCleanlyError

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class WaitEndedError(Exception):
    """A signal came while nothing was done that would have to be finished."""


class StopRequest:
    """Whether the process was asked to stop.

    Args:
        outer: Request of the block around this one, which must not miss a signal that this one does not act on.
        is_immediate: Whether a signal ends the work at once, because nothing would have to be saved.
    """

    def __init__(self, outer: "StopRequest | None" = None, *, is_immediate: bool = False) -> None:
        self._outer = outer
        self.signal_number: int | None = None if outer is None else outer.signal_number
        self._is_immediate = is_immediate
        self._is_waiting = False

    @property
    def is_set(self) -> bool:
        """True after the first signal."""
        return self.signal_number is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals: note the first one, here and in the blocks around this one."""
        if self.is_set:
            end_at_once(number, frame)
        request: StopRequest | None = self
        while request is not None:
            request.signal_number = number
            request = request._outer
        if self._is_waiting:
            raise WaitEndedError
        if self._is_immediate:
            self.raise_interrupted("stopped before the first step")

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait that a signal should end at once.

        Raises:
            WaitEndedError: There is or was a signal.
        """
        self._is_waiting = True
        try:
            if self.is_set:
                raise WaitEndedError
            yield
        finally:
            self._is_waiting = False

    def raise_interrupted(self, what: str) -> None:
        """End the command after its state was saved.

        Raises:
            KeyboardInterrupt: It was Ctrl-C.
            InterruptedCleanlyError: `E_INTERRUPTED`.
        """
        if self.signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        raise InterruptedCleanlyError("E_INTERRUPTED", what, hint="run the same command again to go on")


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler for where nothing has to be saved: the exit code is that of a stop on request, not of a signal."""
    os._exit(int(Exit.CTRL_C if number == signal.SIGINT else Exit.INTERRUPTED))


@contextlib.contextmanager
def stop_on_signals(*, is_immediate: bool = False) -> Iterator[StopRequest]:
    """Catch SIGTERM, SIGINT and SIGUSR1 inside the block; a second one of them ends the process at once."""
    handler = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    outer = handler if isinstance(handler, StopRequest) else None
    request = StopRequest(outer, is_immediate=is_immediate)
    previous = {number: signal.signal(number, request.handle) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
