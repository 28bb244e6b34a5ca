"""Objects on their way to a PACS: what has arrived is recorded, what has not is sent the next time.

What a place will never take, as a kind of object that it does not know, is recorded too, and not sent for ever.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from medssl_cli.base.errors import InputError, InterruptedCleanlyError, MedsslError
from medssl_cli.deploy.results import NOT_SENT, NOT_TAKEN, ScanResult

TAKEN: Final = "taken"
_REFUSED: Final = "E_STORE_REFUSED"


class Destination(Protocol):
    """A place that takes DICOM objects."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def send(self, file: Path) -> None:
        """Give it an object; when this returns, it has it.

        Raises:
            InputError: `E_STORE_REFUSED`, it will not take this object, however often it is sent.
            MedsslError: It has not taken it yet.
        """


@dataclass(frozen=True)
class Delivery:
    """Sends the DICOM objects of results to places, each once as far as the report knows.

    Args:
        folder: Outputs lie there.
        destinations: All of them get everything.
        asks_again: What a place would not take for good is sent once more, as by a command that is typed again.
        refused: Told of each object that a place will not take.
    """

    folder: Path
    destinations: Sequence[Destination]
    asks_again: bool = False
    refused: Callable[[], None] = lambda: None

    def __call__(self, result: ScanResult) -> ScanResult:
        """A result, with what became of its way.

        Raises:
            InterruptedCleanlyError: `E_INTERRUPTED`.
        """
        names = [name for name in result.outputs if name.endswith(".dcm")]
        due = [one for one in self.destinations if one.name not in result.sent]
        if not names or not due:
            return result
        answers, problems = dict(result.delivered), []
        for destination in due:
            answers[destination.name] = self._known(result.delivered.get(destination.name, {}))
            missing = [name for name in names if name not in answers[destination.name]]
            problems += self._send(destination, missing, answers[destination.name])
        complete = [place for place, told in answers.items() if all(told.get(name) == TAKEN for name in names)]
        return _told(
            result,
            sent=tuple(dict.fromkeys((*result.sent, *complete))),
            delivered={place: told for place, told in answers.items() if told and place not in complete},
            problems=problems,
        )

    def _known(self, answers: Mapping[str, str]) -> dict[str, str]:
        """Answers of a place that stand."""
        return {name: answer for name, answer in answers.items() if answer == TAKEN or not self.asks_again}

    def _send(self, destination: Destination, names: Sequence[str], answers: dict[str, str]) -> list[str]:
        """Give a place objects, one after the other until it is away; returns why some may still be on their way.

        Args:
            destination: The place.
            names: Names of the objects.
            answers: What it says of each is added.
        """
        problems = []
        for name in names:
            try:
                destination.send(self.folder / name)
                answers[name] = TAKEN
            except InputError as error:
                if error.code == _REFUSED:
                    answers[name] = f"{error.code}: {error.message}"
                    self.refused()
                else:
                    problems.append(f"{error.code}: {error.message}")
            except MedsslError as error:
                if isinstance(error, InterruptedCleanlyError) and error.code == "E_INTERRUPTED":
                    raise
                problems.append(f"{error.code}: {error.message}")
                if error.code != _REFUSED:
                    break
            except OSError as error:
                problems.append(f"E_IO: an output cannot be read ({type(error).__name__})")
        return list(dict.fromkeys(problems))


def _told(
    result: ScanResult, *, sent: tuple[str, ...], delivered: dict[str, dict[str, str]], problems: Sequence[str]
) -> ScanResult:
    """A result that says what became of its way; itself where that is known."""
    refusals = [f"{NOT_TAKEN}: {name}: {answer}" for place in delivered.values()
                for name, answer in place.items() if answer != TAKEN]  # fmt: skip
    others = [one for one in result.message.split("; ") if one and not one.startswith((NOT_SENT, NOT_TAKEN))]
    codes = [one for one in result.warnings if one not in (NOT_SENT, NOT_TAKEN)]
    told = replace(
        result,
        sent=sent,
        delivered=delivered,
        warnings=(*codes, *([NOT_TAKEN] if refusals else []), *([NOT_SENT] if problems else [])),
        message="; ".join((*others, *refusals, *(f"{NOT_SENT}: {problem}" for problem in problems))),
    )
    return result if told == result else told
