"""A talk that keeps what the engine tells."""

from medssl_cli.base.talk import Silence


class Listener(Silence):
    """Keeps notes, and passes them on, so that the codes in them count as given."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        super().note(text)
        self.notes.append(text)
