"""Other DICOM nodes: who may send, and where results go."""

import contextlib
import logging
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from medssl_cli.base.errors import InputError, StorageError, UsageError
from medssl_cli.formats.store_status import is_for_good

CONNECT_TIMEOUT_S: Final = 20.0
ANSWER_TIMEOUT_S: Final = 120.0
_AE_TITLE: Final = re.compile(r"[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?")
"""One to sixteen characters, no backslash, no space at either end (PS3.5 section 6.2)."""
_SYNTAXES: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
"""Transfer syntaxes of which a node may choose either one; what is compressed is sent as it is."""
_NOT_SUPPORTED: Final = (3, 4)
"""Results of a presentation context: its kind of object, or its transfer syntax, is not taken (PS3.8 table 9-18)."""

# Its messages quote what others send.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Peer:
    """A DICOM node by its AE title.

    Args:
        title: AE title.
        host: Where it takes results; "" if it only sends.
        port: There.
        is_encrypted: Talk TLS to it.
    """

    title: str
    host: str = ""
    port: int = 0
    is_encrypted: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `TITLE`, `TITLE=HOST:PORT` or `TITLE=tls://HOST:PORT`.

        Raises:
            UsageError: `E_USAGE`.
        """
        title, separator, place = text.partition("=")
        bare = place.removeprefix("tls://")
        host, _, port = bare.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        is_place = bool(host) and host.isprintable() and port.isdecimal() and 0 < int(port[:6]) < 2**16
        if not is_title(title) or (separator and not is_place):
            raise UsageError(
                "E_USAGE", "--peer is no DICOM node", hint="TITLE, TITLE=HOST:PORT or TITLE=tls://HOST:PORT"
            )
        if not separator:
            return cls(title)
        return cls(title, host, int(port), place.startswith("tls://"))


def is_title(text: str) -> bool:
    """Whether a text is an AE title."""
    return _AE_TITLE.fullmatch(text) is not None


def require_title(text: str) -> str:
    """An AE title as it is.

    Raises:
        UsageError: `E_USAGE`.
    """
    if not is_title(text):
        raise UsageError("E_USAGE", "--title is no AE title", hint="1 to 16 characters, no backslash")
    return text


@dataclass(frozen=True)
class PeerDestination:
    """A DICOM node that takes results by C-STORE.

    Args:
        peer: Peer with its address.
        own_title: AE title that sends.
        context: Context for TLS.
    """

    peer: Peer
    own_title: str
    context: ssl.SSLContext | None = None

    @property
    def name(self) -> str:
        """Its AE title and address."""
        return f"{self.peer.title}@{self.peer.host}:{self.peer.port}"

    def send(self, file: Path) -> None:
        """Give it an object.

        Raises:
            StorageError: `E_PACS`, it cannot be reached, or ends the association; `E_STORE_REFUSED`, it does not take
                the object now.
            InputError: `E_STORE_REFUSED`, it will not take the object.
        """
        from pydicom import dcmread
        from pynetdicom import AE

        dataset = dcmread(file)
        node = AE(ae_title=self.own_title)
        node.connection_timeout = CONNECT_TIMEOUT_S
        node.acse_timeout = node.dimse_timeout = node.network_timeout = ANSWER_TIMEOUT_S
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        node.add_requested_context(dataset.SOPClassUID, list(_SYNTAXES) if syntax in _SYNTAXES else syntax)
        tls: Any = (self.context, self.peer.host) if self.peer.is_encrypted and self.context is not None else None
        with contextlib.suppress(OSError):
            association = node.associate(self.peer.host, self.peer.port, ae_title=self.peer.title, tls_args=tls)
            if association.is_established:
                try:
                    self._store(association, dataset)
                finally:
                    association.release()
                return
            if any(context.result in _NOT_SUPPORTED for context in association.rejected_contexts):
                raise InputError("E_STORE_REFUSED", f"{self.peer.title} takes no objects of this kind")
        raise StorageError("E_PACS", f"{self.peer.title} cannot be reached, or refuses the association")

    def _store(self, association: Any, dataset: Any) -> None:
        try:
            status = association.send_c_store(dataset)
        except ValueError as error:
            raise InputError("E_STORE_REFUSED", f"{self.peer.title} takes no objects of this kind") from error
        except RuntimeError as error:  # it has ended the association meanwhile
            raise StorageError("E_PACS", f"{self.peer.title} ended the association") from error
        if "Status" not in status:
            raise StorageError("E_PACS", f"{self.peer.title} ended the association")
        number = int(status.Status)
        if number and not 0xB000 <= number <= 0xBFFF:
            kind = InputError if is_for_good(number) else StorageError
            raise kind("E_STORE_REFUSED", f"{self.peer.title} answers with status {number:#06x}")
