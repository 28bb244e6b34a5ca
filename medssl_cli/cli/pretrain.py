"""`medssl pretrain`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.options import (
    DEFAULT_CACHE,
    CacheOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    RecipeOption,
    RunOption,
    SetOption,
)
from medssl_cli.cli.terminal import Terminal, result


def pretrain(
    recipe: RecipeOption = "voco",
    cache: CacheOption = DEFAULT_CACHE,
    overrides: SetOption = None,
    run: RunOption = None,
    device: DeviceOption = "auto",
    profile: Annotated[int, typer.Option(min=0, help="Time the parts of so many steps, for RUN/profile.json.")] = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn an encoder from unlabelled scans.

    The same command again resumes an interrupted run, exactly.

    Examples:

        medssl pretrain --recipe voco

        medssl pretrain --recipe voco --cache CACHE --set steps=1000 --set data.batch_size=2 --run runs/try
    """
    from medssl_cli.cache.store import Cache
    from medssl_cli.engine.pretrain import pretrain as run_pretrain
    from medssl_cli.engine.runs import run_name
    from medssl_cli.errors import UsageError
    from medssl_cli.recipe import PretrainRecipe, find_recipe, load_recipe

    path = find_recipe(recipe, ("pretrain",))
    resolved = load_recipe(path, overrides)
    if not isinstance(resolved, PretrainRecipe):
        raise UsageError("E_RECIPE", f"{path.name} is a task recipe", hint="use it with medssl finetune --task")
    root = run or Path("runs") / run_name(path.stem, resolved, load_recipe(path))
    terminal = Terminal(quiet=quiet)
    terminal.note(f"recipe {path.stem} · cache {cache} · run {root}")
    with terminal.running():
        summary = run_pretrain(resolved, Cache.open(cache), root, device=device, talk=terminal, profile_steps=profile)
    verdict = "below" if summary.has_learnt else "NOT below"
    lines = [f"  {name}: {value:.4f}" for name, value in summary.baselines.items()]
    text = f"loss {summary.loss:.4f} after {summary.steps} steps, {verdict} every trivial predictor:\n" + "\n".join(
        lines
    )
    text += f"\nencoder: {root / 'encoder.safetensors'}\nnext: medssl finetune --task TASK --init {root}"
    result({**asdict(summary), "root": str(root)}, as_json=json, text=text)
