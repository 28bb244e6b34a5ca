"""Results on their way to a PACS: what has arrived is recorded, what has not is sent the next time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from medssl_cli.base.errors import InterruptedCleanlyError, MedsslError
from medssl_cli.deploy.results import ScanResult

NOT_SENT: Final = "W_NOT_SENT"


class Destination(Protocol):
    """A place that takes DICOM objects."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def send(self, files: Sequence[Path]) -> None:
        """Give it files; when this returns, it has them all.

        Raises:
            MedsslError: It has not taken them.
        """


@dataclass(frozen=True)
class Delivery:
    """Sends the DICOM objects of results to places, each once as far as the report knows.

    Args:
        folder: Outputs lie there.
        destinations: All of them get everything.
    """

    folder: Path
    destinations: Sequence[Destination]

    def __call__(self, result: ScanResult) -> ScanResult:
        """A result, with what became of its way.

        Raises:
            InterruptedCleanlyError: `E_INTERRUPTED`.
        """
        files = [self.folder / name for name in result.outputs if name.endswith(".dcm")]
        due = [one for one in self.destinations if one.name not in result.sent]
        if not files or not due:
            return result
        sent, problems = list(result.sent), []
        for destination in due:
            try:
                destination.send(files)
                sent.append(destination.name)
            except MedsslError as error:
                if isinstance(error, InterruptedCleanlyError) and error.code == "E_INTERRUPTED":
                    raise
                problems.append(f"{NOT_SENT}: {error.code}: {error.message}")
            except OSError as error:
                problems.append(f"{NOT_SENT}: E_IO: an output cannot be read ({type(error).__name__})")
        others = [one for one in result.message.split("; ") if one and not one.startswith(NOT_SENT)]
        codes = [one for one in result.warnings if one != NOT_SENT]
        return replace(
            result,
            sent=tuple(sent),
            warnings=(*codes, *([NOT_SENT] if problems else [])),
            message="; ".join((*others, *problems)),
        )
