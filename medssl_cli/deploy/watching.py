"""A folder that somebody else fills: what has arrived completely is taken, again and again, until a stop is requested.

What belongs together is taken together: everything below one folder, the loose files of one study, of a model of
several channels all loose images. It has arrived when nothing of it has changed for a while. Times of files are
compared with each other only, never with a clock.
"""

import codecs
import functools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import GateError, InputError, UsageError
from medssl_cli.deploy.again import MAX_ATTEMPTS, failed, is_unsent, wait_s, without_disk
from medssl_cli.deploy.choosing import is_rule
from medssl_cli.deploy.found import Place, Reject
from medssl_cli.deploy.infer import InferSettings, infer, opened_report
from medssl_cli.deploy.job import Where
from medssl_cli.deploy.report_file import ReportFile
from medssl_cli.deploy.results import ScanResult
from medssl_cli.deploy.scan_task import not_done
from medssl_cli.formats.discover import HEAD_BYTES, look
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import read_head
from medssl_cli.formats.table import is_file_of_slices

PAUSE_S: Final = 1.0
MAX_UNITS: Final = 64
"""What is taken at once, so that what arrives meanwhile does not wait for everything."""
UNFINISHED: Final = (".part", ".partial", ".filepart", ".crdownload", ".tmp")
"""Ends of names that programs give to files while they write them."""
MOST_CHANGING_S: Final = 1800.0
"""How long a file may keep changing until what belongs together with it is taken without it."""
_UNKNOWN: Final = "?"
_DESCRIPTION: Final = "dataset.json"
_TEXTS: Final = ("other", "csv", "xml", "json")
"""Kinds of files that may be a log or a table."""
_HEAD_OF_IMAGE_BYTES: Final = 132
"""As much as a DICOM file needs to say that it is one."""
Signature = tuple[int, int, int]
"""Inode, length and time of a file."""


@dataclass
class _Arrival:
    """A file that was seen: what it looked like, since when, since when it keeps changing, and what it belongs to.

    A text that is no image, as a log, keeps nothing waiting, and nothing is taken again because it has grown.
    """

    signature: Signature
    since: float
    changing_since: float
    unit: str = _UNKNOWN
    is_text: bool = False

    @property
    def changing_s(self) -> float:
        """How long it has been changing."""
        return self.since - self.changing_since


@dataclass(frozen=True)
class _Retry:
    """When what was taken is taken again though nothing of it has changed, and how often that was so."""

    at: float
    times: int


