"""Boxes of a table: each row is one box, or says that somebody has looked at a picture and found nothing.

The boxes of one picture are taken together or not at all: a picture of which a box is missing would teach that there is
nothing at that place.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from medssl_cli.base.errors import InputError
from medssl_cli.base.names import is_safe_name
from medssl_cli.formats.labels import MAX_FINDINGS, MAX_MARKS, BoxLabel, Reading, Reference, RefusedRow, refusals
from medssl_cli.formats.labels.boxes import (
    MAX_PIXEL,
    PictureBoxes,
    Rectangle,
    check_units,
    checked_rectangle,
    unknown_sizes,
)
from medssl_cli.formats.labels.columns import BoxColumns, plain
from medssl_cli.formats.labels.csv_rows import Row, Table
from medssl_cli.formats.labels.findings import NOTHING, is_unknown, number_in, refuse_spellings
from medssl_cli.formats.labels.readers import ReadBox, fused
from medssl_cli.formats.table_choice import Readers

MAX_SIDE: Final = 32_767
UNNAMED: Final = "box"
_OF_NOTHING: Final = (0.0, 0.0, 1.0, 1.0)
"""What tables made for the metric of VinDr-CXR's competition hold for a picture without findings."""
_ROW_OF_NOTHING: Final = "the row says that nothing was found, and has a box"
_BOX_MISSING: Final = "the row names what was found, and has no box"


@dataclass(frozen=True)
class BoxTable:
    """A table of boxes, and where what stands in it.

    Args:
        table: All of it.
        columns: Columns of the boxes.
        names: Column that says what a box holds.
        present: Where there is none: column of 0 and 1 that says whether there is anything, and what.
        reader: Column that says whose box it is.
        readers: What becomes of the boxes of several readers.
        default_size: Columns and rows of pictures of which the table does not say it.
    """

    table: Table
    columns: BoxColumns
    names: int | None = None
    present: tuple[int, str] | None = None
    reader: int | None = None
    readers: Readers = "fuse"
    default_size: tuple[int, int] | None = None


@dataclass
class _Picture:
    """The rows of one picture, and why it is refused, if it is."""

    boxes: dict[tuple[str, Rectangle, str], ReadBox] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    says_nothing: bool = False
    refused: RefusedRow | None = None

    @property
    def num_readers(self) -> int:
        """How many have drawn boxes."""
        return len({box.reader for box in self.boxes.values()})


def read_boxes(boxes: BoxTable, references: Sequence[Reference | RefusedRow]) -> Reading:
    """The boxes of each picture.

    Args:
        boxes: The table.
        references: References of each row, or why it has none.

    Raises:
        InputError: `E_LABEL_FORMAT`, the boxes are in shares of the picture, or their names are free text;
            `E_NAME_COLLISION`, some are spelt in several ways.
    """
    _check_names(boxes)
    pictures: dict[Reference, _Picture] = {}
    refused = [reference for reference in references if isinstance(reference, RefusedRow)]
    for row, reference in zip(boxes.table.rows, references, strict=True):
        if isinstance(reference, RefusedRow):
            continue
        picture = pictures.setdefault(reference, _Picture())
        picture.rows.append(row.line)
        try:
            _add(picture, row, boxes)
        except InputError as error:
            picture.refused = picture.refused or RefusedRow(row.line, error.code, error.message)
    check_units(rectangle for picture in pictures.values() for _, rectangle, _ in picture.boxes)
    labels: list[BoxLabel] = []
    num_silent = 0
    for reference, picture in pictures.items():
        why = picture.refused or _contradiction(picture, boxes)
        if why is None and not picture.boxes and not picture.says_nothing:
            num_silent += len(picture.rows)
        elif why is None:
            labels.append(_label(reference, picture, boxes))
        else:
            refused += refusals(why, picture.rows)
    return Reading(tuple(labels), tuple(refused), tuple(_notes(boxes, pictures.values(), labels)), num_silent)


