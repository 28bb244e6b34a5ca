"""Polite and suspicious GET requests: bounded, never redirected, tried again with patience, deaf to the environment.

Nothing that a server or a library says is repeated in a message: addresses hold UIDs, headers hold credentials.
"""

import base64
import io
import json
import logging
import random
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar, Final

import requests
import urllib3

from medssl_cli.base.errors import InterruptedCleanlyError, StorageError, UsageError
from medssl_cli.formats.dicomweb.address import Credentials

CHUNK_BYTES: Final = 64 * 2**10
MAX_JSON_BYTES: Final = 64 * 2**20
_BUSY: Final = frozenset((408, 429, 502, 503, 504))
_AGAIN: Final = "run the same command again to go on"


@dataclass(frozen=True)
class Patience:
    """How long a busy or failing PACS is asked again.

    Args:
        tries: Number of tries in a row without anything new arriving.
        first_wait_s: Seconds before the second try; doubles with each, times a random factor of 0.5 to 1.5.
        max_wait_s: Longest wait of its own; a Retry-After header may ask for more.
        deadline_s: Give up if nothing new arrived for so long.
        connect_timeout_s: Seconds for a connection.
        read_timeout_s: Between two pieces of an answer.
    """

    tries: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0
    deadline_s: float = 3600.0
    connect_timeout_s: float = 20.0
    read_timeout_s: float = 60.0


class TryAgainError(Exception):
    """This try failed, the next may not.

    Args:
        what: What failed, in a few words of ours.
        retry_after_s: How long the PACS asks to be left alone.
        has_begun: The body of the answer had begun.
    """

    def __init__(self, what: str, *, retry_after_s: float = 0.0, has_begun: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.retry_after_s = retry_after_s
        self.has_begun = has_begun


class TooLongError(Exception):
    """The answer is longer than the limit, or says so."""


class RefusedError(Exception):
    """The PACS answers, and the answer is no."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Tries:
    """Counts the tries of one piece of work.

    Args:
        patience: How many and how long.
        is_stopped: Asked often; True ends the work.
        jitter: Spreads the waits of many clients.
    """

    def __init__(self, patience: Patience, is_stopped: Callable[[], bool], jitter: random.Random) -> None:
        self._patience = patience
        self._is_stopped = is_stopped
        self._jitter = jitter
        self.progress()

    def progress(self) -> None:
        """Something new arrived: begin to count anew."""
        self._failed = 0
        self._deadline = time.monotonic() + self._patience.deadline_s

    def check(self) -> None:
        """Whether to go on.

        Raises:
            InterruptedCleanlyError: `E_INTERRUPTED`, or `E_PACS_BUSY` if nothing new arrived for too long.
        """
        if self._is_stopped():
            raise InterruptedCleanlyError("E_INTERRUPTED", "stopped while talking to the PACS", hint=_AGAIN)
        if time.monotonic() > self._deadline:
            raise self._busy(f"nothing new arrived for {self._patience.deadline_s:g} s")

    def failed(self, error: TryAgainError) -> None:
        """Wait until the next try is due.

        Raises:
            InterruptedCleanlyError: `E_PACS_BUSY`, there is no next; `E_INTERRUPTED`.
        """
        self._failed += 1
        if self._failed >= self._patience.tries:
            raise self._busy(f"{self._failed} tries in a row failed, the last with: {error.what}")
        own = self._patience.first_wait_s * 2 ** (self._failed - 1)
        wait_s = max(min(own, self._patience.max_wait_s) * self._jitter.uniform(0.5, 1.5), error.retry_after_s)
        if time.monotonic() + wait_s > self._deadline:
            raise self._busy(f"the PACS asks to wait for {wait_s:.0f} s")
        due = time.monotonic() + wait_s
        while (left := due - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))

    @staticmethod
    def _busy(what: str) -> InterruptedCleanlyError:
        return InterruptedCleanlyError("E_PACS_BUSY", what, hint=_AGAIN)


class Session(requests.Session):
    """A session that only reads; `dicomweb.store` has one that only writes.

    Args:
        credentials: Sent with each request.
        ca_bundle: Certificates to trust instead of the usual ones.
        patience: Patience for its timeouts.
    """

    METHODS: ClassVar[frozenset[str]] = frozenset(("GET",))
    GOOD: ClassVar[frozenset[int]] = frozenset((200, 204, 206))

    def __init__(self, credentials: Credentials, ca_bundle: Path | None, patience: Patience) -> None:
        super().__init__()
        if ca_bundle is not None and not ca_bundle.is_file():
            raise UsageError("E_NOT_FOUND", "the file of certificates does not exist", hint="see --ca-bundle")
        # The environment may name proxies, certificates and a ~/.netrc with other credentials.
        self.trust_env = False
        self.verify = True if ca_bundle is None else str(ca_bundle)
        self.headers["Accept-Encoding"] = "identity"
        self._timeout = (patience.connect_timeout_s, patience.read_timeout_s)
        self._has_answered = False
        if credentials.token:
            self.headers["Authorization"] = f"Bearer {credentials.token}"
        elif credentials.user:
            pair = f"{credentials.user}:{credentials.password}".encode()
            self.headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        # These libraries log addresses and the server's words as warnings, which Python prints if nobody listens.
        for name in ("urllib3", "requests"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def search(self, url: str, conditions: Mapping[str, str | int]) -> Any:
        """One page of a list (QIDO-RS, PS3.18 section 10.6): what the JSON says; nothing is an empty list.

        Raises:
            ValueError, RecursionError: It is not JSON.
            MedsslError, TryAgainError, RefusedError: See `send`.
        """
        response = self.get(url, params=conditions, headers={"Accept": "application/dicom+json, application/json"})
        found = json.loads(response.content.decode(errors="replace")) if response.content else []
        return [found] if isinstance(found, dict) else found  # some servers send a single entry without its list

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request. A body that is not streamed has arrived completely, or this try has failed.

        Raises:
            TryAgainError: Busy, timed out, cut.
            RefusedError: Another status than success.
            StorageError: `E_PACS`.
            UsageError: `E_PACS_DENIED`.
        """
        if request.method not in self.METHODS:
            raise AssertionError("a session reads or writes, and never both")
        is_streamed = bool(options.get("stream"))
        options.update(stream=True, allow_redirects=False, timeout=self._timeout)
        try:
            response = super().send(request, **options)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            failure = self._failure(error)
        else:
            self._has_answered = True
            try:
                _judge(response, self.GOOD)
                if not is_streamed:
                    response.raw = io.BytesIO(_json_body(response))
            except BaseException:
                response.close()
                raise
            return response
        raise failure

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, requests.Timeout):
            return TryAgainError("time-out")
        if isinstance(error, requests.exceptions.SSLError) and not self._has_answered:
            return StorageError(
                "E_PACS", "no trusted TLS connection to the PACS", hint="--ca-bundle FILE trusts a hospital's own CA"
            )
        if isinstance(error, requests.ConnectionError):
            reason = getattr(error.args[0] if error.args else None, "reason", None)
            if self._has_answered or not isinstance(reason, urllib3.exceptions.NewConnectionError):
                return TryAgainError("connection lost")
            return StorageError(
                "E_PACS", "the PACS cannot be reached: wrong name, or nobody listens", hint="check host and port"
            )
        return StorageError("E_PACS", f"the PACS cannot be asked ({type(error).__name__})", hint="check the address")


