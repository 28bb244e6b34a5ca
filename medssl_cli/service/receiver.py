"""The DICOM receiver: C-ECHO, and C-STORE into the spool. An object is acknowledged when it is safe on disk."""

import contextlib
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from medssl_cli.base.errors import InputError, StorageError, UsageError
from medssl_cli.formats.dicom.window import DEFLATED
from medssl_cli.formats.dicomweb.pacs import uids_of
from medssl_cli.formats.dicomweb.query import is_uid
from medssl_cli.service.peers import Peer
from medssl_cli.service.spool import Spool, name_of

SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
CANNOT_UNDERSTAND: Final = 0xC000
"""Statuses of a C-STORE (PS3.4 table B.2-1)."""
MAX_ASSOCIATIONS: Final = 16
IDLE_S: Final = 60.0
_UNREAD: Final = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.204",
                  "1.2.840.10008.1.2.4.205", DEFLATED)  # fmt: skip
"""Transfer syntaxes whose pixels lie elsewhere, or that unpack to anything."""


@dataclass(frozen=True)
class ReceiverLimits:
    """What may arrive.

    Args:
        max_waiting: Studies that are not answered for; a further study is refused until one is.
        min_free_bytes: Room that stays free on the disk.
    """

    max_waiting: int = 1000
    min_free_bytes: int = 5 * 2**30


@dataclass
class Receiver:
    """Takes objects from those who may send.

    Args:
        spool: Where they are filed.
        title: AE title; those who call another one are refused.
        peers: Who may send.
        limits: What is refused with a DICOM status until there is room again.
        context: Context for TLS.
        counts: What happened so far, for the metrics.
    """

    spool: Spool
    title: str
    peers: Sequence[Peer]
    limits: ReceiverLimits = field(default_factory=ReceiverLimits)
    context: ssl.SSLContext | None = None
    counts: Counter[str] = field(default_factory=Counter)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def running(self, host: str, port: int) -> Iterator[int]:
        """Listen inside the block; yields the port, which the system chooses for 0.

        Raises:
            UsageError: `E_PORT`.
        """
        from pynetdicom import AE, AllStoragePresentationContexts, evt
        from pynetdicom._globals import ALL_TRANSFER_SYNTAXES

        node = AE(ae_title=self.title)
        node.require_called_aet = True
        node.require_calling_aet = [peer.title for peer in self.peers]
        node.maximum_associations = MAX_ASSOCIATIONS
        node.acse_timeout = node.dimse_timeout = node.network_timeout = IDLE_S
        node.add_supported_context("1.2.840.10008.1.1")  # Verification: C-ECHO
        syntaxes = [one for one in ALL_TRANSFER_SYNTAXES if one not in _UNREAD]
        for context in AllStoragePresentationContexts:
            node.add_supported_context(context.abstract_syntax, syntaxes)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_REJECTED, self._rejected)]
        try:
            server = node.start_server((host, port), block=False, ssl_context=self.context, evt_handlers=handlers)
        except OSError as error:
            raise UsageError("E_PORT", f"cannot listen on port {port} ({error.strerror})") from error
        try:
            yield int(server.server_address[1])
        finally:
            node.shutdown()

    def _rejected(self, event: Any) -> None:
        self.count("rejected_associations")

    def count(self, what: str, number: int = 1) -> None:
        """Add to the counts."""
        with self._counting:
            self.counts[what] += number

    def _store(self, event: Any) -> int:
        """Answer a C-STORE with a status."""
        try:
            data = event.encoded_dataset()
            status = self.take(data, str(event.assoc.requestor.ae_title).strip())
        except Exception:  # noqa: BLE001 - the boundary of one object, which may hold anything
            status = CANNOT_UNDERSTAND
        self.count({SUCCESS: "stored_objects", OUT_OF_RESOURCES: "refused_objects"}.get(status, "unread_objects"))
        return status

    def take(self, data: bytes, sender: str) -> int:
        """File an object; returns its status."""
        try:
            study, _, instance = uids_of(data)
        except InputError:
            return CANNOT_UNDERSTAND
        if not (is_uid(study) and is_uid(instance)):
            return CANNOT_UNDERSTAND
        if self.spool.free_bytes() - len(data) < self.limits.min_free_bytes:
            return OUT_OF_RESOURCES
        if self.spool.num_waiting >= self.limits.max_waiting and self.spool.is_new(name_of(study)):
            return OUT_OF_RESOURCES
        try:
            self.spool.receive(study, instance, data, sender)
        except StorageError:
            return OUT_OF_RESOURCES
        self.count("stored_bytes", len(data))
        return SUCCESS
