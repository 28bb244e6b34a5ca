"""`medssl recipes`: what ships, what it says, how to make one's own."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.options import JsonOption, QuietOption, SetOption
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.recipes_plan import plan
from medssl_cli.cli.split_options import SkipMissingOption, SplitFileOption, given_split
from medssl_cli.cli.terminal import Terminal, result

app = typer.Typer(help="List, show, copy, check and plan recipes.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")]


@app.command("ls")
@guarded
def list_recipes(json: JsonOption = False) -> None:
    """List the shipped recipes.

    Example: medssl recipes ls
    """
    from medssl_cli.recipe import find_recipe, recipe_names

    names = {"pretrain": recipe_names("pretrain"), "tasks": recipe_names("tasks")}
    lines = []
    for kind, members in names.items():
        for name in members:
            first = find_recipe(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            lines.append(f"{kind:9} {name:18} {first}")
    result(names, as_json=json, text="\n".join(lines))


@app.command()
@guarded
def show(name: Name) -> None:
    """Print a recipe.

    Example: medssl recipes show voco
    """
    from medssl_cli.recipe import find_recipe

    typer.echo(find_recipe(name).read_text(encoding="utf-8", errors="replace"), nl=False)


@app.command()
@guarded
def copy(name: Name, path: Annotated[Path, typer.Argument(help="File to write; it must not exist.")]) -> None:
    """Copy a recipe, to change it.

    Example: medssl recipes copy heart-seg my-heart.yaml
    """
    from medssl_cli.base.errors import UsageError
    from medssl_cli.base.files import write_atomic
    from medssl_cli.recipe import find_recipe

    if path.exists():
        raise UsageError("E_OUTPUT_EXISTS", f"{path} exists already")
    write_atomic(outside_caches(path), find_recipe(name).read_bytes(), is_output=True)
    typer.echo(f"{path}\nnext: edit it, then: medssl recipes check {path}")


@app.command()
@guarded
def check(
    name: Name,
    overrides: SetOption = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Check too that this cache has the images and labels it needs.")
    ] = None,
    split_file: SplitFileOption = None,
    skip_missing: SkipMissingOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check a recipe: keys, values, and that its network can be built. All faults are told at once.

    Examples:

        medssl recipes check my-heart.yaml

        medssl recipes check my-heart.yaml --cache CACHE

        medssl recipes check my-heart.yaml --cache CACHE --split-file splits_final.json
    """
    from medssl_cli.base.errors import UsageError
    from medssl_cli.cache.store import Cache
    from medssl_cli.engine.check import check_with_cache, checked_recipe
    from medssl_cli.recipe import dump_recipe, find_recipe, recipe_hash

    if split_file and cache is None:
        raise UsageError("E_USAGE", "--split-file names images of a cache", hint="add --cache")
    recipe, given = checked_recipe(find_recipe(name), overrides), None
    if split_file or skip_missing:
        given, _ = given_split(split_file, 0, None, skip_missing=skip_missing)
    document = {"recipe": dump_recipe(recipe), "sha256": recipe_hash(recipe)}
    text = f"{name} is sound (sha256 {recipe_hash(recipe)[:12]})"
    if cache is not None:
        document["cache"] = check_with_cache(recipe, Cache.open(cache), Terminal(quiet=quiet), given)
        text += f"\n{cache} has {document['cache']}"
    result(document, as_json=json, text=text)


app.command()(guarded(plan))