def body(response: requests.Response, *, max_bytes: int) -> Iterator[bytes]:
    """The body of a streamed answer in pieces as they arrive.

    Raises:
        TryAgainError: The connection was lost.
        TooLongError: It is longer than the limit.
    """
    claimed = response.headers.get("Content-Length", "").strip()
    if claimed.isascii() and claimed.isdigit() and int(claimed[:20]) > max_bytes:
        raise TooLongError
    num_bytes = 0
    while True:
        try:
            chunk = response.raw.read1(CHUNK_BYTES)
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            chunk = None
        if chunk is None:
            raise TryAgainError("connection lost", has_begun=True)
        if not chunk:
            return
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise TooLongError
        yield chunk


def _json_body(response: requests.Response) -> bytes:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if response.status_code != 204 and kind not in ("application/dicom+json", "application/json"):
        raise StorageError(
            "E_PACS", "the address answers, but not as DICOMweb does", hint="a page to log in? check the path"
        )
    try:
        return b"".join(body(response, max_bytes=MAX_JSON_BYTES))
    except TooLongError:
        failure = StorageError("E_PACS", f"the PACS sends a list of more than {MAX_JSON_BYTES} bytes")
    raise failure


def _judge(response: requests.Response, good: Container[int]) -> None:
    status = response.status_code
    if status == 401:
        raise UsageError(
            "E_PACS_DENIED",
            "the PACS does not accept the credentials (status 401)",
            hint="set MEDSSL_PACS_TOKEN, or MEDSSL_PACS_USER and MEDSSL_PACS_PASSWORD_FILE",
        )
    if status in _BUSY:
        retry_after_s = _retry_after_s(response.headers.get("Retry-After", ""))
        raise TryAgainError(f"status {status}", retry_after_s=retry_after_s)
    if 300 <= status < 400:
        raise StorageError(
            "E_PACS", f"the PACS sends elsewhere (status {status})", hint="give the final address; is a log-in missing?"
        )
    if status not in good:
        raise RefusedError(status)
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise StorageError("E_PACS", "the PACS compresses its answers although it was asked not to")
    response.headers.pop("Warning", None)


def _retry_after_s(text: str) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110 section 10.2.3); 0 if it makes no sense."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
