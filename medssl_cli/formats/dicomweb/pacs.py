"""Search a PACS (QIDO-RS, PS3.18 section 10.6) and retrieve from it (WADO-RS, section 10.4). Nothing is ever sent.

Answers hold names of patients: of them only UIDs and counts are kept, and what was asked for is checked again here,
because servers ignore conditions that they do not know.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import InputError, StorageError, UsageError
from medssl_cli.formats.dicom.elements import walk
from medssl_cli.formats.dicom.window import Window
from medssl_cli.formats.dicomweb.address import Address, Credentials
from medssl_cli.formats.dicomweb.http import Patience, RefusedError, Session, TooLongError, Tries, TryAgainError, body
from medssl_cli.formats.dicomweb.multipart import CutError, MalformedError, boundary_of, read_parts
from medssl_cli.formats.dicomweb.query import (
    MODALITY,
    SERIES,
    SOP,
    STUDY,
    Entry,
    PacsQuery,
    SeriesRef,
    count_of,
    is_uid,
    text_of,
)

_ACCEPT: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_UID_TAGS: Final = tuple(int(tag, 16) for tag in (STUDY, SERIES, SOP))


@dataclass(frozen=True)
class PacsLimits:
    """What a PACS may cost at most.

    Args:
        page: Entries that are asked for at once; a PACS may give fewer.
        pages: Largest number of pages of one list.
        instances: Largest number of instances of one series.
        instance_bytes: Largest size of one instance, which is held in memory.
        series_bytes: Largest size of one series.
    """

    page: int = 500
    pages: int = 20_000
    instances: int = 20_000
    instance_bytes: int = 2 * 2**30
    series_bytes: int = 32 * 2**30


class Pacs:
    """A DICOMweb service, read only.

    Args:
        url: `dicomweb://HOST[:PORT]/PATH`, or `dicomweb+http://...` without encryption.
        credentials: Who asks.
        ca_bundle: File of certificates to trust instead of the usual ones.
        patience: Patience with a busy PACS.
        limits: Limits of what it may send.
        is_stopped: Asked often; True ends whatever is going on with `E_INTERRUPTED`.
        jitter: Jitter of the waits between tries.

    Raises:
        UsageError: `E_USAGE`, `E_NOT_FOUND`.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials | None = None,
        ca_bundle: Path | None = None,
        *,
        patience: Patience | None = None,
        limits: PacsLimits | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
        jitter: random.Random | None = None,
    ) -> None:
        self.address = Address.parse(url)
        self.limits = limits or PacsLimits()
        self._patience = patience or Patience()
        self._is_stopped = is_stopped
        self._jitter = jitter or random.Random()
        self._session = Session(credentials or Credentials(), ca_bundle, self._patience)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def search(self, query: PacsQuery) -> Iterator[SeriesRef]:
        """Series that fit a query, each once, study by study.

        Raises:
            StorageError: `E_PACS`.
            UsageError: `E_PACS_DENIED`.
            InterruptedCleanlyError: `E_PACS_BUSY`, `E_INTERRUPTED`.
        """
        seen: set[str] = set()
        for patient in query.patients or (None,):
            for study in self._pages(STUDY, "/studies", query.filters(patient)):
                uid = text_of(study, STUDY)
                if uid in seen or not query.takes_study(study, patient):
                    continue
                seen.add(uid)
                yield from self._series_of(uid, query.modality)

    def _series_of(self, study_uid: str, modality: str | None) -> Iterator[SeriesRef]:
        if not is_uid(study_uid):
            yield SeriesRef(study_uid, "")
            return
        filters = {"Modality": modality} if modality else {}
        for entry in self._pages(SERIES, f"/studies/{study_uid}/series", filters):
            if modality is None or text_of(entry, MODALITY) == modality:
                yield SeriesRef(study_uid, text_of(entry, SERIES), count_of(entry))

    def instances(self, series: SeriesRef) -> list[str]:
        """SOP Instance UIDs of a series, sorted.

        Raises:
            InputError: `E_VALUE_INVALID`, a UID is none; `E_TOO_BIG`.
            MedsslError: As `search`.
        """
        _check(series)
        found = []
        for entry in self._pages(SOP, f"{series.place}/instances", {}):
            found.append(text_of(entry, SOP))
            if not is_uid(found[-1]):
                raise InputError("E_VALUE_INVALID", "the PACS lists an instance whose (0008,0018) is not a UID")
            if len(found) > self.limits.instances:
                raise InputError("E_TOO_BIG", f"the series has more than {self.limits.instances} instances")
        return sorted(found)

    def retrieve(
        self, series: SeriesRef, missing: set[str], sink: Callable[[str, bytes], None], *, whole: bool
    ) -> None:
        """Bring instances, in the transfer syntax in which the PACS keeps them; some may not come.

        Args:
            series: Whose they are.
            missing: SOP Instance UIDs.
            sink: Called with the UID and the bytes of each instance that arrived completely.
            whole: Ask for the whole series first. After a cut, and for what is left then, one by one.

        Raises:
            InputError: `E_UID_MISMATCH`, `E_TOO_BIG`, `E_PACS_DENIED`, or the instance is not DICOM.
            MedsslError: As `search`.
        """
        _check(series)
        transfer = _Transfer(self, series, set(missing), sink)
        tries = self._tries()
        while transfer.left:
            try:
                if whole:
                    transfer.whole_series(tries)
                    whole = False
                if not transfer.one_by_one(tries):
                    return
            except TryAgainError as error:
                whole = whole and not error.has_begun
                tries.failed(error)

    def _tries(self) -> Tries:
        return Tries(self._patience, self._is_stopped, self._jitter)

    def _pages(self, key: str, place: str, conditions: Mapping[str, str]) -> Iterator[Entry]:
        """Entries of a list, each once, until a page is empty: a short page may be the server's own limit."""
        offset, before, seen = 0, [""], set[str]()
        for _ in range(self.limits.pages):
            page = self._page(place, {"limit": self.limits.page, "offset": offset, **conditions})
            keys = [text_of(entry, key) for entry in page]
            if not page or (keys == before and len(page) != self.limits.page):
                return
            if keys == before:
                raise StorageError("E_PACS", "the PACS repeats the first page of a list instead of giving the next")
            for name, entry in zip(keys, page, strict=True):
                if name not in seen:
                    seen.add(name)
                    yield entry
            offset, before = offset + len(page), keys
        raise StorageError("E_PACS", f"a list of the PACS has more than {self.limits.pages} pages", hint="ask for less")

    def _page(self, place: str, conditions: Mapping[str, str | int]) -> list[Entry]:
        tries = self._tries()
        while True:
            tries.check()
            try:
                entries = self._session.search(self.address.url + place, conditions)
            except TryAgainError as error:
                tries.failed(error)
            except RefusedError as error:
                failure = _refusal(error.status)
                break
            except (ValueError, RecursionError):
                tries.failed(TryAgainError("an answer that is not JSON"))
            else:
                if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
                    return entries
                failure = StorageError("E_PACS", "the PACS answers a search with something else than a list")
                break
        raise failure

    def parts(self, place: str, tries: Tries, *, max_bytes: int) -> Iterator[bytes]:
        """Complete instances of one answer as they arrive.

        Raises:
            MalformedError: Not multipart.
            TryAgainError, RefusedError: See `Session.send`.
            InputError: `E_TOO_BIG`.
        """
        tries.check()
        response = self._session.get(self.address.url + place, headers={"Accept": _ACCEPT}, stream=True)
        with contextlib.closing(response):
            boundary = boundary_of(response.headers.get("Content-Type", ""))
            chunks = _checked(body(response, max_bytes=max_bytes), tries)
            try:
                yield from read_parts(chunks, boundary, max_part_bytes=self.limits.instance_bytes)
            except CutError:
                failure: Exception = TryAgainError("an answer that ends too early", has_begun=True)
            except TooLongError:
                failure = InputError("E_TOO_BIG", f"the PACS sends more than {max_bytes} bytes for one series")
            else:
                return
        raise failure


