"""Give objects to a PACS (STOW-RS, PS3.18 section 10.5). Nothing is read, and nothing is ever deleted."""

import contextlib
import json
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

from medssl_cli.base.errors import InputError, StorageError
from medssl_cli.formats.dicomweb.address import Address, Credentials
from medssl_cli.formats.dicomweb.http import Patience, RefusedError, Session, Tries, TryAgainError
from medssl_cli.formats.store_status import is_for_good

FAILED: Final = "00081198"
"""FailedSOPSequence."""
REASON: Final = "00081197"
"""FailureReason."""
REFUSED_FOR_GOOD: Final = (400, 413, 415)
"""Statuses of HTTP that are about the object: not understood, too large, of a type that is not taken."""
STORE_PATIENCE: Final = Patience(tries=4, max_wait_s=10.0, deadline_s=300.0)


class StoreSession(Session):
    """A session that only writes. A PACS answers 202 or 409 where it has not taken everything."""

    METHODS: ClassVar[frozenset[str]] = frozenset(("POST",))
    GOOD: ClassVar[frozenset[int]] = frozenset((200, 202, 204, 409))


class Store:
    """The writing side of a DICOMweb service. What is sent again is the same object, so that it is there once.

    Args:
        url: `dicomweb://HOST[:PORT]/PATH`, or `dicomweb+http://...` without encryption.
        credentials: Sent with each request.
        ca_bundle: Certificates to trust instead of the usual ones.
        patience: How long a busy or failing PACS is asked again.
        is_stopped: Ends waiting.
        jitter: Spreads the waits of many clients.

    Raises:
        UsageError: `E_USAGE`, `E_NOT_FOUND`.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        *,
        ca_bundle: Path | None = None,
        patience: Patience = STORE_PATIENCE,
        is_stopped: Callable[[], bool] = lambda: False,
        jitter: random.Random | None = None,
    ) -> None:
        self.address = Address.parse(url)
        self._session = StoreSession(credentials, ca_bundle, patience)
        self._patience, self._is_stopped, self._jitter = patience, is_stopped, jitter or random.Random()

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def send(self, data: bytes) -> None:
        """Give one object to the PACS; when this returns, it has it.

        Args:
            data: A DICOM file.

        Raises:
            InputError: `E_STORE_REFUSED`, it will not take this object.
            InterruptedCleanlyError: `E_PACS_BUSY`, `E_INTERRUPTED`.
            StorageError: `E_PACS`; `E_STORE_REFUSED`, it does not take the object now.
            UsageError: `E_PACS_DENIED`.
        """
        tries = Tries(self._patience, self._is_stopped, self._jitter)
        while True:
            tries.check()
            try:
                self._post(data)
            except TryAgainError as error:
                tries.failed(error)
            except RefusedError as error:
                kind = InputError if error.status in REFUSED_FOR_GOOD else StorageError
                raise kind("E_STORE_REFUSED", f"the PACS refuses it (status {error.status})") from None
            else:
                return

    def _post(self, data: bytes) -> None:
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        response = self._session.post(
            f"{self.address.url}/studies",
            data=head + data + f"\r\n--{boundary}--\r\n".encode(),
            headers={
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "Accept": "application/dicom+json",
            },
        )
        reasons = _failures(response.content)
        if reasons or response.status_code == 409:
            told = f" (reason {reasons[0]:#06x})" if reasons and reasons[0] else ""
            kind = InputError if reasons and is_for_good(reasons[0]) else StorageError
            raise kind("E_STORE_REFUSED", f"the PACS did not store it{told}")


def _failures(content: bytes) -> list[int]:
    """Reasons of the objects that were not stored, 0 where none is given."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError):
        document: Any = json.loads(content.decode(errors="replace"))
        items = document.get(FAILED, {}).get("Value", [])
        return [_reason(item) for item in items]
    return []


def _reason(item: Any) -> int:
    with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError, IndexError):
        return int(item[REASON]["Value"][0])
    return 0
