"""`medssl cache`: look into a cache and take images out of it; checking it is in `cache_checks.py`."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli import cache_checks
from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, JsonOption, QuietOption
from medssl_cli.cli.terminal import Terminal, announce, result, table

app = typer.Typer(help="List, show, verify, audit and export cached images; forget patients.", no_args_is_help=True)
Item = Annotated[str, typer.Argument(help="An item's id, or its first letters.")]


@app.command("ls")
@guarded
def list_items(cache: CacheOption = DEFAULT_CACHE, json: JsonOption = False) -> None:
    """List the cached images.

    Example: medssl cache ls
    """
    from medssl_cli.cache.store import Cache
    from medssl_cli.imaging.geometry import spacing_mm

    opened = Cache.open(cache)
    if json:
        result([record.model_dump(mode="json") for record in opened.records()], as_json=True, text="")
        return
    rows = []
    for record in opened.iterate():
        spacing = " x ".join(f"{value:.2f}" for value in spacing_mm(record.affine_array))
        shape = " x ".join(str(size) for size in record.shape)
        rows.append(
            (record.item_id[:10], record.patient_key[:8], record.modality, shape, spacing, ", ".join(record.labels))
        )
    table(f"{len(rows)} images in {cache}", ("item", "patient", "kind", "voxels", "mm", "labels"), rows)


@app.command()
@guarded
def show(item: Item, cache: CacheOption = DEFAULT_CACHE) -> None:
    """Print all that is recorded about one image, as JSON.

    Example: medssl cache show 7qk4
    """
    from medssl_cli.cache.store import Cache

    announce(f"cache {cache}")
    typer.echo(Cache.open(cache).find(item).model_dump_json(indent=2))


@app.command()
@guarded
def rebuild(cache: CacheOption = DEFAULT_CACHE, json: JsonOption = False) -> None:
    """Make the catalog anew from the items.

    Example: medssl cache rebuild
    """
    from medssl_cli.cache.store import Cache

    announce(f"cache {cache}")
    num_items = Cache.open(cache).rebuild()
    result({"items": num_items}, as_json=json, text=f"{num_items} items")


@app.command()
@guarded
def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")],
    items: Annotated[list[str] | None, typer.Argument(help="Item ids; all if none is given.")] = None,
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write images and their labels as NIfTI, for any other tool and for checking us.

    Example: medssl cache export ./niftis
    """
    from medssl_cli.cache.store import Cache
    from medssl_cli.cache.transfer import export_items

    opened = Cache.open(cache)
    records = [opened.find(item) for item in items] if items else opened.require_records()
    terminal = Terminal(quiet=quiet)
    terminal.note(f"cache {cache}")
    with terminal.running():
        written = export_items(
            opened, folder, records, progress=lambda done, total: terminal.progress("exporting", done, total)
        )
    result([str(path) for path in written], as_json=json, text=f"{len(written)} files in {folder}")


@app.command()
@guarded
def duplicates(
    distance: Annotated[int, typer.Option(min=0, max=7, help="Most bits of 64 that may differ.")] = 3,
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonOption = False,
) -> None:
    """List pairs of nearly equal images of different patients: one of the two identities may be wrong.

    Example: medssl cache duplicates
    """
    from medssl_cli.cache.fingerprints import near_duplicates
    from medssl_cli.cache.store import Cache

    announce(f"cache {cache}")
    pairs = near_duplicates(Cache.open(cache).rows(), distance)
    lines = [f"W_NEAR_DUPLICATE: {pair.first} {pair.second}: {pair.distance} of 64 bits differ" for pair in pairs]
    result([vars(pair) for pair in pairs], as_json=json, text="\n".join([*lines, f"{len(pairs)} pairs"]))


for command in cache_checks.COMMANDS:
    app.command()(guarded(command))