@dataclass
class DropFolder:
    """What lies in a folder, and what of it is complete and was not taken yet.

    Args:
        root: The folder.
        settle_s: Seconds for which nothing may have changed.
        policy: How DICOM files are recognised.
        leave_out: A folder that is not looked into.
        are_cases: Images lying loose may be channels of one case.
        clock: Seconds; for tests.
    """

    root: Path
    settle_s: float
    policy: Policy
    leave_out: Path | None = None
    are_cases: bool = False
    clock: Callable[[], float] = time.monotonic
    _arrivals: dict[Path, _Arrival] = field(default_factory=dict)
    _aside: frozenset[Path] = frozenset()
    _taken: dict[str, frozenset[tuple[Path, Signature | None]]] = field(default_factory=dict)
    _retries: dict[str, _Retry] = field(default_factory=dict)

    def due(self) -> dict[str, list[Path]]:
        """Files of what has arrived, by what they belong to; what was never taken comes first."""
        now = self.clock()
        self._look(now)
        units: dict[str, list[Path]] = defaultdict(list)
        for path, arrival in self._arrivals.items():
            if path not in self._aside:
                units[arrival.unit].append(path)
        moving = {unit for unit, paths in units.items() if not all(self._has_arrived(path, now) for path in paths)}
        if _UNKNOWN in units:
            moving |= {unit for unit in units if not unit.endswith("/")}  # it may be a slice of any loose study
        due = [unit for unit in units if unit not in moving and self._is_to_take(unit, units[unit], now)]
        due.sort(key=lambda unit: (unit in self._taken, unit))
        return {unit: sorted(units[unit]) for unit in due[:MAX_UNITS]}

    def newly_aside(self) -> list[Path]:
        """Files that have been changing for so long that nothing waits for them any more, each when it comes to that.

        They are left out of what is taken until they have not changed for long enough.
        """
        now = self.clock()
        aside = frozenset(
            path
            for path, one in self._arrivals.items()
            if one.changing_s >= MOST_CHANGING_S and not self._has_arrived(path, now)
        )
        new, self._aside = sorted(aside - self._aside), aside
        return new

    def take(self, units: dict[str, list[Path]]) -> Callable[[Path], bool]:
        """Note what is taken as it is now, before it is read; returns which files that is."""
        for unit, paths in units.items():
            self._taken[unit] = self._content(paths)
        wanted = {path for paths in units.values() for path in paths}
        return lambda path: path in wanted or path.name == _DESCRIPTION

    def conclude(self, units: Iterable[str], results: Sequence[ScanResult]) -> None:
        """Note what became of units that were taken: they are taken again where not all of it is an answer.

        Args:
            units: What was taken.
            results: Results of all of them together.
        """
        is_to_retry = is_unsent(results) or without_disk(results) is not None
        for unit in units:
            times = self._retries[unit].times if unit in self._retries else 0
            if is_to_retry or (failed(results) and times < MAX_ATTEMPTS):
                self._retries[unit] = _Retry(self.clock() + wait_s(times), times + 1)
            else:
                self._retries.pop(unit, None)

    def _is_to_take(self, unit: str, paths: Sequence[Path], now: float) -> bool:
        """Whether a unit was not taken as it is, or is to be taken again."""
        retry = self._retries.get(unit)
        return self._taken.get(unit) != self._content(paths) or (retry is not None and now >= retry.at)

    def _content(self, paths: Sequence[Path]) -> frozenset[tuple[Path, Signature | None]]:
        arrivals = {path: self._arrivals[path] for path in paths}
        return frozenset((path, None if one.is_text else one.signature) for path, one in arrivals.items())

    def _has_arrived(self, path: Path, now: float) -> bool:
        """Whether nothing waits for a file."""
        arrival = self._arrivals[path]
        return arrival.is_text or now - arrival.since >= self.settle_s

    def _look(self, now: float) -> None:
        """Bring the arrivals up to date."""
        found = dict(self._files())
        self._arrivals = {path: one for path, one in self._arrivals.items() if path in found}
        for path, signature in found.items():
            arrival = self._arrivals.get(path)
            if arrival is None or arrival.signature != signature:
                arrival = self._arrivals[path] = self._changed(path, signature, arrival, now)
            if arrival.unit == _UNKNOWN:
                arrival.unit = self._unit_of(path, is_settled=now - arrival.since >= self.settle_s)
        present = {arrival.unit for arrival in self._arrivals.values()}
        self._taken = {unit: content for unit, content in self._taken.items() if unit in present}
        self._retries = {unit: retry for unit, retry in self._retries.items() if unit in present}

    def _changed(self, path: Path, signature: Signature, before: _Arrival | None, now: float) -> _Arrival:
        """A file that has come, or is another one than before."""
        if before is None:
            return _Arrival(signature, now, now)
        since = now if now - before.since >= self.settle_s else before.changing_since
        return _Arrival(signature, now, since, is_text=_is_text(path, self.root, self.policy))

    def _files(self) -> Iterator[tuple[Path, Signature]]:
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".") and Path(folder, name) != self.leave_out]
            for name in names:
                if not name.startswith(".") and not name.lower().endswith(UNFINISHED):
                    path = Path(folder, name)
                    try:
                        status = path.lstat()
                    except OSError:
                        continue
                    yield path, (status.st_ino, status.st_size, status.st_mtime_ns)

    def _unit_of(self, path: Path, *, is_settled: bool) -> str:
        """What a file belongs to: a folder, whose name ends in "/", a study, or itself; unknown while it is written."""
        below = path.relative_to(self.root).parts
        if len(below) > 1:
            return f"{below[0]}/"
        try:
            found = look(path, self.root, self.policy)
            if is_file_of_slices(found.kind):
                from medssl_cli.formats.series import read_headers

                return f"study {read_headers(path, self.policy)[0].StudyInstanceUID}"
        except (InputError, OSError):
            found = None
        if not is_settled and not self._arrivals[path].is_text:
            return _UNKNOWN
        return "loose" if self.are_cases and found is not None and found.kind != "other" else below[0]


