"""What several rows say about one image: of one reader they must agree, of several they are fused, or all are kept.

Findings become the share of the readers who saw them. Boxes become one if they have one name, overlap and were drawn by
different readers, as weighted box fusion (Solovyev et al., 2021, https://arxiv.org/abs/1910.13302) with equal
weights: a box joins the group whose mean it overlaps most, and the group's mean is the box.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from medssl_cli.formats.labels import RefusedRow
from medssl_cli.formats.labels.boxes import Rectangle
from medssl_cli.formats.labels.findings import RowFindings

SAME_FROM: Final = 0.2
"""Intersection over union from which two readers mean one finding; what is usual for VinDr-CXR."""


@dataclass(frozen=True)
class Saying:
    """What a row says about an image, a study or a patient.

    Args:
        line: Line of the row.
        reader: Who says it; "" if nobody says.
        said: What.
    """

    line: int
    reader: str
    said: RowFindings


def united(rows: Sequence[Saying]) -> dict[str, float] | RefusedRow:
    """All findings of rows that agree; the first row that contradicts an earlier one otherwise.

    Rows that each list some names list all of them together; a row that lists nothing says that nothing was found.
    """
    together: dict[str, float] = {}
    lists = [row.said.listed for row in rows if row.said.listed is not None]
    listed = dict.fromkeys(sorted(frozenset().union(*lists)), 1.0) if all(lists) else {}
    for row in rows:
        findings = row.said.findings | (listed if row.said.listed else {})
        if any(together.get(name, value) != value for name, value in findings.items()):
            return RefusedRow(row.line, "E_LABEL_FORMAT", "the row contradicts an earlier row of the same key")
        together |= findings
    return together


def averaged(rows: Sequence[Saying]) -> dict[str, float] | RefusedRow:
    """The mean over the readers who know; each reader's own rows must agree."""
    by_reader: dict[str, list[Saying]] = defaultdict(list)
    for row in rows:
        by_reader[row.reader].append(row)
    values: dict[str, list[float]] = defaultdict(list)
    for own in by_reader.values():
        findings = united(own)
        if isinstance(findings, RefusedRow):
            return findings
        for name, value in findings.items():
            values[name].append(value)
    return {name: sum(some) / len(some) for name, some in values.items()}


@dataclass(frozen=True)
class ReadBox:
    """A box that a reader has drawn.

    Args:
        name: What it holds.
        rectangle: Left, top, width, height in pixels.
        reader: Who; "" if nobody says.
        row: Where it stands in its file.
    """

    name: str
    rectangle: Rectangle
    reader: str
    row: int


@dataclass
class _Group:
    """Boxes of one finding, one of each reader."""

    name: str
    boxes: list[ReadBox] = field(default_factory=list)

    @property
    def mean(self) -> Rectangle:
        left, top, width, height = np.mean([box.rectangle for box in self.boxes], axis=0).tolist()
        return left, top, width, height

    def takes(self, box: ReadBox) -> bool:
        """Whether the box may be of the same finding."""
        return self.name == box.name and all(box.reader != other.reader for other in self.boxes)


def fused(boxes: Iterable[ReadBox]) -> list[tuple[ReadBox, int]]:
    """One box for each finding, and how many readers have drawn it; in the order of the first of each.

    Args:
        boxes: Boxes of one picture.
    """
    groups: list[_Group] = []
    for box in boxes:
        near = [(overlap(group.mean, box.rectangle), -index) for index, group in enumerate(groups) if group.takes(box)]
        most, index = max(near, default=(0.0, 0))
        if most < SAME_FROM:
            groups.append(_Group(box.name, [box]))
        else:
            groups[-index].boxes.append(box)
    return [
        (ReadBox(group.name, group.mean, group.boxes[0].reader, group.boxes[0].row), len(group.boxes))
        for group in groups
    ]


def overlap(one: Rectangle, other: Rectangle) -> float:
    """Intersection over union of two rectangles (left, top, width, height) that have an area."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / (one[2] * one[3] + other[2] * other[3] - common)
