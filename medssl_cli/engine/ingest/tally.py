"""What became of one file of labels, row by row: refusals are counted by code, and what was stored is said.

A file of which a part was refused has two entries in the ledger: a refusal, which makes the exit code 3, and what was
stored. So the report and the cache say the same, and the rest of a file is not lost with one bad row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from medssl_cli.codes import CODES
from medssl_cli.engine.ingest.failures import Failure
from medssl_cli.engine.ingest.report import State
from medssl_cli.engine.ingest.tasks import StoredLabel
from medssl_cli.formats.labels import AnnotationKind, RefusedRow, refusals

_PARTS: Final[dict[AnnotationKind, tuple[str, str]]] = {
    "table": ("rows", "line"),
    "luna": ("rows", "line"),
    "coco": ("annotations", "annotation"),
}
"""What the parts of a file are called, and one of them by its number."""


@dataclass(frozen=True)
class Outcome:
    """One entry for the ledger; the arguments of `Ledger.settle`."""

    state: State
    code: str = ""
    message: str = ""
    hint: str = ""
    item: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """For `Ledger.settle`, but for the sources and the state."""
        return {name: getattr(self, name) for name in ("code", "message", "hint", "item", "warnings")}


@dataclass
class Tally:
    """The books of one file.

    Args:
        kind: Of the file.
        num_rows: Rows of its labels, whatever becomes of them; a label without rows counts as one.
        refused: Rows that were refused; the first of each code is the one that is quoted.
        notes: Codes and what there is to say about them.
        num_silent: Rows that say nothing.
        num_unmatched: Rows that name no image.
        items: Ids of the items that labels were stored with, in order.
        is_new: Whether any of them is new.
        warnings: Codes of the labels that were stored.
    """

    kind: AnnotationKind
    num_rows: int = 0
    refused: list[RefusedRow] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    num_silent: int = 0
    num_unmatched: int = 0
    items: dict[str, None] = field(default_factory=dict)
    is_new: bool = False
    warnings: dict[str, None] = field(default_factory=dict)

    def refuse(self, failure: Failure, rows: Sequence[int]) -> None:
        """A label was not stored with an image.

        Args:
            failure: Why.
            rows: Of the label.
        """
        row = failure.row or next(iter(rows), 0)
        known = {one.row for one in self.refused if one.row}
        why = RefusedRow(row, failure.code, failure.message, failure.hint)
        self.refused += [one for one in refusals(why, rows) if one.row not in known]

    def store(self, label: StoredLabel, item: str) -> None:
        """A label was stored, or was there already."""
        self.items[item] = None
        self.is_new |= label.is_new
        self.warnings |= dict.fromkeys(label.warnings)

    def outcomes(self) -> list[Outcome]:
        """What the ledger says: a refusal for each code, and what was stored."""
        found = self._refusals()
        if self.items or not found:
            found.append(self._rest())
        return found

    def _refusals(self) -> list[Outcome]:
        by_code: dict[str, list[RefusedRow]] = {}
        for one in self.refused:
            by_code.setdefault(one.code, []).append(one)
        found: list[Outcome] = []
        for code, rows in by_code.items():
            said = self._said(code, rows)
            if not found:
                said += "".join(f"; {text}" for text in self._aside())
            found.append(Outcome("quarantined", code, said, rows[0].hint or CODES[code].remedy))
        return found

    def _said(self, code: str, rows: Sequence[RefusedRow]) -> str:
        parts, one = _PARTS.get(self.kind, ("labels", "label"))
        first = rows[0]
        if self.kind not in _PARTS and self.num_rows == 1:
            return first.reason
        where = f", the first in {one} {first.row}" if first.row else ""
        if code == "E_LABEL_COLUMN":
            return f"{len(rows)} columns refused{where}: {first.reason}"
        return f"{len(rows)} of {self.num_rows} {parts} refused{where}: {first.reason}"

    def _aside(self) -> list[str]:
        """What else there is to say beside a refusal."""
        parts, _ = _PARTS.get(self.kind, ("labels", "label"))
        said = [f"stored with {len(self.items)} images"] if self.items or self.kind in _PARTS else []
        if self.num_unmatched and not self.items:
            said.append(f"{self.num_unmatched} {parts} name no image")
        return said

    def _rest(self) -> Outcome:
        parts, _ = _PARTS.get(self.kind, ("labels", "label"))
        notes = list(self.notes)
        if self.num_unmatched and self.items:
            notes.append(("W_LABEL_UNMATCHED", f"{self.num_unmatched} of {self.num_rows} {parts} name no image"))
        if self.items:
            message = "; ".join(f"{code}: {text}" for code, text in notes)
            warnings = tuple(dict.fromkeys((*self.warnings, *(code for code, _ in notes))))
            state: State = "accepted" if self.is_new else "duplicate"
            return Outcome(state, message=message, item=next(iter(self.items)), warnings=warnings)
        if self.num_unmatched:
            code, said = "E_LABEL_WITHOUT_IMAGE", f"none of {self.num_rows} {parts} names an image that is known"
        else:
            code, said = "E_LABEL_FORMAT", f"none of {self.num_rows} {parts} says anything about an image"
        said += "".join(f"; {text}" for _, text in notes)
        return Outcome("quarantined", code, said, CODES[code].remedy)
