"""How the engine tells what it does, without knowing about terminals."""

from collections.abc import Callable
from typing import Protocol


class Talk(Protocol):
    """Receives notes and progress; the command line draws them, tests ignore them."""

    def note(self, text: str) -> None:
        """One line worth keeping."""

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Part `what` of the work is at `done` of `total`."""


class Silence:
    """A `Talk` that nobody hears."""

    def note(self, text: str) -> None:
        """Drop it."""

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Drop it."""


class KeepWaiting:
    """A `Talk` that lets other processes wait on whenever there is progress.

    Args:
        talk: Told everything.
        keep_waiting: Called with all progress.
    """

    def __init__(self, talk: Talk, keep_waiting: Callable[[], None]) -> None:
        self._talk, self._keep_waiting = talk, keep_waiting

    def note(self, text: str) -> None:
        """Pass it on."""
        self._talk.note(text)

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Pass it on."""
        self._talk.progress(what, done, total, detail)
        self._keep_waiting()