@dataclass
class _Transfer:
    """Instances of one series on their way."""

    pacs: Pacs
    series: SeriesRef
    left: set[str]
    sink: Callable[[str, bytes], None]
    num_bytes: int = 0

    def whole_series(self, tries: Tries) -> None:
        """All in one answer; a PACS that does not do that is asked one by one."""
        with contextlib.suppress(MalformedError, RefusedError):
            self._receive(self.series.place, tries, only=None)

    def one_by_one(self, tries: Tries) -> bool:
        """What is left; False once the PACS does not give one of them."""
        for uid in sorted(self.left):
            try:
                self._receive(f"{self.series.place}/instances/{uid}", tries, only=uid)
            except RefusedError as error:
                if error.status == 403:
                    raise InputError("E_PACS_DENIED", "the PACS does not give this series (status 403)") from None
                return False
            except MalformedError:
                return False
            if uid in self.left:
                return False
        return True

    def _receive(self, place: str, tries: Tries, *, only: str | None) -> None:
        room = self.pacs.limits.series_bytes - self.num_bytes
        for part in self.pacs.parts(place, tries, max_bytes=room):
            self.num_bytes += len(part)
            study, series, sop = uids_of(part)
            if (study, series) != (self.series.study_uid, self.series.series_uid) or (only and sop != only):
                raise InputError(
                    "E_UID_MISMATCH",
                    "the PACS sent an instance of another study or series than was asked for",
                    hint="the rest of the study is not taken: its images may be filed under a wrong patient",
                )
            if sop in self.left:
                self.sink(sop, part)
                self.left.discard(sop)
                tries.progress()


def uids_of(instance: bytes) -> tuple[str, str, str]:
    """StudyInstanceUID, SeriesInstanceUID and SOPInstanceUID of a DICOM file, without decoding anything else.

    Raises:
        InputError: As `walk`.
    """
    values = walk(Window(instance, len(instance)), wanted=frozenset(_UID_TAGS)).values
    study, series, sop = (values.get(tag, b"") for tag in _UID_TAGS)
    texts = (value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else "" for value in (study, series, sop))
    return next(texts), next(texts), next(texts)


def _checked(chunks: Iterator[bytes], tries: Tries) -> Iterator[bytes]:
    for chunk in chunks:
        tries.check()
        yield chunk


def _check(series: SeriesRef) -> None:
    if not series.is_valid:
        raise InputError("E_VALUE_INVALID", "the PACS lists a series whose (0020,000D) or (0020,000E) is not a UID")


def _refusal(status: int) -> UsageError | StorageError:
    if status == 403:
        return UsageError("E_PACS_DENIED", "the PACS does not allow this search (status 403)", hint="ask its operator")
    hint = "check the path of the address" if status in (404, 405, 410) else ""
    return StorageError("E_PACS", f"the PACS answers with status {status}", hint=hint)
