"""`medssl cache`: look into a cache and take images out of it; lists and checks are in `cache_*.py`."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli import cache_checks, cache_crops, cache_listing
from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, JsonOption, QuietOption
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.terminal import Terminal, announce, result

app = typer.Typer(help="List, show, verify, audit and export cached images; forget patients.", no_args_is_help=True)
Item = Annotated[str, typer.Argument(help="An item's id, or its first letters.")]


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

    outside_caches(folder)
    opened = Cache.open(cache)
    records = [opened.find(item) for item in items] if items else opened.require_records()
    terminal = Terminal(quiet=quiet)
    terminal.note(f"cache {cache}")
    with terminal.running():
        written = export_items(
            opened, folder, records, progress=lambda done, total: terminal.progress("exporting", done, total)
        )
    result([str(path) for path in written], as_json=json, text=f"{len(written)} files in {folder}")
    if not items:
        known = {record.item_id for record in opened.iterate(include_superseded=True)}
        cache_listing.end(opened.damaged_items(known))


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


for command in (*cache_listing.COMMANDS, *cache_checks.COMMANDS, *cache_crops.COMMANDS):
    app.command()(guarded(command))
