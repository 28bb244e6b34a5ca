"""What became of one file of rows, row by row: refusals are counted by code, and what was stored is said.

A file of which a part was refused has several entries in the builder: what was stored, and a refusal for each code,
which makes the exit code 3. So the report and the cache say the same, and one bad row does not lose the rest.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from medssl_cli.base.codes import CODES
from medssl_cli.formats.labels import AnnotationKind, RefusedRow, refusals
from medssl_cli.ingest.failures import Failure
from medssl_cli.ingest.labels import Annotation
from medssl_cli.ingest.report import State
from medssl_cli.ingest.tasks import StoredImage, StoredLabel

_PARTS: Final[dict[AnnotationKind, tuple[str, str]]] = {
    "table": ("rows", "line"),
    "luna": ("rows", "line"),
    "coco": ("annotations", "annotation"),
}
"""What the parts of a file are called, and one of them by its number."""


@dataclass(frozen=True)
class FileOutcome:
    """One entry for the report; the arguments of `ReportBuilder.settle`."""

    state: State
    code: str = ""
    message: str = ""
    hint: str = ""
    item: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """For `ReportBuilder.settle`, but for the sources and the state."""
        return {name: getattr(self, name) for name in ("code", "message", "hint", "item", "warnings")}


@dataclass
class Tally:
    """What became of one file of rows.

    Args:
        kind: Kind of the file.
        num_rows: Rows of its labels, whatever becomes of them.
        refused: Rows that were refused; the first of each code is the one that is quoted.
        notes: Codes and what there is to say about them.
        num_silent: Rows that say nothing.
        num_unmatched: Rows that name no image.
        items: Ids of the items that labels were stored with, in order.
        is_new: Whether any of them is new.
        warnings: Codes of the labels that were stored.
        scaled: From which size to which the boxes of how many pictures were scaled.
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
    scaled: Counter[str] = field(default_factory=Counter)

    @property
    def is_silent(self) -> bool:
        """Whether nothing was stored and nothing refused."""
        return not self.items and not self.refused

    def add(self, annotation: Annotation, image: StoredImage | None, answer: StoredLabel | Failure) -> None:
        """What became of a label and an image; without an image, of a label that could not be given one."""
        if isinstance(answer, StoredLabel) and image is not None:
            self.items[image.item_id] = None
            self.is_new |= answer.is_new
            self.warnings |= dict.fromkeys(answer.warnings)
            self.scaled.update([answer.message] if answer.message else [])
        elif isinstance(answer, Failure):
            rows = sorted(annotation.rows)
            why = RefusedRow(answer.row or rows[0], answer.code, answer.message, answer.hint)
            known = {one.row for one in self.refused}
            self.refused += [one for one in refusals(why, rows) if one.row not in known]

    def outcomes(self) -> list[FileOutcome]:
        """What the report says: what was stored, and a refusal for each code."""
        by_code: dict[str, list[RefusedRow]] = {}
        for one in self.refused:
            by_code.setdefault(one.code, []).append(one)
        item = next(iter(self.items), None)
        found = [
            FileOutcome("quarantined", code, self._said(code, rows), rows[0].hint or CODES[code].remedy, item)
            for code, rows in by_code.items()
        ]
        return [self._stored(), *found] if self.items else found or [self._nothing()]

    def _said(self, code: str, rows: Sequence[RefusedRow]) -> str:
        parts, one = _PARTS[self.kind]
        where = f", the first in {one} {rows[0].row}" if rows[0].row > 0 else ""
        number = f"{len(rows)} columns" if code == "E_LABEL_COLUMN" else f"{len(rows)} of {self.num_rows} {parts}"
        others = f"; {self.num_unmatched} {parts} name no image" if self.num_unmatched and not self.items else ""
        return f"{number} refused{where}: {rows[0].reason}; stored with {len(self.items)} images{others}"

    def _stored(self) -> FileOutcome:
        parts, _ = _PARTS[self.kind]
        notes = list(self.notes)
        if self.num_unmatched:
            notes.append(("W_LABEL_UNMATCHED", f"{self.num_unmatched} of {self.num_rows} {parts} name no image"))
        if self.scaled:
            (sizes, _), *others = self.scaled.most_common()
            more = f", or of {len(others)} other sizes" if others else ""
            notes.append(("W_BOXES_SCALED", f"of {self.scaled.total()} pictures, {sizes}{more}"))
        return FileOutcome(
            "accepted" if self.is_new else "duplicate",
            message="; ".join(f"{code}: {text}" for code, text in notes),
            item=next(iter(self.items)),
            warnings=tuple(dict.fromkeys((*self.warnings, *(code for code, _ in notes)))),
        )

    def _nothing(self) -> FileOutcome:
        parts, _ = _PARTS[self.kind]
        if self.num_unmatched:
            code, said = "E_LABEL_WITHOUT_IMAGE", f"none of {self.num_rows} {parts} names an image that is known"
        else:
            code, said = "E_LABEL_FORMAT", f"none of {self.num_rows} {parts} says anything about an image"
        said += "".join(f"; {text}" for _, text in self.notes)
        return FileOutcome("quarantined", code, said, CODES[code].remedy)
