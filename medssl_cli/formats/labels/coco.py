"""Boxes of pictures in the JSON of COCO (https://cocodataset.org/#format-data).

Taken: `images` (id, file_name, width, height), `categories` (id, name) and `annotations` (image_id, category_id, bbox,
iscrowd). Everything else, such as attributes, polygons and notes, is not looked at. Boxes of crowds are left out.
"""

import json
from collections import Counter, defaultdict
from typing import Any, Final

from medssl_cli.errors import InputError
from medssl_cli.formats.labels import (
    MAX_CLASSES,
    MAX_MARKS,
    BoxLabel,
    Reference,
    name_key,
    number_of,
)
from medssl_cli.formats.labels.boxes import MAX_PIXEL, PictureBoxes, checked_rectangle
from medssl_cli.formats.source import Source, read_bytes
from medssl_cli.names import unique_names

MAX_FILE_BYTES: Final = 256 * 2**20
MAX_IMAGES: Final = 2_000_000
MAX_SIDE: Final = 32_767
_TABLES: Final = ("images", "annotations", "categories")


def is_coco(document: Any) -> bool:
    """Whether a JSON document is a data set of COCO with boxes."""
    return isinstance(document, dict) and all(isinstance(document.get(name), list) for name in _TABLES)


def read_coco(source: Source) -> tuple[BoxLabel, ...]:
    """Read a data set's boxes.

    Returns:
        One label for each picture, also for those without boxes: it was looked at and none was found.

    Raises:
        InputError: `E_LABEL_FORMAT` for anything that is not as the format says, above all ids that are double or
            refer to nothing; `E_TOO_BIG`; or what `read_bytes` raises.
    """
    try:
        document = json.loads(read_bytes(source, max_bytes=MAX_FILE_BYTES), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError("E_LABEL_FORMAT", f"not a JSON document ({type(error).__name__})") from None
    if not is_coco(document):
        raise InputError("E_LABEL_FORMAT", "a JSON document without images, annotations and categories")
    images = _by_id(document["images"])
    names = _category_names(document["categories"])
    boxes = _boxes(document["annotations"], images, names)
    labels = [_label(image, boxes.get(number, [])) for number, image in images.items()]
    repeated = sum(count > 1 for count in Counter(name_key(label.reference.name or "") for label in labels).values())
    if repeated:
        raise InputError("E_LABEL_FORMAT", f"{repeated} file names belong to several pictures")
    return tuple(labels)


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _by_id(entries: list[Any]) -> dict[int, dict[str, Any]]:
    if len(entries) > MAX_IMAGES:
        raise InputError("E_TOO_BIG", f"{len(entries)} entries, more than {MAX_IMAGES}")
    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        number = _whole(entry, "id")
        if number in found:
            raise InputError("E_LABEL_FORMAT", "an id occurs twice")
        found[number] = entry
    return found


def _category_names(entries: list[Any]) -> dict[int, str]:
    if len(entries) > MAX_CLASSES:
        raise InputError("E_TOO_BIG", f"{len(entries)} categories, more than {MAX_CLASSES}")
    categories = _by_id(entries)
    return dict(zip(categories, unique_names(_string(one, "name") for one in categories.values()), strict=True))


def _boxes(
    entries: list[Any], images: dict[int, dict[str, Any]], names: dict[int, str]
) -> dict[int, list[tuple[str, tuple[float, float, float, float]]]]:
    """Names and rectangles by image id."""
    boxes: dict[int, list[tuple[str, tuple[float, float, float, float]]]] = defaultdict(list)
    _by_id(entries)
    for entry in entries:
        image, category = _whole(entry, "image_id"), _whole(entry, "category_id")
        if image not in images or category not in names:
            raise InputError("E_LABEL_FORMAT", "an annotation names a picture or category that is not there")
        crowd = entry.get("iscrowd", 0)
        bbox = entry.get("bbox")
        if crowd not in (0, 1) or not isinstance(bbox, list) or len(bbox) != 4:
            raise InputError("E_LABEL_FORMAT", "an annotation without a box of four numbers, or neither crowd nor not")
        left, top, width, height = (number_of(value, limit=MAX_PIXEL) for value in bbox)
        if not crowd:
            boxes[image].append((names[category], checked_rectangle(left, top, width, height)))
        if len(boxes[image]) > MAX_MARKS:
            raise InputError("E_TOO_BIG", f"more than {MAX_MARKS} boxes in one picture")
    return boxes


def _label(image: dict[str, Any], boxes: list[tuple[str, tuple[float, float, float, float]]]) -> BoxLabel:
    width, height = _whole(image, "width"), _whole(image, "height")
    name = _string(image, "file_name")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE) or not name_key(name):
        raise InputError("E_LABEL_FORMAT", "a picture without a file name or of an impossible size")
    rectangles = PictureBoxes(tuple(box for _, box in boxes), tuple(category for category, _ in boxes))
    return BoxLabel(Reference(name=name), rectangles, size=(width, height))


def _whole(entry: Any, name: str) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InputError("E_LABEL_FORMAT", "an entry lacks a whole number that the format requires")
    return value


def _string(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or len(value) > 4096:
        raise InputError("E_LABEL_FORMAT", "an entry lacks a name that the format requires")
    return value
