"""How commands get into a PACS: with credentials from the environment only, as arguments are visible to everyone."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medssl_cli.cli.options import require_path
from medssl_cli.cli.terminal import Terminal

if TYPE_CHECKING:
    from medssl_cli.deploy.delivery import Delivery
    from medssl_cli.formats.dicomweb import Credentials, Store


def credentials_for(url: str, terminal: Terminal) -> "Credentials":
    """What `MEDSSL_PACS_TOKEN`, or `MEDSSL_PACS_USER` and `MEDSSL_PACS_PASSWORD_FILE` say.

    Raises:
        UsageError: `E_USAGE`, `E_NOT_FOUND`.
    """
    from medssl_cli.formats.dicomweb import Address, Credentials

    password_file = os.environ.get("MEDSSL_PACS_PASSWORD_FILE")
    credentials = Credentials(
        token=os.environ.get("MEDSSL_PACS_TOKEN", ""),
        user=os.environ.get("MEDSSL_PACS_USER", ""),
        password=require_path(Path(password_file)).read_text().rstrip("\r\n") if password_file else "",
    )
    if not Address.parse(url).is_encrypted:
        terminal.note("warning: the connection to the PACS is not encrypted: images and credentials can be read")
    return credentials


@dataclass(frozen=True)
class StowDestination:
    """A PACS that takes objects by DICOMweb."""

    store: "Store"

    @property
    def name(self) -> str:
        """Its address."""
        return self.store.address.url

    def send(self, file: Path) -> None:
        """Give it an object.

        Raises:
            MedsslError: See `Store.send`.
        """
        self.store.send(file.read_bytes())


@contextlib.contextmanager
def stow_destinations(
    url: str | None, ca_bundle: Path | None, terminal: Terminal, is_stopped: Callable[[], bool]
) -> Iterator[list[StowDestination]]:
    """The PACS of an address; none where none is named.

    Raises:
        UsageError: `E_USAGE`, `E_NOT_FOUND`.
    """
    if url is None:
        yield []
        return
    from medssl_cli.formats.dicomweb import Store

    store = Store(url, credentials_for(url, terminal), ca_bundle=ca_bundle, is_stopped=is_stopped)
    with contextlib.closing(store):
        yield [StowDestination(store)]


@contextlib.contextmanager
def deliveries(
    url: str | None,
    ca_bundle: Path | None,
    out: Path | None,
    terminal: Terminal,
    is_stopped: Callable[[], bool],
    *,
    asks_again: bool,
) -> Iterator["Delivery | None"]:
    """What sends results to a PACS; None where none is named. See `Delivery`.

    Raises:
        UsageError: `E_USAGE`, `E_NOT_FOUND`.
    """
    from medssl_cli.deploy.delivery import Delivery
    from medssl_cli.deploy.job import Where

    with stow_destinations(url, ca_bundle, terminal, is_stopped) as destinations:
        yield Delivery(Where.of(out).folder, destinations, asks_again=asks_again) if destinations else None
