"""`medssl study labels`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from medssl_cli.cli.options import (
    DEFAULT_CACHE,
    CacheOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    SetOption,
    TaskOption,
)
from medssl_cli.cli.terminal import Terminal, result, table


def labels(
    task: TaskOption,
    init: Annotated[
        list[str], typer.Option(help="Run folder of `medssl pretrain`; {seed} in it stands for the seed. Repeatable.")
    ],
    cache: CacheOption = DEFAULT_CACHE,
    patients: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of labelled patients.")] = "5,10,20,40",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind; every seed draws other patients.")] = 3,
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of runs and results.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare training from scratch with pre-trained encoders at several numbers of labelled patients.

    Same network, schedule, labelled patients and test patients in every arm; the weights of the last step are tested.
    Finished trainings are skipped. Writes results.json, results.csv, plot.svg and page.html.

    Examples:

        medssl study labels --task hippocampus-seg --init runs/voco --patients 5,10,20,40

        medssl study labels --task hippocampus-seg --init 'runs/voco-{seed}' --seeds 3 --set steps=400
    """
    from medssl_cli.base.errors import UsageError
    from medssl_cli.base.files import write_atomic
    from medssl_cli.base.plain_json import dump
    from medssl_cli.cache.store import Cache
    from medssl_cli.recipe import TaskRecipe, find_recipe, load_recipe, recipe_hash
    from medssl_cli.study.label_page import label_page, label_plot
    from medssl_cli.study.label_results import label_results, results_csv
    from medssl_cli.study.labels import LabelStudyPlan, arm_names, compare_labels, parse_numbers

    path = find_recipe(task, ("tasks",))
    recipe = load_recipe(path, overrides)
    if not isinstance(recipe, TaskRecipe):
        raise UsageError("E_RECIPE", f"{path.name} is a pre-training recipe", hint="name a task recipe")
    plan = LabelStudyPlan(recipe, arm_names(init), parse_numbers(patients), seeds)
    folder = out or Path("runs") / f"labels-{path.stem}"
    terminal = Terminal(quiet=quiet)
    terminal.note(f"task {recipe.name} · cache {cache} · results {folder}")
    with terminal.running():
        scored = compare_labels(plan, Cache.open(cache), folder, device=device, talk=terminal)
    about = {"task": recipe.name, "steps": recipe.steps, "num_seeds": seeds, "recipe_sha256": recipe_hash(recipe)}
    document = label_results(scored, about)
    write_atomic(folder / "results.json", dump(document).encode())
    write_atomic(folder / "results.csv", results_csv(document).encode())
    write_atomic(folder / "plot.svg", label_plot(document))
    write_atomic(folder / "page.html", label_page(document).encode())
    if json:
        result(document, as_json=True, text="")
    else:
        _show(document)
        typer.echo(f"page: {folder / 'page.html'}")


def _show(document: dict[str, Any]) -> None:
    main = document["levels"][0]["structure"]
    differences = {(entry["arm"], entry["patients"], entry["structure"]): entry for entry in document["differences"]}
    rows = []
    for level in document["levels"]:
        if level["structure"] == main:
            difference = differences.get((level["arm"], level["patients"], main))
            rows.append((level["arm"], str(level["patients"]), _interval(level, ""), _interval(difference, "+")))
    title = f"{document['num_test_patients']} test patients, mean and 95 % interval over seeds and patients"
    table(title, ("arm", "patients", f"mean {document['figure']}", "minus scratch"), rows)


def _interval(entry: dict[str, Any] | None, sign: str) -> str:
    return "" if entry is None else "{mean:{s}.3f} [{low:{s}.3f}, {high:{s}.3f}]".format(s=sign, **entry)
