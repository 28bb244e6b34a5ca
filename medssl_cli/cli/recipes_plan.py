"""`medssl recipes plan`: a canvas for the images at hand."""

import shlex
from dataclasses import asdict
from typing import Any

from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, JsonOption, QuietOption, RecipeOption, SetOption
from medssl_cli.cli.terminal import Terminal, result, table


def plan(
    recipe: RecipeOption = "voco",
    cache: CacheOption = DEFAULT_CACHE,
    overrides: SetOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Propose spacing, grid and crop size for a cache, at no more cost than the recipe's.

    Small images leave most of a large canvas empty, and the loss then does not fall. What is printed is a proposal:
    pass the --set line to `medssl pretrain`, or change it.

    Example: medssl recipes plan --recipe voco --cache CACHE
    """
    from medssl_cli.base.errors import UsageError
    from medssl_cli.cache.store import Cache
    from medssl_cli.engine.canvas import plan_canvas
    from medssl_cli.recipe import PretrainRecipe, find_recipe, load_recipe

    path = find_recipe(recipe, ("pretrain",))
    resolved = load_recipe(path, overrides)
    if not isinstance(resolved, PretrainRecipe):
        raise UsageError("E_RECIPE", f"{path.name} is a task recipe", hint="plan a pre-training recipe")
    found = plan_canvas(resolved, Cache.open(cache), Terminal(quiet=quiet))
    if json:
        result(asdict(found), as_json=True, text="")
        return
    _show(asdict(found))
    line = " ".join(f"--set {shlex.quote(setting)}" for setting in (overrides or []) + found.settings)
    lines = [f"warning: {warning}" for warning in found.warnings]
    lines.append(f"next: medssl pretrain --recipe {recipe} --cache {cache} {line}".rstrip())
    if not found.settings:
        lines.insert(0, "the recipe's canvas suits this cache")
    result(None, as_json=False, text="\n".join(lines))


def _show(document: dict[str, Any]) -> None:
    found = document["proposal"]
    counts = ", ".join(f"{count} {modality}" for modality, count in document["modalities"].items())
    extent, native = _times(found["extent_mm"], "mm", 0), _times(found["native_mm"], "mm", 2)
    pairs = [(found["recipe"], found["recipe_fit"]), (found["canvas"], found["fit"])]
    rows = [
        ["spacing", *(_times(canvas["spacing_mm"], "mm", 2) for canvas, _ in pairs)],
        ["base crops", *(_times(canvas["base_grid"]) for canvas, _ in pairs)],
        ["crop size", *(_times(canvas["crop_size"], "voxels") for canvas, _ in pairs)],
        ["canvas", *(_extent(canvas) for canvas, _ in pairs)],
        ["of the median volume inside", *(f"{fit['coverage']:.0%}" for _, fit in pairs)],
        ["padding, median", *(f"{fit['padding']:.0%}" for _, fit in pairs)],
        ["padding, 75th percentile", *(f"{fit['padding_p75']:.0%}" for _, fit in pairs)],
        ["volumes with over a third padding", *(f"{fit['share_padded']:.0%}" for _, fit in pairs)],
    ]
    title = f"{counts}: median {extent}, voxels of {native}; {found['num_considered']} canvases considered"
    table(title, ["", "recipe", "proposal"], rows)


def _extent(canvas: dict[str, Any]) -> str:
    axes = zip(canvas["spacing_mm"], canvas["base_grid"], canvas["crop_size"], strict=True)
    return _times([step * cells * voxels for step, cells, voxels in axes], "mm", 0)


def _times(values: list[float], unit: str = "", digits: int = 0) -> str:
    return f"{' x '.join(f'{round(value, digits):g}' for value in values)} {unit}".rstrip()
