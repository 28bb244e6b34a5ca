"""`medssl cache`: which images it holds, which labels they have, and which of them are damaged."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, JsonOption
from medssl_cli.cli.terminal import announce, result, table

COLUMNS = ("item", "patient", "kind", "channel", "case", "voxels", "mm", "labels", "boxes", "findings")
HIDDEN_IF_EMPTY = ("channel", "case", "boxes", "findings")

if TYPE_CHECKING:
    from medssl_cli.cache.items import ItemRecord


def ls(cache: CacheOption = DEFAULT_CACHE, json: JsonOption = False) -> None:
    """List the cached images, which channel of which case each is, and its labels; exit code 3 if some are damaged.

    Example: medssl cache ls
    """
    from medssl_cli.cache.store import Cache

    opened = Cache.open(cache)
    records = opened.records(include_superseded=True)
    shown = [record for record in records if record.superseded_by is None]
    if json:
        result([record.model_dump(mode="json") for record in shown], as_json=True, text="")
    else:
        rows = [_row(record) for record in shown]
        kept = [at for at, name in enumerate(COLUMNS) if name not in HIDDEN_IF_EMPTY or any(row[at] for row in rows)]
        columns, *cells = ([row[place] for place in kept] for row in (COLUMNS, *rows))
        table(f"{len(shown)} images in {cache}", columns, cells)
    end(opened.damaged_items({record.item_id for record in records}), opened.missing_items())


def labels(cache: CacheOption = DEFAULT_CACHE, json: JsonOption = False) -> None:
    """List every class, region, box and finding with its counts, and how many labelled patients are held out.

    Example: medssl cache labels
    """
    from medssl_cli.cache.label_counts import count_labels
    from medssl_cli.cache.store import Cache

    opened = Cache.open(cache)
    found = count_labels(opened.iterate())
    document = {"labels": [vars(each) for each in found.rows], "patients": found.patients}
    if json:
        result(document, as_json=True, text="")
        return
    columns = ("set", "kind", "name", "images", "patients", "voxels, boxes, absent")
    rows = [(each.label_set, each.kind, each.name, *map(str, each.counts)) for each in found.rows]
    table(f"labels in {cache}", columns, rows)
    patients = ", ".join(f"{number} {what}" for what, number in found.patients.items())
    typer.echo(f"patients of label sets with split_seed 0: {patients}")


def rebuild(cache: CacheOption = DEFAULT_CACHE, json: JsonOption = False) -> None:
    """Make the catalog anew from the items; exit code 3, and the names, if some are damaged or gone.

    Example: medssl cache rebuild
    """
    from medssl_cli.cache.store import Cache

    announce(f"cache {cache}")
    opened, damaged = Cache.open(cache), dict[str, None]()
    missing = opened.missing_items()
    num_items = opened.rebuild(lambda item: damaged.update({item: None}))
    document = {"items": num_items, "damaged": list(damaged), "missing": missing}
    result(document, as_json=json, text=f"{num_items} items")
    end(list(damaged), missing)


def _row(record: "ItemRecord") -> tuple[str, ...]:
    from medssl_cli.imaging.geometry import spacing_mm

    spacing = " x ".join(f"{value:.2f}" for value in spacing_mm(record.affine_array))
    classes = [f"{name} ({len(label.voxels_per_class)})" for name, label in record.labels.items()]
    boxes = [f"{name} ({len(found)})" for name, found in record.boxes.items()]
    findings = [f"{name} ({len(found)})" for name, found in record.findings.items()]
    return (
        record.item_id[:10],
        record.patient_key[:8],
        record.modality,
        record.channel or "",
        (record.example_key or "")[:8],
        " x ".join(str(size) for size in record.shape),
        "unknown" if record.spacing_kind == "unknown" else spacing,
        *(", ".join(each) for each in (classes, boxes, findings)),
    )


def end(damaged: list[str], missing: Sequence[str] = ()) -> None:
    """Name the items that nobody sees, and end with the code of a work of which a part is missing."""
    from medssl_cli.base.errors import Exit

    for item in damaged:
        typer.echo(f"E_CACHE_CORRUPT: item {item} is damaged and left out", err=True)
    for item in missing:
        typer.echo(f"E_CACHE_CORRUPT: item {item} is gone: the catalog has it, its folder is not there", err=True)
    if damaged:
        typer.echo(
            "\nhint: medssl cache verify --repair removes what is damaged; then run medssl ingest again", err=True
        )
    elif missing:
        typer.echo("\nhint: bring the folder items back from a copy of the cache, or run medssl ingest again", err=True)
    if damaged or missing:
        raise typer.Exit(int(Exit.PARTIAL))


COMMANDS = (ls, labels, rebuild)
