"""Do models differ, and on what terms? Scores of several on the same images, pair by pair, patient by patient.

Differences are the later model minus the earlier one. Intervals draw patients; p-values are of the hypothesis that both
models' answers about a patient could be exchanged, adjusted for the number of comparisons (Holm): all figures that sum
up a metric among themselves, whatever the metric, and all of single structures or classes among themselves.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from medssl_cli.base.csv_text import csv_text
from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.base.plain_json import without_nan
from medssl_cli.metrics.paired import PairedFigure
from medssl_cli.metrics.statistics import holm_adjusted
from medssl_cli.tasks import load_part

SCHEMA: Final = "medssl.comparison/1"
ON_PURPOSE: Final = ("initial weights",)
"""What a comparison may well be about."""


@dataclass(frozen=True)
class Contestant:
    """One of the models that are compared.

    Args:
        name: Name in tables; no two are equal.
        kind: Name of its kind of task.
        facts: How it came about, by what must be equal in a fair comparison; None for what nobody knows.
        scores: The document of its evaluation.
    """

    name: str
    kind: str
    facts: Mapping[str, str | None]
    scores: Mapping[str, Any]


def comparison(models: Sequence[Contestant]) -> dict[str, Any]:
    """What `comparison.json` holds.

    Args:
        models: Two or more, evaluated on the same split.

    Raises:
        UsageError: `E_USAGE`, they are of tasks whose scores cannot be compared.
        NothingUsableError: `E_TOO_FEW_PATIENTS`, they were evaluated on no image in common.
    """
    kinds = {model.kind for model in models}
    if len(kinds) > 1:
        raise UsageError("E_USAGE", f"models of {' and '.join(sorted(kinds))} have no scores in common")
    figures_of = getattr(load_part(models[0].kind, "scores"), "paired_figures", None)
    if figures_of is None:
        raise UsageError("E_USAGE", f"scores of {models[0].kind} are not compared patient by patient")
    documents, num_left_out = _aligned([model.scores for model in models])
    figures: list[PairedFigure] = [each for each in figures_of(documents) if each.patients]
    names = [model.name for model in models]
    differences = [
        {
            **_about(figure),
            "model": names[later],
            "minus": names[earlier],
            **asdict(figure.difference(later, earlier)),
            "p_value": figure.p_value([later], [earlier]),
        }
        for figure in figures
        for earlier, later in itertools.combinations(range(len(names)), 2)
    ]
    _adjust(differences)
    document = {
        "schema": SCHEMA,
        "task": models[0].scores["task"],
        "split": models[0].scores["split"],
        "models": [{"name": model.name, "facts": dict(model.facts)} for model in models],
        "unequal": unequal(models),
        "num_patients": len({case["patient"] for case in documents[0]["cases"]}),
        "num_items": len(documents[0]["cases"]),
        "num_left_out": num_left_out,
        "levels": [
            {**_about(figure), "model": name, **asdict(figure.level(place)), "values": _values(figure, place)}
            for figure in figures
            for place, name in enumerate(names)
        ],
        "differences": differences,
    }
    cleaned: dict[str, Any] = without_nan(document)
    return cleaned


def unequal(models: Sequence[Contestant]) -> dict[str, dict[str, str]]:
    """In what the models differ beside what is to be compared: fact, model, what it has."""
    found: dict[str, dict[str, str]] = {}
    for fact in dict.fromkeys(fact for model in models for fact in model.facts):
        values = {model.name: model.facts.get(fact) for model in models}
        if len(set(values.values())) > 1 or None in values.values():
            found[fact] = {name: value or "not known" for name, value in values.items()}
    return found


def unfair(document: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Part of what differs that makes a comparison say less than it seems to: all but the initial weights.

    Args:
        document: As `comparison` returns it.
    """
    return {fact: values for fact, values in document["unequal"].items() if fact not in ON_PURPOSE}


def comparison_csv(document: Mapping[str, Any]) -> str:
    """One row per metric, structure and pair.

    Args:
        document: As `comparison` returns it.
    """
    columns = ("metric", "structure", "model", "minus", "mean", "low", "high", "num_patients", "p_value", "p_holm")
    return csv_text([columns, *([row.get(column, "") for column in columns] for row in document["differences"])])


def _aligned(documents: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Evaluations of the items that all have, in the order of the first; and how many items that leaves out."""
    cases = [{case["item"]: case for case in document["cases"]} for document in documents]
    every = set().union(*cases)
    common = [item for item in cases[0] if all(item in each for each in cases)]
    if not common:
        raise NothingUsableError(
            "E_TOO_FEW_PATIENTS",
            "the models were evaluated on no image in common",
            hint="name a split that they share: medssl evaluate --split",
        )
    aligned = [
        {**document, "cases": [each[item] for item in common]} for document, each in zip(documents, cases, strict=True)
    ]
    return aligned, len(every) - len(common)


def _about(figure: PairedFigure) -> dict[str, Any]:
    return {
        "metric": figure.metric,
        "structure": figure.structure,
        "is_main": figure.is_main,
        "less_is_better": figure.less_is_better,
    }


def _values(figure: PairedFigure, place: int) -> dict[str, float]:
    return dict(figure.values[place]) if figure.values else {}


def _adjust(differences: Sequence[dict[str, Any]]) -> None:
    """Add the adjusted p-values of each family of comparisons."""
    for is_main in (True, False):
        own = [entry for entry in differences if entry["is_main"] == is_main]
        adjusted = holm_adjusted({str(place): entry["p_value"] for place, entry in enumerate(own)})
        for place, entry in enumerate(own):
            entry["p_holm"] = adjusted[str(place)]
