"""What `medssl ingest` makes of its arguments: paths, a PACS, a tolerance."""

import csv
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.options import require_path
from medssl_cli.cli.pacs_access import credentials_for
from medssl_cli.cli.terminal import Terminal

if TYPE_CHECKING:
    from medssl_cli.formats.given_channels import GivenChannels
    from medssl_cli.ingest.options import PacsSource


def sort_inputs(inputs: Sequence[str], channels: Sequence[str]) -> "tuple[list[Path], str | None, GivenChannels]":
    """Paths, the address of a PACS if one is named, and what is said about channels.

    Args:
        inputs: Paths and addresses.
        channels: Channels, some with a path that is an input too.

    Raises:
        UsageError: `E_NOT_FOUND`; `E_USAGE`, no input or more than one PACS, or something that is no channel.
    """
    from medssl_cli.formats.given_channels import GivenChannels

    given = GivenChannels.parse(channels)
    texts = [*inputs, *map(str, given.paths)]
    if not texts:
        raise UsageError("E_USAGE", "no input is named", hint="name files or folders, or --channel WORD=PATH")
    if not any("://" in text for text in texts):
        return [require_path(Path(text)) for text in texts], None, given
    from medssl_cli.formats.dicomweb import is_pacs_url

    urls = [text for text in texts if is_pacs_url(text)]
    if len(urls) > 1:
        raise UsageError("E_USAGE", "one PACS at a time")
    return [require_path(Path(text)) for text in texts if not is_pacs_url(text)], urls[0] if urls else None, given


def pacs_source(
    url: str | None,
    modality: str | None,
    date_from: str | None,
    date_to: str | None,
    patients: Path | None,
    ca_bundle: Path | None,
    terminal: Terminal,
) -> "PacsSource | None":
    """What to retrieve, with credentials from the environment only: arguments are visible to everyone on a machine.

    Raises:
        UsageError: `E_USAGE`.
    """
    if url is None:
        if date_from or date_to or patients or ca_bundle:
            raise UsageError(
                "E_USAGE", "--from, --to, --patients and --ca-bundle are for a PACS (dicomweb://HOST/PATH)"
            )
        return None
    from medssl_cli.formats.dicomweb import PacsQuery
    from medssl_cli.ingest.options import PacsSource

    credentials = credentials_for(url, terminal)
    wanted = require_path(patients).read_text(encoding="utf-8").split("\n") if patients else []
    listed = tuple(line.strip() for line in wanted if line.strip())
    return PacsSource(url, PacsQuery(modality, _date(date_from), _date(date_to), listed), credentials, ca_bundle)


def _date(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise UsageError("E_USAGE", "a date is written YYYY-MM-DD") from error


def names_of(text: str | None) -> tuple[str, ...] | None:
    """Names separated by commas; one that holds a comma stands in double quotes."""
    return tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True))) if text else None


def tolerance(text: str) -> Callable[[int], float]:
    """How many of so many files may be refused without an exit code: "10" or "2%".

    Raises:
        UsageError: `E_USAGE`.
    """
    number = text.removesuffix("%")
    if not number.replace(".", "", 1).isdigit():
        raise UsageError("E_USAGE", "--max-quarantine is a number of files, or a share such as 2%")
    value = float(number)
    return (lambda seen: seen * value / 100) if text.endswith("%") else (lambda seen: value)
