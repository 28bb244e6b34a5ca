"""`medssl finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli import split_options as splits
from medssl_cli.cli.launch import is_main, main_speaks, started_devices, started_nodes
from medssl_cli.cli.many_trainings import ClusterOption, JobsOption
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
    init: splits.InitOption = "none",
    fraction: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the training patients to use.")] = 1.0,
    patients: Annotated[int | None, typer.Option(min=1, help="Use exactly so many training patients instead.")] = None,
    unlabelled: splits.UnlabelledOption = False,
    draw: Annotated[int, typer.Option(min=0, help="Another choice of these patients; few are among the many.")] = 0,
    fold: splits.FoldOption = 0,
    num_folds: splits.NumFoldsOption = None,
    split_file: splits.SplitFileOption = None,
    skip_missing: splits.SkipMissingOption = False,
    folds: splits.FoldsOption = None,
    jobs: JobsOption = 1,
    cluster: ClusterOption = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="Time budget instead of the recipe's steps and schedule.")
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

    Patients are split into training, validation and test, by rule or as --split-file says; test patients are never
    touched here. The same command again goes on where it stopped; with more steps or minutes it goes on for longer.

    Examples:

        medssl finetune --task heart-seg --init runs/voco --fraction 0.1

        medssl finetune --task hippocampus-seg --max-minutes 20

        medssl finetune --task hippocampus-seg --patients 2 --unlabelled

        medssl finetune --task hippocampus-seg --split-file splits_final.json --fold 0

        medssl finetune --task hippocampus-seg --folds all --jobs 2
    """
    from medssl_cli.base.signals import stop_on_signals

    with main_speaks(), stop_on_signals(is_immediate=True):
        from medssl_cli.cache.store import Cache
        from medssl_cli.cli.finetune_folds import require_folds, train_folds
        from medssl_cli.cli.finetune_unlabelled import with_unlabelled
        from medssl_cli.cli.finetuning import planned_recipe, require_patients, run_folder, task_recipe
        from medssl_cli.cli.training_logs import open_sinks
        from medssl_cli.engine.choices import Choices
        from medssl_cli.engine.finetune import finetune as run_finetune
        from medssl_cli.engine.live_page import Outlets
        from medssl_cli.engine.processes import Spread
        from medssl_cli.engine.weights import load_encoder
        from medssl_cli.report.run import finetuning_page

        overrides = with_unlabelled(task, overrides) if unlabelled else overrides
        path, resolved = task_recipe(task, overrides)
        require_patients(fraction, patients)
        spread = Spread(devices or started_devices(), num_nodes or started_nodes(), strategy)
        require_folds(folds, fold, jobs, cluster, is_alone=spread == Spread() and not log and not profile)
        split, number = splits.given_split(split_file, fold, num_folds, skip_missing=skip_missing)
        encoder = None if init == "none" else load_encoder(Path(init))
        choices = Choices(fold, fraction, patients, draw, max_minutes, encoder, number, split, folds is not None)
        root = run_folder(run, path, resolved, init, choices, num_folds)
        terminal = Terminal(quiet=quiet or not is_main())
        resolved = planned_recipe(
            path, overrides, cache, root,
            device=device, num_processes=spread.size, talk=terminal, minutes=max_minutes, split=split,
        )  # fmt: skip
        outlets = Outlets(finetuning_page, open_sinks(log or [], root, resolved) if is_main() else ())
        terminal.note(f"task {resolved.name} · cache {cache} · run {root} · init {init}")
        opened = Cache.open(cache)
        with terminal.running():
            if folds is not None:
                train_folds(
                    resolved, opened, root, choices, folds,
                    device=device, talk=terminal, init=init, jobs=jobs, cluster=cluster, json=json,
                )  # fmt: skip
                return
            summary = run_finetune(
                resolved, opened, root, choices,
                device=device, talk=terminal, spread=spread, outlets=outlets, profile_steps=profile,
            )  # fmt: skip
    if is_main():
        result(summary.document(), as_json=json, text=finetuning_text(summary, root))
