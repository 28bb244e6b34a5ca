"""The service as a whole: receive, answer, send, tell of health, until a stop is requested."""

import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import StorageError, UsageError
from medssl_cli.deploy.delivery import Destination
from medssl_cli.deploy.infer import InferSettings
from medssl_cli.service.monitor import monitored
from medssl_cli.service.peers import Peer, PeerDestination
from medssl_cli.service.receiver import Receiver, ReceiverLimits
from medssl_cli.service.spool import Spool
from medssl_cli.service.worker import Worker

PAUSE_S: Final = 0.5
EXPIRE_EVERY_S: Final = 60.0
DISK_RETRY_S: Final = 60.0
HANDSHAKE_S: Final = 10.0
COUNTED: Final = (
    "stored_objects", "stored_bytes", "refused_objects", "unread_objects", "rejected_associations", "answered_studies",
    "answered_scans", "refused_scans", "unwritten_objects", "untaken_objects", "failed_studies", "postponed_studies",
    "storage_errors", "expired_studies",
)  # fmt: skip
"""What the metrics tell of from the start on."""


@dataclass(frozen=True)
class ListenSettings:
    """How the service stands in its network, and what it keeps.

    Args:
        spool: Folder of the queue.
        title: AE title of the service.
        host: Address to listen on.
        port: There; 0 lets the system choose.
        peers: Who may send, some with an address for results.
        send_to: AE titles of peers that get all results, instead of those who have sent the images.
        monitor_port: Port for health and metrics, on a loopback address.
        settle_s: A study is complete when nothing of it has arrived for so long.
        keep_s: How long images and results of a study are kept once it is answered for.
        limits: What is refused until there is room again.
        server_context: TLS for those who send.
        client_context: TLS for those who get results.
    """

    spool: Path
    title: str
    host: str
    port: int
    peers: Sequence[Peer]
    send_to: Sequence[str] = ()
    monitor_port: int = 0
    settle_s: float = 30.0
    keep_s: float = 24 * 3600.0
    limits: ReceiverLimits = field(default_factory=ReceiverLimits)
    server_context: ssl.SSLContext | None = None
    client_context: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        titles = {peer.title for peer in self.peers}
        if not titles:
            raise UsageError("E_USAGE", "nobody may send", hint="--peer TITLE=HOST:PORT names a node that may")
        if len(titles) < len(self.peers):
            raise UsageError("E_USAGE", "one AE title is named twice", hint="leave one --peer out")
        addressed = {peer.title for peer in self.peers if peer.host}
        if not set(self.send_to) <= addressed:
            raise UsageError("E_USAGE", "--send-to names no --peer with an address", hint="--peer TITLE=HOST:PORT")
        if any(peer.is_encrypted for peer in self.peers) and self.client_context is None:
            raise UsageError("E_USAGE", "a --peer is tls://, and there are no certificates", hint="--tls-ca FILE")

    @property
    def unanswered(self) -> list[str]:
        """AE titles of those who may send and get nothing back."""
        return [] if self.send_to else [peer.title for peer in self.peers if not peer.host]

    def destinations(self, senders: Sequence[str]) -> list[Destination]:
        """Nodes that get the results of a study."""
        wanted = self.send_to or senders
        peers = [peer for peer in self.peers if peer.title in wanted and peer.host]
        return [PeerDestination(peer, self.title, self.client_context) for peer in peers]


