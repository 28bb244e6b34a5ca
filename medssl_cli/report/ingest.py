"""The page of an ingest: what was taken, drawn; what was refused, and why."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from PIL import Image

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import GateError
from medssl_cli.cache.arrays import open_array, read_array
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.imaging.geometry import spacing_mm
from medssl_cli.imaging.planes import Planes, middle_planes
from medssl_cli.report.page import Figure, Page
from medssl_cli.report.pictures import thumbnail
from medssl_cli.report.projections import projection

MAX_PICTURES: Final = 120
MAX_LINES: Final = 500
THUMBNAIL_PX: Final = (360, 240)
CT_WINDOW: Final = (-160.0, 240.0)


def ingest_page(
    document: Mapping[str, Any],
    cache: Cache | None,
    planes: Mapping[str, Planes] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """HTML of an ingest.

    Args:
        document: The report.
        cache: Where the items are; None after a dry run, which stores nothing that could be drawn.
        planes: Middle planes by item id, where they are at hand; others are read from the cache.
        progress: Called with the number of pictures drawn, and of how many.
    """
    counts = document["counts"]
    page = Page("Ingest", f"medssl {document['tool']['version']}, key {document['key_id']}, {document['started']}")
    page.table(
        ("files", "number"),
        [(name.replace("_", " "), count) for name, count in counts.items() if count or name == "seen"],
    )
    page.paragraph("Every file that was found is in exactly one of the rows below the first.")
    departures = document["policy"]["departures"]
    if departures:
        said = ", ".join(f"`{name.replace('_', '-')}={value}`" for name, value in departures.items())
        page.notice(f"Accepted or repaired on request: {said}", kind="warning")
    if document["by_code"]:
        page.heading("Reasons").table(
            ("code", "meaning", "number"),
            [(f"`{code}`", CODES[code].meaning, count) for code, count in document["by_code"].items()],
        )
    refused = [entry for entry in document["items"] if entry["state"] == "quarantined"]
    if refused:
        page.heading("Refused").table(
            ("what", "files", "code", "why", "what to do"),
            [
                (
                    entry["id"][:10],
                    entry["files"],
                    f"`{entry['code']}`",
                    entry.get("message", ""),
                    entry.get("hint") or CODES[entry["code"]].remedy,
                )
                for entry in refused[:MAX_LINES]
            ],
            caption=_shortened(len(refused), MAX_LINES, "lines"),
        )
    if cache is not None:
        _taken(page, document["items"], cache, planes or {}, progress or (lambda done, total: None))
    return page.render()


def _taken(
    page: Page,
    entries: Sequence[Mapping[str, Any]],
    cache: Cache,
    planes: Mapping[str, Planes],
    progress: Callable[[int, int], None],
) -> None:
    states = {entry["item"]: entry for entry in entries if entry.get("item")}
    records = {record.item_id: record for record in cache.records()}
    order = sorted(states.keys() & records, key=lambda item: (states[item]["state"] != "accepted", item))
    figures = []
    for number, item in enumerate(order[:MAX_PICTURES]):
        progress(number, min(len(order), MAX_PICTURES))
        try:
            record = records[item]
            picture = _picture(cache, record, planes.get(item))
            caption = _caption(record, states[item].get("message", ""))
            figures.append(Figure(picture, f"Middle planes of item {item}", caption))
        except GateError as error:
            page.notice(f"`{item[:10]}`: {error.message}", kind="bad")
    if figures:
        page.heading("Taken").paragraph(_shortened(len(order), MAX_PICTURES, "pictures") or f"{len(order)} images.")
        page.figures(figures, columns=3)


def _picture(cache: Cache, record: ItemRecord, planes: Planes | None) -> Image.Image:
    """Middle planes of an item with true proportions; a projection as it is."""
    if record.is_volume:
        planes = planes or middle_planes(open_array(cache.image_path(record)))
        window = CT_WINDOW if record.units == "HU" else None
        return thumbnail(planes, record.shape, record.affine_array, window=window, max_size_px=THUMBNAIL_PX)
    pixels = read_array(cache.image_path(record))[:, :, 0]
    return projection(pixels, spacing_mm(record.affine_array)[:2], max_size_px=THUMBNAIL_PX)


def _caption(record: ItemRecord, message: str) -> str:
    size = " x ".join(map(str, record.shape))
    spacing = " x ".join(f"{value:.2f}" for value in spacing_mm(record.affine_array))
    place = f"{spacing} mm" if record.spacing_kind != "unknown" else "spacing unknown"
    words = [f"`{record.item_id[:10]}` {record.modality}, {size}, {place}", *record.labels, *record.boxes]
    said = {part.partition(":")[0]: part for part in message.split("; ") if part}
    warnings = [said.get(code, code) for code in record.provenance.warnings]
    return "; ".join([*words, *record.findings, *record.provenance.repairs, *warnings])


def _shortened(number: int, limit: int, what: str) -> str:
    return f"{limit} of {number} {what} are shown; the report has all." if number > limit else ""
