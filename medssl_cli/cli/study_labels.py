"""`medssl study labels`."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli import split_options as splits
from medssl_cli.cli.many_trainings import ClusterOption, JobsOption, require_one_place, typed_places
from medssl_cli.cli.options import (
    DEFAULT_CACHE,
    CacheOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    SetOption,
    TaskOption,
)
from medssl_cli.cli.terminal import Terminal, result


def labels(
    task: TaskOption,
    init: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN[,RUN...]",
            help="Run of `medssl pretrain`; {seed} in it stands for the seed. Several with commas, or repeated.",
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'NAME: [init=RUN] [KEY=VALUE ...]'", help="An arm whose recipe differs, as by --set. Repeatable."
        ),
    ] = None,
    cache: CacheOption = DEFAULT_CACHE,
    patients: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of labelled patients.")] = "5,10,20,40",
    steps: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Lengths of the trainings; by default that of the recipe.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Choices of the labelled patients; each meets every pre-training.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Pre-trainings of each arm; without --draws each has other labelled patients.")
    ] = 3,
    minus: Annotated[str, typer.Option(metavar="ARM", help="What the other arms are compared with.")] = "scratch",
    split_file: splits.SplitFileOption = None,
    skip_missing: splits.SkipMissingOption = False,
    jobs: JobsOption = 1,
    cluster: ClusterOption = None,
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of runs and results.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare training from scratch with pre-trained encoders, or other recipes, at several numbers of labels.

    Same network, labelled patients and test patients in every arm; the weights of the last step are tested. Killed or
    stopped, the same command goes on. Writes results.json, results.csv, plot.svg and page.html.

    Examples:

        medssl study labels --task hippocampus-seg --init runs/voco --patients 5,10,20,40

        medssl study labels --task hippocampus-seg --init 'runs/voco-{seed}' --seeds 3 --set steps=400

        medssl study labels --task acdc-slices --draws 3 --seeds 2 --steps 500,1500 --patients 1,2,5 --jobs 2
        --init 'runs/position-{seed}' --arm 'both: init=runs/position-{seed} unlabelled.method=bcp'
    """
    from medssl_cli.base.files import write_atomic
    from medssl_cli.base.plain_json import dump
    from medssl_cli.cache.store import Cache
    from medssl_cli.cli.study_plan import study_document, study_plan
    from medssl_cli.cli.study_table import show_study
    from medssl_cli.study.label_page import label_page, label_plot
    from medssl_cli.study.label_plan import with_planned_values
    from medssl_cli.study.label_results import results_csv
    from medssl_cli.study.labels import compare_labels

    require_one_place(jobs, cluster)
    terminal, places = Terminal(quiet=quiet), typed_places(jobs, cluster)
    split, _ = splits.given_split(split_file, 0, None, skip_missing=skip_missing)
    plan, folder = study_plan(
        task, overrides, init or [], arm or [],
        patients=patients, steps=steps, draws=draws, seeds=seeds, minus=minus, out=out, split=split,
    )  # fmt: skip
    terminal.note(f"task {plan.source} · cache {cache} · results {folder}")
    with terminal.running():
        opened = Cache.open(cache)
        plan = with_planned_values(plan, opened, folder, device=device, talk=terminal)
        scored = compare_labels(plan, opened, folder, device=device, talk=terminal, places=places)
    document = study_document(plan, scored, minus=minus)
    write_atomic(folder / "results.json", dump(document).encode())
    write_atomic(folder / "results.csv", results_csv(document).encode())
    write_atomic(folder / "plot.svg", label_plot(document))
    write_atomic(folder / "page.html", label_page(document).encode())
    if json:
        result(document, as_json=True, text="")
    else:
        show_study(document)
        typer.echo(f"page: {folder / 'page.html'}")
