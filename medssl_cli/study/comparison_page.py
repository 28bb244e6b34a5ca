"""The page of a comparison of models: what differs, by how much, and how sure that is."""

import math
from collections.abc import Mapping
from typing import Any

from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report.page import Page
from medssl_cli.report.plots import Group, group_comparison, structure_scores
from medssl_cli.study.comparison import unfair


def level_plot(document: Mapping[str, Any]) -> bytes:
    """Every model's main figure with its interval, a dot per patient where patients have one of their own, as SVG.

    Args:
        document: As `study.comparison.comparison` returns it.
    """
    metric = document["levels"][0]["metric"]
    main = [entry for entry in document["levels"] if entry["is_main"] and entry["metric"] == metric]
    groups = {entry["model"]: Group(_values(entry), estimate_of(entry)) for entry in main}
    return group_comparison(groups, ylabel=f"{metric}, {main[0]['structure']}")


def difference_plot(document: Mapping[str, Any]) -> bytes:
    """Differences of the first metric, structure by structure, a colour for each pair, as SVG.

    Args:
        document: As `study.comparison.comparison` returns it.
    """
    metric = document["levels"][0]["metric"]
    values = {(entry["structure"], entry["model"]): _values(entry) for entry in document["levels"]
              if entry["metric"] == metric}  # fmt: skip
    scores: dict[str, dict[str, Group]] = {}
    for entry in document["differences"]:
        if entry["metric"] == metric:
            own, other = (values[entry["structure"], entry[key]] for key in ("model", "minus"))
            per_patient = {patient: own[patient] - other[patient] for patient in own if patient in other}
            pair = f"{entry['model']} minus {entry['minus']}"
            scores.setdefault(entry["structure"], {})[pair] = Group(per_patient, estimate_of(entry))
    pairs = {pair for groups in scores.values() for pair in groups}
    return structure_scores(
        scores, xlabel=f"{metric}, {pairs.pop() if len(pairs) == 1 else 'difference'}", are_differences=True
    )


def comparison_page(document: Mapping[str, Any]) -> str:
    """HTML of a comparison.

    Args:
        document: As `study.comparison.comparison` returns it.
    """
    names = [model["name"] for model in document["models"]]
    page = Page(f"{document['task']}: {' and '.join(names)}", f"{document['split']}, on the same patients")
    if found := unfair(document):
        page.notice(f"These models differ in {', '.join(found)}: see below before reading on.", kind="warning")
    number = document["num_left_out"]
    left_out = f" {number} images that not all have scored are left out." if number else ""
    page.paragraph(
        f"{document['num_items']} images of {document['num_patients']} patients.{left_out} Intervals of 95 % draw "
        "patients; p-values exchange the models' answers patient by patient and are adjusted for the number of "
        "comparisons (Holm). Both hold for these trainings only: another seed is another training."
    )
    page.figure(level_plot(document), alt="The main figure of every model", caption="A dot per patient")
    page.heading("Differences").table(
        ("metric", "structure", "model", "minus", "difference", "p", "p adjusted"),
        [
            (entry["metric"], entry["structure"], entry["model"], entry["minus"], estimate_of(entry), entry["p_value"],
             entry["p_holm"])
            for entry in document["differences"]
        ],
    )  # fmt: skip
    page.figure(
        difference_plot(document), alt="Differences of every structure", caption="Right of 0 the first is higher"
    )
    page.heading("Every model").table(
        ("metric", "structure", *names),
        [
            (metric, structure, *(estimate_of(entry) for entry in rows))
            for (metric, structure), rows in _by_figure(document).items()
        ],
    )
    page.heading("What differs").table(
        ("", *names),
        [(fact, *(values[name] for name in names)) for fact, values in document["unequal"].items()]
        or [("nothing that is known", *("" for _ in names))],
    )
    return page.render()


def _by_figure(document: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in document["levels"]:
        found.setdefault((entry["metric"], entry["structure"]), []).append(entry)
    return found


def _values(entry: Mapping[str, Any]) -> dict[str, float]:
    return {patient: math.nan if value is None else value for patient, value in entry["values"].items()}
