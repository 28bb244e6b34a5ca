"""The report of an ingest: every file that was found ends in exactly one state, and the report proves it."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from medssl_cli import __version__
from medssl_cli.base.errors import Exit, InputError
from medssl_cli.base.files import sha256_json
from medssl_cli.cache.format import ALLOW_LIST_VERSION, RECORD_VERSION
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.formats.discover import Found
from medssl_cli.formats.source import Source

if TYPE_CHECKING:
    from medssl_cli.imaging.planes import Planes

State = Literal["accepted", "duplicate", "skipped", "quarantined"]
MAX_TEXT: Final = 300
STATES: Final[tuple[State, ...]] = ("accepted", "duplicate", "skipped", "quarantined")
SCHEMA_NAME: Final = "medssl.report/1"
SCHEMA_PATH: Final = Path(__file__).with_name("report.schema.json")


@dataclass(frozen=True)
class ReportEntry:
    """What became of one image, label or file.

    Args:
        id: `s:` and a series key, or `f:` and a file key: never a name or a path.
        state: Where all of its files ended.
        num_files: How many files it consists of; 0 for the further images of files that hold several, and for a part of
            a file that was refused while others were taken.
        code: Why, if it was skipped or quarantined.
        message: Numbers; no value of the source that could identify anyone. Of an image that was taken, what more there
            is to say about its warnings.
        hint: What to do about it.
        item: Id of the cached item, if there is one.
        warnings: `W_` codes.
    """

    id: str
    state: State
    num_files: int
    code: str = ""
    message: str = ""
    hint: str = ""
    item: str | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        entry: dict[str, Any] = {"id": self.id, "state": self.state, "files": self.num_files}
        for name in ("code", "message", "hint", "item"):
            if value := getattr(self, name):
                entry[name] = value[:MAX_TEXT]
        return {**entry, "warnings": list(self.warnings)} if self.warnings else entry


class ReportBuilder:
    """Report of one ingest as it grows.

    Args:
        pseudonyms: Pseudonyms of the cache; turn sources into keys.
        on_entry: Called with each entry as it is reported.
    """

    def __init__(self, pseudonyms: Pseudonyms, on_entry: Callable[[ReportEntry], None] = lambda entry: None) -> None:
        self._pseudonyms = pseudonyms
        self._on_entry = on_entry
        self._open: dict[Source, Found] = {}
        self._kinds: dict[Source, str] = {}
        self._shared: set[Source] = set()
        self.seen = 0
        self.judged: list[tuple[ReportEntry, tuple[Source, ...]]] = []
        self.recalled: list[tuple[ReportEntry, tuple[Source, ...]]] = []

    @property
    def everything(self) -> list[tuple[ReportEntry, tuple[Source, ...]]]:
        """Entries with their sources, sorted: those judged in this run and those recalled from an earlier one."""
        return sorted(self.judged + self.recalled, key=lambda pair: (pair[0].id, pair[0].code, pair[0].item or ""))

    def kind(self, source: Source) -> str:
        """What `discover` says that a source is."""
        return self._kinds[source]

    @property
    def num_open(self) -> int:
        """Sources of which nobody knows yet what became."""
        return len(self._open)

    def open(self, found: Found) -> None:
        """Note a discovered source."""
        if found.source in self._open:
            raise AssertionError("a source was discovered twice")
        self._open[found.source] = found
        self._kinds[found.source] = found.kind
        self.seen += 1

    def withdraw(self, found: Found) -> None:
        """Take back a source that must be looked at again."""
        del self._open[found.source]
        self.seen -= 1

    def share(self, sources: Iterable[Source]) -> None:
        """Announce sources that hold slices of several images: the first image settles them, the others add entries."""
        self._shared.update(sources)

    def file_id(self, source: Source) -> str:
        """Key of a source that has not been settled."""
        return "f:" + self._pseudonyms.of("source", self._open[source].place)

    def series_id(self, series: str) -> str:
        """Key of a series."""
        return "s:" + self._pseudonyms.of("series", series)

    def settle(
        self,
        sources: Sequence[Source],
        state: State,
        *,
        id: str = "",
        code: str = "",
        message: str = "",
        hint: str = "",
        item: str | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """Say what became of an image or label; without an id, on each of the sources by itself."""
        if not id:
            for source in sources:
                self.settle(
                    [source], state, id=self.file_id(source), code=code, message=message, hint=hint, item=item,
                    warnings=warnings,
                )  # fmt: skip
            return
        own = tuple(source for source in sources if source in self._open)
        if not self._shared.issuperset(set(sources) - set(own)):
            raise AssertionError("a source was settled twice")
        for source in own:
            del self._open[source]
        entry = ReportEntry(id, state, len(own), code, message, hint, item, warnings)
        self.judged.append((entry, own))
        self._on_entry(entry)

    def refuse(self, sources: Sequence[Source], code: str, message: str, hint: str = "", *, id: str = "") -> None:
        """Settle with a code, which says whether the sources are skipped by rule, duplicates or quarantined."""
        if code == "DUPLICATE":
            self.settle(sources, "duplicate", id=id)
            return
        state: State = "skipped" if code.startswith("S_") else "quarantined"
        self.settle(sources, state, id=id, code=code, message=message, hint=hint)

    def note_series(self, key: str, num_files: int, failure: InputError | None, item: str | None) -> None:
        """Note a series of a PACS that was not retrieved: held already, or refused."""
        self.seen += num_files
        if failure is None:
            entry = ReportEntry(f"s:{key}", "duplicate", num_files, item=item)
        else:
            entry = ReportEntry(f"s:{key}", "quarantined", num_files, failure.code, failure.message, failure.hint)
        self.recalled.append((entry, ()))

    def recall(self, entry: ReportEntry, sources: Sequence[Source]) -> None:
        """Settle unchanged sources as an earlier ingest did."""
        for source in sources:
            del self._open[source]
        self.recalled.append((entry, tuple(sources)))


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    Args:
        entries: One per image, label or other file, in order of their ids.
        seen: Files that were found.
        not_reached: Files that an interruption left for the next run.
        num_images: Images newly stored.
        num_labels: Label maps newly stored.
        key_id: Key id of the pseudonyms.
        policy: Options that change what is accepted or how it is stored.
        started: RFC 3339, UTC.
        duration_s: Wall-clock seconds.
        dry_run: Nothing was written.
        key_is_ephemeral: The cache has a key of its own, which links no patients with other caches.
        interrupted_by: Name of the signal that stopped it.
        written: Where the report is in the cache; None if an equal one was there already with its page, or after a dry
            run.
        sources: What each entry is in the clear, for a map that stays on site; never part of the report.
        planes: Planes of some of the images stored, by item id, for the page.
    """

    entries: tuple[ReportEntry, ...]
    seen: int
    not_reached: int
    num_images: int
    num_labels: int
    key_id: str
    policy: dict[str, Any]
    started: str
    duration_s: float
    dry_run: bool = False
    key_is_ephemeral: bool = False
    interrupted_by: str | None = None
    written: Path | None = None
    sources: Sequence[tuple[ReportEntry, tuple[Source, ...]]] = field(default=(), repr=False)
    planes: "Mapping[str, Planes]" = field(default_factory=dict, repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Files by state; `seen` is the sum of the four states and `not_reached`.

        Raises:
            AssertionError: A file was lost or counted twice: a bug.
        """
        counts: dict[str, int] = {state: sum(e.num_files for e in self.entries if e.state == state) for state in STATES}
        if self.seen != sum(counts.values()) + self.not_reached:
            raise AssertionError(f"{self.seen} files seen, {counts} and {self.not_reached} not reached")
        return {"seen": self.seen, **counts, "not_reached": self.not_reached}

    @property
    def by_code(self) -> dict[str, int]:
        """Files, or parts of one, refused or skipped per code, and images per warning."""
        codes: Counter[str] = Counter()
        for entry in self.entries:
            codes.update({entry.code: entry.num_files or 1} if entry.code else {})
            codes.update(entry.warnings)
        return dict(sorted(codes.items()))

    @property
    def num_refused(self) -> int:
        """Files, or parts of one, that were refused."""
        return sum(entry.num_files or 1 for entry in self.entries if entry.state == "quarantined")

    @property
    def exit_code(self) -> Exit:
        """Interrupted, nothing usable, some refused, or all in order."""
        if self.interrupted_by:
            return Exit.CTRL_C if self.interrupted_by == "SIGINT" else Exit.INTERRUPTED
        if not any(entry.state in ("accepted", "duplicate") and entry.item for entry in self.entries):
            return Exit.NOTHING
        return Exit.PARTIAL if any(entry.state == "quarantined" for entry in self.entries) else Exit.OK

    @property
    def status(self) -> str:
        """One word for the outcome."""
        if self.dry_run:
            return "dry-run"
        return {Exit.OK: "done", Exit.PARTIAL: "partial", Exit.NOTHING: "nothing"}.get(self.exit_code, "interrupted")

    @property
    def fingerprint(self) -> str:
        """Digest of what the input is and what became of it; a repetition that changes nothing has the same."""
        outcome = [
            [entry.id, entry.code or "held", entry.item or "", entry.num_files]
            for entry in sorted(self.entries, key=lambda entry: (entry.id, entry.code, entry.item or ""))
        ]
        return sha256_json([outcome, self.not_reached, self.policy])

    def to_json(self) -> dict[str, Any]:
        """The document that `report.schema.json` describes."""
        return {
            "schema": SCHEMA_NAME,
            "command": "ingest",
            "status": self.status,
            "exit_code": int(self.exit_code),
            "tool": {"version": __version__, "allow_list": ALLOW_LIST_VERSION},
            "cache_format": RECORD_VERSION,
            "key_id": self.key_id,
            "key_is_ephemeral": self.key_is_ephemeral,
            "started": self.started,
            "duration_s": round(self.duration_s, 3),
            "counts": self.counts,
            "stored": {"images": self.num_images, "labels": self.num_labels},
            "by_code": self.by_code,
            "items": [entry.to_json() for entry in self.entries],
            "policy": self.policy,
            "interrupted_by": self.interrupted_by,
        }


def report_schema() -> dict[str, Any]:
    """The JSON Schema of the report."""
    schema: dict[str, Any] = json.loads(SCHEMA_PATH.read_text())
    return schema
