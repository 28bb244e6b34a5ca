"""How the engine tells what it does, without knowing about terminals."""

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