def _is_text(path: Path, root: Path, policy: Policy) -> bool:
    """Whether a file that is being written begins as no image can begin, and as a log or a table does."""
    try:
        if path.name == _DESCRIPTION or look(path, root, policy).kind not in _TEXTS:
            return False
        head = read_head(path, HEAD_BYTES)
        told = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut
    except (InputError, OSError, UnicodeDecodeError):
        return False
    return len(head) >= _HEAD_OF_IMAGE_BYTES and all(letter.isprintable() or letter.isspace() for letter in told)


def still_changing(path: Path, root: Path, task: str, report: ReportFile) -> ScanResult:
    """What is told of a file that nothing waits for any more; outputs that it had stay recorded.

    Args:
        path: The file.
        root: The drop folder.
        task: Task of the model.
        report: The report of the output folder.
    """
    place = Place(str(path), str(path.relative_to(root)))
    blank = ScanResult.of(Reject(place.path, place.below, place, "E_STILL_CHANGING"), task)
    known = report.known.entry(task, blank.key, blank.name)
    if known is not None:
        blank = replace(blank, name=known.name, outputs=known.outputs, outputs_sha256=known.outputs_sha256)
    return not_done(blank, "E_STILL_CHANGING", f"it has been changing for {MOST_CHANGING_S / 60:g} minutes")


def watch(
    folder: Path,
    model_path: Path,
    *,
    settle_s: float,
    how: InferSettings,
    out: Path | None = None,
    only_series: Sequence[str] = (),
) -> dict[str, int]:
    """Answer for every scan that arrives in a folder, until a stop is requested.

    Args:
        folder: It must exist.
        model_path: An exported model, which is loaded once.
        settle_s: A scan has arrived when nothing of it has changed for so long.
        how: How scans are done, and who is told of results.
        out: See `infer`.
        only_series: Rules about series; see `infer`.

    Returns:
        How many results had which status; `how.say` was told of each.

    Raises:
        UsageError: `E_NOT_FOUND`; `E_USAGE`, an output file is named.
        MedsslError: See `infer`.
    """
    where, root = Where.of(out), folder.resolve()
    if where.mask is not None:
        raise UsageError("E_USAGE", "-o names one file, and many scans may arrive", hint="-o FOLDER")
    if not all(map(is_rule, only_series)):
        raise UsageError("E_USAGE", "nobody knows the names of what will arrive", hint="--series with rules only")
    model, how = how.opened(model_path), replace(how, replaces_grown=True)
    has_channels = bool(model.bundle.preprocessing.channel_names)
    arrivals = DropFolder(root, settle_s, how.policy, where.folder.resolve(), are_cases=has_channels)
    pause_s = min(PAUSE_S, max(0.05, settle_s / 4))
    counts: dict[str, int] = defaultdict(int)
    report = opened_report(where)
    ask = functools.partial(infer, [root], model_path, out=out, how=how, model=model, report=report)
    header = ask(is_wanted=lambda path: False).header
    while not how.is_stopped():
        units = arrivals.due()
        for path in arrivals.newly_aside():
            told = still_changing(path, root, model.bundle.task, report)
            report.record(header, [told])
            counts[told.status] += 1
            how.say(told)
        if not units:
            time.sleep(pause_s)
            continue
        results = ask(only_series=only_series, is_wanted=arrivals.take(units)).results
        for result in results:
            counts[result.status] += 1
        _require_model(results)
        arrivals.conclude(units, results)
    report.record(header, (), is_last=True)
    return dict(counts)


def _require_model(results: Sequence[ScanResult]) -> None:
    """End where another process says that the model's file is another one now: no scan would be answered for any more.

    Raises:
        GateError: `E_MODEL_CORRUPT`.
    """
    told = next((one for one in results if one.code == "E_MODEL_CORRUPT"), None)
    if told is not None:
        raise GateError(told.code, told.message, hint=told.hint)
