"""From a PACS into a folder of downloads, series by series: complete ones are handed out, the rest waits for next time.

It holds DICOM files as the PACS sent them, patients' names included: mode 0700, named by keyed hashes, and gone as
soon as the series is in the cache. What an interrupted run has retrieved is not retrieved again.
"""

import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from medssl_cli.base.errors import InputError, InterruptedCleanlyError
from medssl_cli.base.files import remove_temporaries, storage_errors, write_atomic
from medssl_cli.base.signals import StopRequest
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.formats.dicomweb import Pacs, PacsQuery, SeriesRef

SETTLE_S: Final = 30.0
MAX_SPOOLED: Final = 8
_ROUNDS: Final = 3
_AGAIN: Final = "run the same command again to go on"
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class RetrievedSeries:
    """What became of one series.

    Args:
        key: Its pseudonym, the same as in the cache.
        state: State of the series: in the folder of downloads; in the cache already, and not retrieved; or refused.
        num_instances: As the PACS counts them; 0 if it does not say.
        folder: Place in the folder of downloads; None unless retrieved.
        files: Its instances, sorted by name; names say nothing.
        failure: Why it was refused.
    """

    key: str
    state: Literal["retrieved", "held", "refused"]
    num_instances: int
    folder: Path | None = None
    files: tuple[Path, ...] = ()
    failure: InputError | None = None


