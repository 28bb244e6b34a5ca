"""`medssl cache`: look into a cache, check it, take images out of it."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, JsonOption, QuietOption
from medssl_cli.cli.terminal import Terminal, announce, result, table

app = typer.Typer(help="List, show, verify and export cached images.", no_args_is_help=True)
Item = Annotated[str, typer.Argument(help="An item's id, or its first letters.")]


@app.command("ls")
@guarded
def list_items(cache: CacheOption = DEFAULT_CACHE, json: JsonOption = False) -> None:
    """List the cached images.

    Example: medssl cache ls
    """
    from medssl_cli.cache.store import Cache
    from medssl_cli.imaging.geometry import spacing_mm

    records = Cache.open(cache).records()
    if json:
        result([record.model_dump(mode="json") for record in records], as_json=True, text="")
        return
    rows = []
    for record in records:
        spacing = " x ".join(f"{value:.2f}" for value in spacing_mm(record.affine_array))
        shape = " x ".join(str(size) for size in record.shape)
        rows.append(
            (record.item_id[:10], record.patient_key[:8], record.modality, shape, spacing, ", ".join(record.labels))
        )
    table(f"{len(records)} images in {cache}", ("item", "patient", "kind", "voxels", "mm", "labels"), rows)


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
def verify(cache: CacheOption = DEFAULT_CACHE, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Check every stored byte against its SHA-256; exit code 5 if any is damaged.

    Example: medssl cache verify
    """
    from medssl_cli.cache.store import Cache
    from medssl_cli.errors import Exit

    announce(f"cache {cache}", quiet=quiet)
    checked, problems = 0, []
    for problem in Cache.open(cache).verify():
        checked += 1
        problems += [problem] if problem is not None else []
    document = {"checked": checked, "problems": [vars(problem) for problem in problems]}
    lines = [f"{problem.code}: item {problem.item_id}: {problem.detail}" for problem in problems]
    result(document, as_json=json, text="\n".join([*lines, f"{checked} items checked, {len(problems)} damaged"]))
    if problems:
        raise typer.Exit(int(Exit.GATE))


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
