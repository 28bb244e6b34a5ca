"""`medssl pretrain`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medssl_cli.cli.launch import is_main, main_speaks, started_devices, started_nodes
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

if TYPE_CHECKING:
    from medssl_cli.engine.pretrain import PretrainSummary


def pretrain(
    recipe: RecipeOption = "voco",
    cache: CacheOption = DEFAULT_CACHE,
    overrides: SetOption = None,
    run: RunOption = None,
    init: Annotated[
        Path | None, typer.Option(help="Begin with the encoder of another run, or imported weights.")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Time limit; it ends after the recipe's steps or after this, whichever is first."),
    ] = None,
    device: DeviceOption = "auto",
    devices: Annotated[
        int,
        typer.Option("--devices", min=0, help="Devices per machine; 0: as many as torchrun or SLURM started, or 1."),
    ] = 0,
    num_nodes: Annotated[
        int, typer.Option("--num-nodes", min=0, help="Machines; 0: as many as torchrun or SLURM started on, or 1.")
    ] = 0,
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp"],
        typer.Option("--strategy", help="ddp: the whole network on every device; fsdp: a part of it; auto: ddp."),
    ] = "auto",
    log: Annotated[
        list[str] | None, typer.Option("--log", metavar="mlflow|wandb", help="Send the numbers there too; repeatable.")
    ] = None,
    profile: Annotated[int, typer.Option(min=0, help="Time the parts of so many steps, for RUN/profile.json.")] = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn an encoder from unlabelled scans.

    The same command again resumes an interrupted run, exactly, also on another number of devices.

    Examples:

        medssl pretrain --recipe voco

        medssl pretrain --recipe voco --devices 4

        medssl pretrain --recipe joint-volumes --init runs/joint-masked

        medssl pretrain --recipe voco --cache CACHE --set steps=1000 --set data.batch_size=2 --run runs/try
    """
    from medssl_cli.engine.signals import stop_on_signals

    with main_speaks(), stop_on_signals(is_immediate=True):
        from medssl_cli.cache.store import Cache
        from medssl_cli.cli.training_logs import open_sinks
        from medssl_cli.engine.pretrain import Outlets
        from medssl_cli.engine.pretrain import pretrain as run_pretrain
        from medssl_cli.engine.processes import Spread
        from medssl_cli.engine.runs import run_name
        from medssl_cli.errors import UsageError
        from medssl_cli.recipe import PretrainRecipe, find_recipe, load_recipe
        from medssl_cli.report.run import run_page

        path = find_recipe(recipe, ("pretrain",))
        resolved = load_recipe(path, overrides)
        if not isinstance(resolved, PretrainRecipe):
            raise UsageError("E_RECIPE", f"{path.name} is a task recipe", hint="use it with medssl finetune --task")
        root = run or Path("runs") / run_name(path.stem, resolved, load_recipe(path))
        spread = Spread(devices or started_devices(), num_nodes or started_nodes(), strategy)
        outlets = Outlets(run_page, open_sinks(log or [], root, resolved) if is_main() else ())
        terminal = Terminal(quiet=quiet or not is_main())
        terminal.note(f"recipe {path.stem} · cache {cache} · run {root}")
        opened = Cache.open(cache)
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
            )
    if is_main():
        document = {**asdict(summary), "root": str(root)}
        result(document, as_json=json, text=_text(summary, root))


def _text(summary: "PretrainSummary", root: Path) -> str:
    verdict = "below" if summary.has_learnt else "NOT below"
    lines = [f"loss {summary.loss:.4f} after {summary.steps} steps, {verdict} every trivial predictor:"]
    lines += [f"  {name}: {value:.4f}" for name, value in summary.baselines.items()]
    lines += [f"{code}: see {root / 'page.html'}" for code in summary.alarms]
    lines += [f"encoder: {root / 'encoder.safetensors'}", f"page: {root / 'page.html'}"]
    return "\n".join([*lines, f"next: medssl finetune --task TASK --init {root}"])
