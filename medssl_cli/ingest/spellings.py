"""Labels of one file that call one image by different spellings of its name: `a`, `a.png`, `A.PNG`, `images/a.png`.

A reader of labels takes all rows of one name together, and does not know which names mean one image. What the rows
under each spelling say is a part only: boxes are missing from it, and a list of names says that the others are absent.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from medssl_cli.formats.labels import BoxLabel, FindingsLabel, Label, MaskLabel, name_key
from medssl_cli.formats.labels.boxes import PictureBoxes
from medssl_cli.formats.source import Source
from medssl_cli.ingest.failures import Failure

PARTS_OF_ONE: Failure = Failure(
    "E_LABEL_FORMAT",
    "rows call one image by different spellings of its name, and say different things",
    "call it by one name in all rows",
)


def parts_of_one(labels: Iterable[tuple[Source, Label, str]]) -> set[int]:
    """Which labels stand for a part only of what their file says about an image.

    Args:
        labels: The file, what it says, and the item that it is about.

    Returns:
        Positions among the labels, of all those of such an image.
    """
    groups: dict[tuple[Any, ...], list[tuple[int, Any]]] = defaultdict(list)
    for position, (source, label, item_id) in enumerate(labels):
        if label.reference.name is not None and not isinstance(label, MaskLabel):
            key = (source, type(label), item_id, name_key(label.reference.name))
            groups[key].append((position, _said(label)))
    return {
        position for group in groups.values() if any(said != group[0][1] for _, said in group) for position, _ in group
    }


def _said(label: BoxLabel | FindingsLabel) -> Any:
    """What a label says, without where it stands."""
    if isinstance(label, FindingsLabel):
        return label.findings
    boxes = label.placer
    return (
        (set(zip(boxes.rectangles, boxes.names, strict=True)), label.size) if isinstance(boxes, PictureBoxes) else boxes
    )
