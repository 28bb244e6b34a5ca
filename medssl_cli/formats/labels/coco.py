"""Boxes of pictures in the JSON of COCO (https://cocodataset.org/#format-data).

Taken: `images` (id, file_name, width, height), `categories` (id, name) and `annotations` (image_id, category_id, bbox,
iscrowd). Everything else, such as attributes, polygons and notes, is not looked at. Boxes of crowds are left out, and
counted. An entry that is not as the format says costs its picture: the boxes of one picture are taken together or not
at all.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from medssl_cli.base.errors import InputError
from medssl_cli.base.names import unique_names
from medssl_cli.formats.labels import (
    MAX_CLASSES,
    MAX_MARKS,
    BoxLabel,
    Reading,
    Reference,
    RefusedRow,
    num_shared_folders,
    number_of,
    refusals,
)
from medssl_cli.formats.labels.boxes import (
    MAX_PIXEL,
    PictureBoxes,
    Rectangle,
    check_units,
    checked_rectangle,
    unknown_sizes,
)
from medssl_cli.formats.source import Source, read_bytes

MAX_FILE_BYTES: Final = 256 * 2**20
MAX_IMAGES: Final = 2_000_000
MAX_SIDE: Final = 32_767
_TABLES: Final = ("images", "annotations", "categories")


@dataclass
class _Picture:
    """An entry of `images` and its annotations; `row` counts the annotations of the document from 1.

    Args:
        name: Name of its file.
        size: Columns and rows; None if the entry does not say.
        boxes: Name, rectangle and row of each.
        rows: Rows of all of its annotations.
        refused: Why it is refused, if it is.
    """

    name: str = ""
    size: tuple[int, int] | None = None
    boxes: dict[tuple[str, Rectangle], int] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    refused: RefusedRow | None = None

    def refuse(self, row: int, why: str) -> None:
        self.refused = self.refused or RefusedRow(row, "E_LABEL_FORMAT", why)


def is_coco(document: Any) -> bool:
    """Whether a JSON document is a data set of COCO with boxes."""
    return isinstance(document, dict) and all(isinstance(document.get(name), list) for name in _TABLES)


def read_coco(source: Source, *, default_size: tuple[int, int] | None = None) -> Reading:
    """Read a data set's boxes.

    Args:
        source: JSON of COCO.
        default_size: Columns and rows of pictures of which the file does not say them.

    Returns:
        One label for each picture, also for those without boxes: it was looked at and none was found. Rows are numbers
        of annotations, from 1.

    Raises:
        InputError: `E_LABEL_FORMAT`, it is no such document, or all boxes are in shares of their pictures;
            `E_NAME_COLLISION`, categories cannot be told apart by
            their names; `E_TOO_BIG`; or what `read_bytes` raises.
    """
    try:
        document = json.loads(read_bytes(source, max_bytes=MAX_FILE_BYTES), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError("E_LABEL_FORMAT", f"not a JSON document ({type(error).__name__})") from None
    if not is_coco(document):
        raise InputError("E_LABEL_FORMAT", "a JSON document without images, annotations and categories")
    for name, most in (("images", MAX_IMAGES), ("categories", MAX_CLASSES), ("annotations", 10 * MAX_IMAGES)):
        if len(document[name]) > most:
            raise InputError("E_TOO_BIG", f"{len(document[name])} entries, more than {most}")
    categories, notes = _categories(document["categories"])
    refused: list[RefusedRow] = []
    pictures = _pictures(document["images"], refused)
    num_crowds = _take_annotations(document["annotations"], pictures, categories, refused)
    check_units(rectangle for picture in pictures.values() for _, rectangle in picture.boxes)
    _refuse_repeated(pictures.values())
    labels = []
    num_shared = num_shared_folders([picture.name for picture in pictures.values()])
    for picture in pictures.values():
        if picture.refused is None:
            picture.size = picture.size or default_size
            labels.append(_label(picture, num_shared))
        else:
            refused += refusals(picture.refused, picture.rows)
    if num_crowds:
        notes.append(("W_LABEL_NOT_TAKEN", f"{num_crowds} boxes of crowds"))
    notes += unknown_sizes(labels)
    return Reading(tuple(labels), tuple(refused), tuple(notes))


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _categories(entries: list[Any]) -> tuple[dict[int, str], list[tuple[str, str]]]:
    """Names by id, and a note on those that were changed. Categories that nothing tells apart are one."""
    names: dict[int, str] = {}
    groups: dict[str, set[str]] = {}
    for entry in entries:
        number, name = _whole(entry, "id"), _string(entry, "name")
        if names.setdefault(number, name) is not name:
            raise InputError("E_LABEL_FORMAT", "an id of a category occurs twice")
        groups.setdefault(name, set()).add(str(entry.get("supercategory")))
    if any(len(above) > 1 for above in groups.values()):
        raise InputError("E_NAME_COLLISION", "categories of one name are told apart by what they belong to only")
    stored = dict(zip(groups, unique_names(groups), strict=True))
    num_changed = sum(before != after for before, after in stored.items())
    notes = [("W_NAME_CHANGED", f"of {num_changed} of {len(stored)} categories")] if num_changed else []
    return {number: stored[name] for number, name in names.items()}, notes


def _pictures(entries: list[Any], refused: list[RefusedRow]) -> dict[int, _Picture]:
    """Pictures by id; entries without one are refused."""
    pictures: dict[int, _Picture] = {}
    for entry in entries:
        try:
            number = _whole(entry, "id")
        except InputError as error:
            refused.append(RefusedRow(0, error.code, error.message))
            continue
        if number in pictures:
            pictures[number].refuse(0, "an id of a picture occurs twice")
            continue
        picture = pictures[number] = _Picture()
        try:
            picture.name = _string(entry, "file_name")
            picture.size = _size(entry)
        except InputError as error:
            picture.refuse(0, error.message)
    return pictures


def _take_annotations(
    entries: list[Any], pictures: dict[int, _Picture], categories: dict[int, str], refused: list[RefusedRow]
) -> int:
    """Give every annotation to its picture.

    Returns:
        How many are of crowds, and left out.
    """
    num_crowds = 0
    ids = Counter(entry.get("id") for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), int))
    for row, entry in enumerate(entries, start=1):
        try:
            picture = pictures.get(_whole(entry, "image_id"))
        except InputError as error:
            refused.append(RefusedRow(row, error.code, error.message))
            continue
        if picture is None:
            refused.append(RefusedRow(row, "E_LABEL_FORMAT", "an annotation names a picture that is not there"))
            continue
        picture.rows.append(row)
        try:
            if ids[_whole(entry, "id")] > 1:
                raise InputError("E_LABEL_FORMAT", "an id of an annotation occurs twice")
            is_crowd, name, rectangle = _box(entry, categories)
        except InputError as error:
            picture.refuse(row, error.message)
            continue
        num_crowds += is_crowd
        if not is_crowd:
            picture.boxes.setdefault((name, rectangle), row)
        if len(picture.boxes) > MAX_MARKS:
            picture.refuse(row, f"more than {MAX_MARKS} boxes in one picture")
    return num_crowds


def _box(entry: dict[str, Any], categories: dict[int, str]) -> tuple[bool, str, Rectangle]:
    """Whether an annotation is of a crowd, its name and its rectangle."""
    category = _whole(entry, "category_id")
    if category not in categories:
        raise InputError("E_LABEL_FORMAT", "an annotation names a category that is not there")
    crowd, bbox = entry.get("iscrowd", 0), entry.get("bbox")
    if crowd not in (0, 1) or not isinstance(bbox, list) or len(bbox) != 4:
        raise InputError("E_LABEL_FORMAT", "an annotation without a box of four numbers, or neither crowd nor not")
    left, top, width, height = (number_of(value, limit=MAX_PIXEL) for value in bbox)
    return bool(crowd), categories[category], checked_rectangle(left, top, width, height)


def _refuse_repeated(pictures: Iterable[_Picture]) -> None:
    """Refuse pictures of one file name and file: nobody knows which of their boxes count."""
    by_name: dict[str, list[_Picture]] = {}
    for picture in pictures:
        by_name.setdefault(picture.name.replace("\\", "/").lower(), []).append(picture)
    for same in by_name.values():
        if len(same) > 1:
            for picture in same:
                picture.refuse(0, f"{len(same)} pictures of one file name")


def _label(picture: _Picture, num_shared: int) -> BoxLabel:
    names, rectangles = zip(*picture.boxes, strict=True) if picture.boxes else ((), ())
    boxes = PictureBoxes(tuple(rectangles), tuple(names), rows=tuple(picture.boxes.values()))
    reference = Reference(name=picture.name, num_shared=num_shared)
    return BoxLabel(reference, boxes, size=picture.size, rows=tuple(picture.rows))


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Columns and rows of a picture; None if neither is given."""
    if entry.get("width") is None and entry.get("height") is None:
        return None
    width, height = _whole(entry, "width"), _whole(entry, "height")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InputError("E_LABEL_FORMAT", "a picture of an impossible size")
    return width, height


def _whole(entry: Any, name: str) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InputError("E_LABEL_FORMAT", "an entry lacks a whole number that the format requires")
    return value


def _string(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not 1 <= len(value.strip()) <= 4096:
        raise InputError("E_LABEL_FORMAT", "an entry lacks a name that the format requires")
    return value
