"""What earlier calls found out, to be looked up by scan, by name and by output."""

import contextlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from medssl_cli.deploy.results import ScanResult

Identity = tuple[str, str, str]
"""Task and key of a scan; entries of an earlier version have no key, but a name."""


class KnownResults:
    """Entries of reports, one for each scan and task; looking one up costs the same however many there are.

    Args:
        entries: Entries of reports; the last counts of several for one scan, or for one output.
    """

    def __init__(self, entries: Iterable[ScanResult] = ()) -> None:
        self._entries: dict[Identity, ScanResult] = {}
        self._names: dict[str, set[Identity]] = defaultdict(set)
        self._outputs: dict[str, set[Identity]] = defaultdict(set)
        for entry in entries:
            self.put(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[ScanResult]:
        """In the order of reports."""
        return iter(sorted(self._entries.values(), key=_order))

    def put(self, entry: ScanResult) -> None:
        """Take an entry in place of that of the same scan, and of those that claim the same outputs."""
        outputs = set(entry.outputs)
        for rival in [one for output in outputs for one in self._claiming(output)]:
            if not outputs.isdisjoint(rival.outputs):
                self._drop(_identity(rival))
        identity = _identity(entry)
        self._drop(identity)
        self._entries[identity] = entry
        self._names[entry.name].add(identity)
        for output in outputs:
            self._outputs[_folded(output)].add(identity)

    def entry(self, task: str, key: str, name: str) -> ScanResult | None:
        """The entry of a scan; one of an earlier version knows it by its name only."""
        own = self._entries.get((task, key, ""))
        return own or next((one for one in self._named(name) if not one.key), None)

    def holder(self, task: str, name: str) -> ScanResult | None:
        """The scan that has outputs of a name."""
        return next((one for one in self._named(name) if one.key and one.task == task), None)

    def owner(self, output: str) -> ScanResult | None:
        """The entry that an output belongs to."""
        return next((one for one in self._claiming(output) if output in one.outputs), None)

    def namesake(self, path: Path) -> ScanResult | None:
        """The entry whose output is the same file under another spelling, as on disks that take "A" for "a"."""
        name = _folded(path.name)
        claims = [(one, output) for one in self._claiming(path.name) for output in one.outputs]
        with contextlib.suppress(OSError, ValueError):
            return next(
                (one for one, output in claims if _folded(output) == name and path.samefile(path.with_name(output))),
                None,
            )
        return None

    def about(self, task: str, key: str, names: Iterable[str], outputs: Iterable[str]) -> list[ScanResult]:
        """What looking up one scan may find.

        Args:
            task: Task of the model.
            key: Key of the scan.
            names: That the scan may be given.
            outputs: Names of the files that may hold its result.
        """
        own = self._entries.get((task, key, ""))
        found = [own] if own is not None else []
        found += [one for name in names for one in self._named(name)]
        found += [one for output in outputs for one in self._claiming(output)]
        return list({_identity(one): one for one in found}.values())

    def _named(self, name: str) -> list[ScanResult]:
        return sorted((self._entries[one] for one in self._names.get(name, ())), key=_order)

    def _claiming(self, output: str) -> list[ScanResult]:
        """Entries with an output of a name, in whatever spelling."""
        return sorted((self._entries[one] for one in self._outputs.get(_folded(output), ())), key=_order)

    def _drop(self, identity: Identity) -> None:
        entry = self._entries.pop(identity, None)
        if entry is None:
            return
        self._names[entry.name].discard(identity)
        for output in entry.outputs:
            self._outputs[_folded(output)].discard(identity)


def _identity(entry: ScanResult) -> Identity:
    return entry.task, entry.key, "" if entry.key else entry.name


def _order(entry: ScanResult) -> tuple[str, str, str, str]:
    return entry.path, entry.name, entry.key, entry.task


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
