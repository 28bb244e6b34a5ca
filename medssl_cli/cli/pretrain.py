"""`medssl pretrain`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.launch import is_main, main_speaks, started_devices, started_nodes
from medssl_cli.cli.mixture_caches import CachesOption, open_caches
from medssl_cli.cli.options import (
    DEFAULT_CACHE,
    CacheOption,
    DeviceOption,
    DevicesOption,
    JsonOption,
    LogOption,
    NodesOption,
    ProfileOption,
    QuietOption,
    RecipeOption,
    RunOption,
    SetOption,
    StrategyOption,
)
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.split_options import SkipMissingOption, SplitFileOption, given_split
from medssl_cli.cli.terminal import Terminal, result
from medssl_cli.cli.training_results import pretraining_text


def pretrain(
    recipe: RecipeOption = "voco",
    cache: CacheOption = DEFAULT_CACHE,
    caches: CachesOption = None,
    overrides: SetOption = None,
    run: RunOption = None,
    init: Annotated[
        Path | None, typer.Option(help="Begin with the encoder of another run, or imported weights.")
    ] = None,
    split_file: SplitFileOption = None,
    skip_missing: SkipMissingOption = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1e6, help="Time limit; it ends after the recipe's steps or after this, whichever is first."
        ),
    ] = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 0,
    num_nodes: NodesOption = 0,
    strategy: StrategyOption = "auto",
    log: LogOption = None,
    profile: ProfileOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn an encoder from unlabelled scans.

    Test patients of labelled sets are left out, by rule or as --split-file says.

    The same command again resumes an interrupted run, exactly, also on another number of devices.

    Examples:

        medssl pretrain --recipe voco

        medssl pretrain --recipe voco --devices 4

        medssl pretrain --recipe joint-volumes --init runs/joint-masked

        medssl pretrain --recipe voco --cache CACHE --set steps=1000 --set data.batch_size=2 --run runs/try
    """
    from medssl_cli.base.signals import stop_on_signals

    with main_speaks(), stop_on_signals(is_immediate=True):
        from medssl_cli.base.errors import UsageError
        from medssl_cli.cache.store import Cache
        from medssl_cli.cli.training_logs import open_sinks
        from medssl_cli.engine.live_page import Outlets
        from medssl_cli.engine.pretrain import pretrain as run_pretrain
        from medssl_cli.engine.processes import Spread
        from medssl_cli.engine.runs import run_name
        from medssl_cli.recipe import PretrainRecipe, find_recipe, load_recipe
        from medssl_cli.report.run import run_page

        path = find_recipe(recipe, ("pretrain",))
        resolved = load_recipe(path, overrides)
        if not isinstance(resolved, PretrainRecipe):
            raise UsageError("E_RECIPE", f"{path.name} is a task recipe", hint="use it with medssl finetune --task")
        root = outside_caches(run or Path("runs") / run_name(path.stem, resolved, load_recipe(path)))
        split, _ = given_split(split_file, 0, None, skip_missing=skip_missing)
        spread = Spread(devices or started_devices(), num_nodes or started_nodes(), strategy)
        outlets = Outlets(run_page, open_sinks(log or [], root, resolved) if is_main() else ())
        terminal = Terminal(quiet=quiet or not is_main())
        terminal.note(f"recipe {path.stem} · cache {cache} · run {root}")
        opened, others = Cache.open(cache), open_caches(caches)
        with terminal.running():
            summary = run_pretrain(
                resolved,
                opened,
                root,
                device=device,
                talk=terminal,
                spread=spread,
                outlets=outlets,
                profile_steps=profile,
                init=init,
                max_minutes=max_minutes,
                others=others,
                split=split,
            )
    if is_main():
        document = {**asdict(summary), "root": str(root)}
        result(document, as_json=json, text=pretraining_text(summary, root))
