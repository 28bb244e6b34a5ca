"""How a model came about, as far as a comparison must know: read from its run, from its folds, or from its bundle."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import sha256_json
from medssl_cli.deploy.bundle import load_model
from medssl_cli.engine.fold_runs import are_folds, folds_of
from medssl_cli.engine.runs import Run, open_run, read_document
from medssl_cli.recipe import TaskRecipe, dump_recipe, flow_yaml
from medssl_cli.study.comparison import Contestant
from medssl_cli.tasks import Subject, supervision_of, task_of_head

SHOWN: Final = 10
UNKNOWN_OF_FILES: Final = (
    "backbone", "steps", "initial weights", "what the network sees", "training patients", "rules of scoring",
)  # fmt: skip
"""What a bundle does not say of its training."""


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each model, none of them twice: that of its folder or file, with the folder above where it must be.

    Raises:
        UsageError: `E_USAGE`, a model would be compared with itself.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("E_USAGE", "a model is named twice, and would be compared with itself")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.absolute().parent.name}/{path.name}" for path in paths]
    if len(set(names)) < len(names):
        names = [f"{place}: {name}" for place, name in enumerate(names, start=1)]
    return names


def contestant(name: str, path: Path, subject: Subject, scores: Mapping[str, Any]) -> Contestant:
    """A scored model with what is known of its training.

    Args:
        name: Name in tables.
        path: Path of its run, folds or file.
        subject: As it was scored.
        scores: The document of its evaluation.
    """
    if path.is_dir():
        runs = [open_run(each) for each in folds_of(path)[1].values()] if are_folds(path) else [open_run(path)]
        recipe = runs[0].recipe
        assert isinstance(recipe, TaskRecipe)
        return Contestant(name, recipe.task.name, {**_facts(runs, recipe), **_scored(subject, scores)}, scores)
    _, bundle, _ = load_model(path)
    facts: dict[str, str | None] = dict.fromkeys(UNKNOWN_OF_FILES)
    facts |= {"training labels": bundle.label_set, **_scored(subject, scores)}
    return Contestant(name, task_of_head(bundle.head.kind), facts, scores)


def _facts(runs: Sequence[Run], recipe: TaskRecipe) -> dict[str, str]:
    arguments = [run.manifest["arguments"] for run in runs]
    trained = sorted({entry["patient"] for run in runs for entry in run.manifest["splits"]["train"]})
    inits = sorted({str(each.get("encoder_sha256") or "scratch")[:SHOWN] for each in arguments})
    dumped = dump_recipe(recipe)
    return {
        "backbone": flow_yaml(dumped["backbone"]),
        "steps": ", ".join(dict.fromkeys(str(_steps(run)) for run in runs)),
        "initial weights": ", ".join(inits),
        "what the network sees": sha256_json(dumped["data"])[:SHOWN],
        "training patients": f"{len(trained)} ({sha256_json(trained)[:SHOWN]})",
        "training labels": supervision_of(recipe).label_set,
        "rules of scoring": flow_yaml(dumped["evaluation"]),
        "folds": str(len(runs)),
    }


def _scored(subject: Subject, scores: Mapping[str, Any]) -> dict[str, str]:
    scored = sorted({case["patient"] for case in scores["cases"]})
    return {
        "scored patients": f"{len(scored)} ({sha256_json(scored)[:SHOWN]})",
        "classes": ", ".join(subject.classes.values()),
    }


def _steps(run: Run) -> int:
    """How many it has done; of one that is not finished, how many it is to do."""
    return int(read_document(run.summary_path)["steps"]) if run.is_finished else run.recipe.steps