def listen(
    settings: ListenSettings,
    models: Sequence[tuple[Path, tuple[str, ...]]],
    how: InferSettings,
    *,
    others: Sequence[Destination] = (),
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Work until a stop is requested; what is not answered for then is answered for after the next start.

    Args:
        settings: Settings of the service.
        models: Files of models, each with the rules about its series.
        how: How scans are done, and when to stop.
        others: Further places that get all results.
        say: Told what happens.

    Raises:
        UsageError: `E_SPOOL_BUSY`, `E_PORT`, `E_USAGE`; see `InferSettings.opened`.
        GateError: `E_MODEL_CORRUPT`.
        StorageError: `E_IO`.
    """
    spool = Spool(settings.spool, settings.settle_s)
    receiver = Receiver(spool, settings.title, settings.peers, settings.limits, settings.server_context)
    worker = Worker(
        spool,
        models,
        how,
        lambda senders: [*settings.destinations(senders), *others],
        receiver.count,
        say,
    )
    service = _Service(settings, spool, receiver, worker, how.is_stopped, say)
    if settings.unanswered and not others:
        titles = ", ".join(settings.unanswered)
        say(f"warning: results of what {titles} sends are sent nowhere: --peer TITLE=HOST:PORT, --send-to or --stow")
    with spool.held():
        worker.open_models()
        try:
            service.run()
        finally:
            worker.close()


@dataclass
class _Service:
    """The loop of the service."""

    settings: ListenSettings
    spool: Spool
    receiver: Receiver
    worker: Worker
    is_stopped: Callable[[], bool]
    say: Callable[[str], None]
    is_healthy: bool = True
    expired_at: float = 0.0

    def run(self) -> None:
        """Receive in threads, answer in this one: whoever calls a model must live as long as its process."""
        settings = self.settings
        with (
            self.receiver.running(settings.host, settings.port) as port,
            monitored(settings.monitor_port, self.numbers, is_healthy=lambda: self.is_healthy) as monitor_port,
        ):
            self.say(
                f"{settings.title} listens on {settings.host}:{port}, health on 127.0.0.1:{monitor_port}; "
                f"{self.spool.num_waiting} studies wait"
            )
            while not self.is_stopped():
                due = self.spool.due()
                if due:
                    self._answer(due[0])
                else:
                    time.sleep(min(PAUSE_S, max(0.02, settings.settle_s / 4)))
                self._expire()
        self.say(f"stopped; {self.spool.num_waiting} studies wait for the next start")

    def _answer(self, study: str) -> None:
        """One study; a disk that refuses is no reason to stop receiving what still fits."""
        try:
            self.worker.answer(study)
            self.is_healthy = True
        except StorageError as error:
            self.is_healthy = False
            self.receiver.count("storage_errors")
            self.say(f"study {study[:12]}: {error.code}: {error.message}; tried again in {DISK_RETRY_S:.0f} s")
            self.spool.postpone(study, DISK_RETRY_S)

    def _expire(self) -> None:
        if self.expired_at and self.spool.clock() - self.expired_at < EXPIRE_EVERY_S:
            return
        self.expired_at = self.spool.clock()
        if number := self.spool.expire(self.settings.keep_s):
            self.receiver.count("expired_studies", number)

    def numbers(self) -> Mapping[str, float]:
        """For health and metrics."""
        counted = {f"{name}_total": self.receiver.counts[name] for name in COUNTED}
        waiting = {f"{name}_studies": number for name, number in self.spool.states().items()}
        room = {"disk_free_bytes": self.spool.free_bytes(), "oldest_waiting_seconds": self.spool.oldest_s()}
        return {**counted, **waiting, **room}


class _ImpatientContext(ssl.SSLContext):
    """TLS for a server that shakes one hand at a time: nobody may keep all others waiting."""

    def wrap_socket(self, sock: Any, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """As the library, within `HANDSHAKE_S`."""
        sock.settimeout(HANDSHAKE_S)
        wrapped = super().wrap_socket(sock, *arguments, **options)
        wrapped.settimeout(None)
        return wrapped


def tls_contexts(
    certificate: Path | None, key: Path | None, authority: Path | None
) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """TLS for those who send and for those who get results; both show a certificate of the authority.

    Args:
        certificate: Certificate of this service, PEM.
        key: Its private key, PEM.
        authority: Certificates that others' are signed with, PEM; without it results are sent without TLS, and
            those who send are not asked for a certificate.

    Raises:
        UsageError: `E_USAGE`, `E_NOT_FOUND`.
    """
    if (certificate is None) != (key is None):
        raise UsageError("E_USAGE", "a certificate needs its key", hint="--tls-cert FILE --tls-key FILE")
    for path in (certificate, key, authority):
        if path is not None and not path.is_file():
            raise UsageError("E_NOT_FOUND", f"no file {path}", hint="check the spelling")
    try:
        server = client = None
        if certificate is not None and key is not None:
            server = _ImpatientContext(ssl.PROTOCOL_TLS_SERVER)
            server.minimum_version = ssl.TLSVersion.TLSv1_2
            server.load_cert_chain(certificate, key)
        if authority is not None:
            client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(authority))
            if certificate is not None and key is not None:
                client.load_cert_chain(certificate, key)
        if server is not None and authority is not None:
            server.load_verify_locations(authority)
            server.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            "E_USAGE", "the files of TLS cannot be used", hint="PEM, and the key of this certificate"
        ) from error
    return server, client