class DownloadFolder:
    """The folder for series on their way.

    Args:
        root: Made when the first series arrives.
        pseudonyms: Pseudonyms of the cache.
    """

    def __init__(self, root: Path, pseudonyms: Pseudonyms) -> None:
        self.root = root
        self._pseudonyms = pseudonyms
        self.waiting: set[str] = set()

    def key(self, series: SeriesRef) -> str:
        """Pseudonym of a series; of its study where it has no UID of its own."""
        return self._pseudonyms.of("series", series.series_uid or f"study {series.study_uid}")

    def folder(self, series: SeriesRef) -> Path:
        """Where the files of a series are."""
        return self.root / self.key(series)

    def file(self, series: SeriesRef, sop_uid: str) -> Path:
        """Where an instance is, or would be."""
        return self.folder(series) / f"{self._pseudonyms.of('source', 'instance', sop_uid)}.dcm"

    def open(self, series: SeriesRef) -> None:
        """Make the folder of a series, and clear it of what a killed writer left.

        Raises:
            StorageError: `E_IO`.
        """
        folder = self.folder(series)
        with storage_errors("the folder of downloads"):
            for path in (self.root, folder):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_temporaries(folder)

    def write(self, series: SeriesRef, sop_uid: str, instance: bytes) -> None:
        """Keep an instance, durably.

        Raises:
            StorageError: `E_IO`.
        """
        write_atomic(self.file(series, sop_uid), instance)

    def keep_only(self, series: SeriesRef, sop_uids: set[str]) -> tuple[Path, ...]:
        """Remove what does not belong to a series any more.

        Returns:
            What does, sorted.
        """
        wanted = {self.file(series, uid) for uid in sop_uids}
        with storage_errors("the folder of downloads"):
            for path in sorted(self.folder(series).iterdir()):
                if path not in wanted:
                    path.unlink()
        return tuple(sorted(wanted))

    def missing(self, series: SeriesRef, sop_uids: set[str]) -> set[str]:
        """Instances that are not there."""
        return {uid for uid in sop_uids if not self.file(series, uid).is_file()}

    def discard(self, series: RetrievedSeries | SeriesRef) -> None:
        """Remove a series that is in the cache now, or that must not come there."""
        key = series.key if isinstance(series, RetrievedSeries) else self.key(series)
        shutil.rmtree(self.root / key, ignore_errors=True)
        self.waiting.discard(key)

    def clear(self) -> None:
        """Remove everything, also what another query left; nothing can be resumed then."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.waiting.clear()


def retrieve_all(
    pacs: Pacs,
    query: PacsQuery,
    downloads: DownloadFolder,
    *,
    is_held: Callable[[str, int], bool],
    stop: StopRequest,
    progress: Progress = lambda stage, done, total: None,
    settle_s: float = SETTLE_S,
    max_spooled: int = MAX_SPOOLED,
) -> Generator[RetrievedSeries, None, None]:
    """Search, then retrieve series by series. Ends early, without an error, when a stop is requested.

    Of every series that is "retrieved" the caller must call `downloads.discard` once it is in the cache. Series of a
    study follow one another. A PACS that fails for one series is asked for the next; when it fails for two in a row, it
    is left alone.

    Args:
        pacs: The PACS.
        query: Which series.
        downloads: Where they wait.
        is_held: Whether the cache has a series, by key, with so many instances: it is not retrieved then.
        stop: Looked at often.
        progress: Called with "retrieve", series done, and how many there are.
        settle_s: A list of instances counts once it has not changed for so long: a modality may be sending still.
        max_spooled: Retrieved series that may wait for `discard`.

    Raises:
        StorageError: `E_PACS`, `E_IO`.
        UsageError: `E_PACS_DENIED`.
        InterruptedCleanlyError: `E_PACS_BUSY`, at the end if some series are left; what was yielded is complete.
        AssertionError: The caller takes more than `max_spooled` series without discarding any.
    """
    run = _Retrieval(pacs, downloads, is_held, stop, settle_s)
    num_left, failed_before, why = 0, False, ""
    try:
        found = [(series, time.monotonic()) for series in pacs.search(query)]
        for done, (series, counted_at) in enumerate(found):
            progress("retrieve", done, len(found))
            if len(downloads.waiting) >= max_spooled:
                raise AssertionError("series are taken from the folder of downloads and never discarded")
            try:
                result = run.one(series, counted_at)
            except InterruptedCleanlyError as error:
                why = error.message
                num_left += 1
                if failed_before or stop.is_set:
                    num_left += len(found) - done - 1
                    break
                failed_before = True
                continue
            failed_before = False
            yield result
        else:
            progress("retrieve", len(found), len(found))
    except InterruptedCleanlyError:
        if not stop.is_set:
            raise
    if num_left and not stop.is_set:
        raise InterruptedCleanlyError("E_PACS_BUSY", f"{num_left} of {len(found)} series are left: {why}", hint=_AGAIN)


@dataclass
class _Retrieval:
    pacs: Pacs
    downloads: DownloadFolder
    is_held: Callable[[str, int], bool]
    stop: StopRequest
    settle_s: float
    mixed_studies: set[str] = field(default_factory=set)

    def one(self, series: SeriesRef, counted_at: float) -> RetrievedSeries:
        """Retrieve, hold or refuse one series."""
        key, num_instances = self.downloads.key(series), series.num_instances or 0
        try:
            if series.study_uid in self.mixed_studies:
                raise InputError("E_UID_MISMATCH", "another series of this study arrived with foreign instances")
            num_instances = num_instances or len(self._list(series))
            if self.is_held(key, num_instances):
                self.downloads.discard(series)
                return RetrievedSeries(key, "held", num_instances)
            instances = self._settled(series, counted_at)
        except InputError as error:
            if error.code == "E_UID_MISMATCH":
                self.mixed_studies.add(series.study_uid)
            if error.code != "E_INCOMPLETE_RETRIEVE":
                self.downloads.discard(series)
            return RetrievedSeries(key, "refused", num_instances, failure=error)
        files = self.downloads.keep_only(series, instances)
        self.downloads.waiting.add(key)
        return RetrievedSeries(key, "retrieved", len(instances), self.downloads.folder(series), files)

    def _settled(self, series: SeriesRef, counted_at: float) -> set[str]:
        """Instances of a series that are all in the folder of downloads, after its list has not changed for a while."""
        listed = self._list(series)
        since = counted_at if len(listed) == series.num_instances else time.monotonic()
        self.downloads.open(series)
        for _ in range(_ROUNDS):
            self._fetch(series, listed)
            self._wait_until(since + self.settle_s)
            again, at = self._list(series), time.monotonic()
            if again == listed:
                return listed
            listed, since = again, at
        raise InputError(
            "E_INCOMPLETE_RETRIEVE", f"the series has {len(listed)} instances and changes still", hint="try again later"
        )

    def _list(self, series: SeriesRef) -> set[str]:
        listed = set(self.pacs.instances(series))
        if not listed or len(listed) < (series.num_instances or 0):
            raise _incomplete(len(listed), series.num_instances or 1, "are listed by the PACS")
        return listed

    def _fetch(self, series: SeriesRef, listed: set[str]) -> None:
        missing = self.downloads.missing(series, listed)
        if missing:
            is_new = missing == listed
            self.pacs.retrieve(
                series, missing, lambda uid, instance: self.downloads.write(series, uid, instance), whole=is_new
            )
            missing = self.downloads.missing(series, listed)
        if missing:
            raise _incomplete(len(listed) - len(missing), len(listed), "arrived")

    def _wait_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            if self.stop.is_set:
                raise InterruptedCleanlyError("E_INTERRUPTED", "stopped while a series settled", hint=_AGAIN)
            time.sleep(min(left, 0.1))


def _incomplete(got: int, expected: int, what: str) -> InputError:
    return InputError(
        "E_INCOMPLETE_RETRIEVE",
        f"{got} of {expected} instances {what}",
        hint="run the same command again: what arrived is kept",
    )
