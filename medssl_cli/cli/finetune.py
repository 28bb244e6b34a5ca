"""`medssl finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.launch import is_main, main_speaks, started_devices, started_nodes
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
    RunOption,
    SetOption,
    StrategyOption,
    TaskOption,
)
from medssl_cli.cli.terminal import Terminal, result
from medssl_cli.cli.training_results import finetuning_text


def finetune(
    task: TaskOption,
    cache: CacheOption = DEFAULT_CACHE,
    init: Annotated[
        str,
        typer.Option(
            help="Run of `medssl pretrain` or `finetune`, folder of `medssl weights import`, or none: from scratch."
        ),
    ] = "none",
    fraction: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the training patients to use.")] = 1.0,
    patients: Annotated[int | None, typer.Option(min=1, help="Use exactly so many training patients instead.")] = None,
    draw: Annotated[int, typer.Option(min=0, help="Another choice of these patients; few are among the many.")] = 0,
    fold: Annotated[int, typer.Option(min=0, max=4, help="Which fifth of the training patients validates.")] = 0,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Time budget instead of the recipe's steps; the schedule fits it.")
    ] = None,
    overrides: SetOption = None,
    run: RunOption = None,
    device: DeviceOption = "auto",
    devices: DevicesOption = 0,
    num_nodes: NodesOption = 0,
    strategy: StrategyOption = "auto",
    log: LogOption = None,
    profile: ProfileOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Teach a task with few labels, from scratch or from a pre-trained encoder.

    Patients are split into training, validation and test; test patients are never touched here. The same command again
    goes on where it stopped; with more steps or minutes it goes on for longer.

    Examples:

        medssl finetune --task heart-seg --init runs/voco --fraction 0.1

        medssl finetune --task hippocampus-seg --max-minutes 20
    """
    from medssl_cli.base.signals import stop_on_signals

    with main_speaks(), stop_on_signals(is_immediate=True):
        from medssl_cli.base.errors import UsageError
        from medssl_cli.cache.store import Cache
        from medssl_cli.cli.training_logs import open_sinks
        from medssl_cli.engine.finetune import Choices
        from medssl_cli.engine.finetune import finetune as run_finetune
        from medssl_cli.engine.live_page import Outlets
        from medssl_cli.engine.processes import Spread
        from medssl_cli.engine.runs import run_name
        from medssl_cli.engine.weights import load_encoder
        from medssl_cli.recipe import TaskRecipe, find_recipe, load_recipe
        from medssl_cli.report.run import finetuning_page

        path = find_recipe(task, ("tasks",))
        resolved = load_recipe(path, overrides)
        if not isinstance(resolved, TaskRecipe):
            raise UsageError("E_RECIPE", f"{path.name} is a pre-training recipe", hint="use it with medssl pretrain")
        if not fraction > 0:
            raise UsageError(
                "E_USAGE", "--fraction 0 leaves no patients to train on", hint="for example --fraction 0.1"
            )
        encoder = None if init == "none" else load_encoder(Path(init))
        parts = ["scratch" if encoder is None else Path(init).name, f"fold{fold}"]
        if patients is not None and fraction < 1:
            raise UsageError("E_USAGE", "--patients and --fraction say the same thing", hint="give one of them")
        parts += [f"{100 * fraction:g}pct"] if fraction < 1 else []
        parts += [f"{patients}patients"] if patients is not None else []
        parts += [f"draw{draw}"] if draw else []
        root = run or Path("runs") / run_name(path.stem, resolved, load_recipe(path), parts)
        spread = Spread(devices or started_devices(), num_nodes or started_nodes(), strategy)
        outlets = Outlets(finetuning_page, open_sinks(log or [], root, resolved) if is_main() else ())
        terminal = Terminal(quiet=quiet or not is_main())
        terminal.note(f"task {resolved.name} · cache {cache} · run {root} · init {init}")
        choices = Choices(
            fold=fold, fraction=fraction, patients=patients, draw=draw, max_minutes=max_minutes, encoder=encoder
        )
        opened = Cache.open(cache)
        with terminal.running():
            summary = run_finetune(
                resolved,
                opened,
                root,
                choices,
                device=device,
                talk=terminal,
                spread=spread,
                outlets=outlets,
                profile_steps=profile,
            )
    if is_main():
        result(summary.document(), as_json=json, text=finetuning_text(summary, root))