def _add(picture: _Picture, row: Row, boxes: BoxTable) -> None:
    """Take one row in."""
    if boxes.columns.size is not None:
        size = [row.fields[column] for column in boxes.columns.size]
        if not all(map(is_unknown, size)):
            picture.sizes.add((_side(size[0], boxes.table), _side(size[1], boxes.table)))
    name, rectangle = _name(row, boxes), _rectangle(row, boxes)
    if rectangle is None and name is not None and name != UNNAMED:
        if name:
            raise InputError("E_LABEL_FORMAT", _BOX_MISSING)
        picture.says_nothing = True
    elif rectangle is None:
        return
    elif name is None:
        raise InputError("E_LABEL_FORMAT", "a box of which nothing says what it holds")
    elif name:
        reader = "" if boxes.reader is None else row.fields[boxes.reader]
        picture.boxes.setdefault((name, rectangle, reader), ReadBox(name, rectangle, reader, row.line))
    elif rectangle != _OF_NOTHING:
        raise InputError("E_LABEL_FORMAT", _ROW_OF_NOTHING)
    else:
        picture.says_nothing = True


def _name(row: Row, boxes: BoxTable) -> str | None:
    """What the box of a row holds; "" if the row says that nothing was found, None if it does not know."""
    if boxes.names is not None:
        name = row.fields[boxes.names]
        return None if is_unknown(name) else "" if plain(name) in NOTHING else name
    if boxes.present is None:
        return UNNAMED
    column, name = boxes.present
    text = row.fields[column].lower()
    if is_unknown(text):
        return None
    return "" if text == "false" or (text != "true" and number_in(text, boxes.table) == 0) else name


def _rectangle(row: Row, boxes: BoxTable) -> Rectangle | None:
    """Left, top, width and height; None if all four are missing."""
    fields = [row.fields[column] for column in boxes.columns.places]
    if len(fields) == 1:
        fields = re.split(r"[\s,;]+", fields[0].strip("[](){} ")) if not is_unknown(fields[0].strip("[](){} ")) else []
    if all(map(is_unknown, fields)):
        return None
    if len(fields) != 4:
        raise InputError("E_LABEL_FORMAT", f"a box of {len(fields)} numbers")
    left, top, third, fourth = (number_in(text, boxes.table, limit=MAX_PIXEL) for text in fields)
    if boxes.columns.are_corners:
        third, fourth = third - left, fourth - top
    return checked_rectangle(left, top, third, fourth)


def _side(text: str, table: Table) -> int:
    number = number_in(text, table, limit=MAX_SIDE)
    if number < 1 or number != int(number):
        raise InputError("E_LABEL_FORMAT", "a picture of an impossible size")
    return int(number)


def _contradiction(picture: _Picture, boxes: BoxTable) -> RefusedRow | None:
    said = ""
    if len(picture.sizes) > 1:
        said = "rows of one picture disagree on its size"
    elif picture.says_nothing and picture.boxes and boxes.reader is None:
        said = "one row says that nothing was found, another of the same picture has a box"
    elif len(picture.boxes) > MAX_MARKS:
        said = f"more than {MAX_MARKS} boxes in one picture"
    return RefusedRow(picture.rows[0], "E_LABEL_FORMAT", said) if said else None


def _label(reference: Reference, picture: _Picture, boxes: BoxTable) -> BoxLabel:
    drawn = list(picture.boxes.values())
    is_fused = boxes.readers == "fuse" and boxes.reader is not None
    held = fused(drawn) if is_fused else [(box, None) for box in drawn]
    return BoxLabel(
        reference,
        PictureBoxes(
            tuple(box.rectangle for box, _ in held),
            tuple(box.name for box, _ in held),
            tuple(number for _, number in held),
            tuple(box.row for box, _ in held),
        ),
        size=next(iter(picture.sizes), boxes.default_size),
        rows=tuple(picture.rows),
    )


def _check_names(boxes: BoxTable) -> None:
    if boxes.names is None:
        return
    names = {row.fields[boxes.names] for row in boxes.table.rows} - {""}
    if len(names) > MAX_FINDINGS or not all(map(is_safe_name, names)):
        raise InputError(
            "E_LABEL_FORMAT", f"{len(names)} different names of boxes, or names of other signs than letters"
        )
    refuse_spellings(name for name in names if plain(name) not in NOTHING)


def _notes(boxes: BoxTable, pictures: Iterable[_Picture], labels: Sequence[BoxLabel]) -> list[tuple[str, str]]:
    notes = []
    num_read = sum(picture.num_readers > 1 for picture in pictures)
    if num_read and boxes.readers == "fuse":
        notes.append(("W_READERS_FUSED", f"in {num_read} pictures"))
    return [*notes, *unknown_sizes(labels)]
