"""The page of a comparison of arms at several numbers of labelled patients."""

from collections.abc import Mapping, Sequence
from typing import Any

from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report.page import Cell, Page
from medssl_cli.report.plots import Group, Level, level_curves, structure_scores

Entry = Mapping[str, Any]


def label_plot(document: Mapping[str, Any]) -> bytes:
    """The task's score over the number of labelled patients, a panel for each length of the trainings, as SVG.

    Args:
        document: As `study.label_results.label_results` returns it.
    """
    panels: dict[str, dict[str, dict[int, Level]]] = {}
    for entry in main_entries(document, "levels"):
        curves = panels.setdefault(f"{entry['steps']} steps", {})
        curves.setdefault(entry["arm"], {})[entry["patients"]] = Level(estimate_of(entry), entry["per_seed"])
    return level_curves(panels, xlabel="labelled patients", ylabel=f"{document['figure']}, {_main(document)}")


def difference_plot(document: Mapping[str, Any]) -> bytes:
    """Every arm minus the baseline with its interval, a row for each number of patients and length, as SVG.

    Args:
        document: As `study.label_results.label_results` returns it.
    """
    rows: dict[str, dict[str, Group]] = {}
    for entry in main_entries(document, "differences"):
        own = rows.setdefault(f"{entry['patients']} patients, {entry['steps']} steps", {})
        own[entry["arm"]] = Group({}, estimate_of(entry))
    xlabel = f"{document['figure']}, minus {document['baseline']}"
    return structure_scores(rows, xlabel=xlabel, are_differences=True)


def label_page(document: Mapping[str, Any]) -> str:
    """HTML of a comparison.

    Args:
        document: As `study.label_results.label_results` returns it.
    """
    baseline = document["baseline"]
    arms = list(dict.fromkeys(entry["arm"] for entry in document["levels"]))
    page = Page(f"{document['task']}: labelled patients", ", ".join(arms))
    page.paragraph(
        f"{document['num_test_patients']} test patients that no training has seen, the same for all arms. "
        f"{_trainings(document)} Intervals of 95 % draw the choices of labelled patients and the test patients; with "
        "few choices they are too narrow. The weights of the last step are tested."
    )
    if len(set(document["best_steps_of_baseline"].values()) | {entry["steps"] for entry in document["levels"]}) > 1:
        best = ", ".join(f"{n} patients: {steps} steps" for n, steps in document["best_steps_of_baseline"].items())
        page.notice(
            f"A gain at a length that is not the best one of {baseline} is speed. Best for {baseline}, by the test "
            f"patients themselves: {best}. Rows of these lengths are marked below."
        )
    page.figure(
        label_plot(document),
        alt=f"{document['figure']} over labelled patients, one line per arm",
        caption="A dot per training, bands of 95 %",
    )
    page.heading(f"Minus {baseline}").figure(
        difference_plot(document),
        alt=f"Difference of every arm from {baseline}, with intervals",
        caption=f"Right of the line an arm is better than {baseline}",
    )
    page.table(
        ("arm", "patients", "steps", "difference", "patients better", "p over patients", "p adjusted", "each training"),
        [_difference(document, entry) for entry in main_entries(document, "differences")],
    )
    page.heading("Costs").table(
        ("arm", "patients", "steps", document["figure"], f"{unit(document)} a training", f"{unit(document)} before it"),
        [
            (entry["arm"], entry["patients"], entry["steps"], estimate_of(entry), entry["cost_s"], _before(entry))
            for entry in main_entries(document, "levels")
        ],
        caption="Before it: of the pre-training that it begins with; one pre-training serves all of its trainings",
        decimals={f"{unit(document)} a training": 0, f"{unit(document)} before it": 0},
    )
    page.heading(document["figure"]).table(
        ("arm", "patients", "steps", "structure", "mean", "each training"),
        [(*_place(entry), entry["structure"], estimate_of(entry), _each(entry, "")) for entry in document["levels"]],
    )
    page.heading(f"Every structure minus {baseline}").table(
        ("arm", "patients", "steps", "structure", "difference", "p over patients"),
        [
            (*_place(entry), entry["structure"], estimate_of(entry), entry["p_value"])
            for entry in document["differences"]
        ],
    )
    return page.render()


def main_entries(document: Mapping[str, Any], section: str) -> list[Entry]:
    """Levels or differences of what sums up the structures or classes."""
    return [entry for entry in document[section] if entry["structure"] == _main(document)]


def better(entry: Entry) -> str:
    """How many patients do better in an arm, for a table."""
    return "" if entry["num_better"] is None else f"{entry['num_better']} of {entry['num_patients']}"


def unit(document: Mapping[str, Any]) -> str:
    """What costs are counted in."""
    return f"{document['cost_unit'] or 'CPU'} s"


def _main(document: Mapping[str, Any]) -> str:
    name: str = document["levels"][0]["structure"]
    return name


def _trainings(document: Mapping[str, Any]) -> str:
    draws, seeds = document.get("num_draws"), document["num_seeds"]
    if draws is None:
        return f"{seeds} seeds, each with labelled patients of its own."
    return f"{draws} choices of labelled patients, and {seeds} pre-trainings where an arm has several."


def _difference(document: Mapping[str, Any], entry: Entry) -> Sequence[Cell]:
    is_best = document["best_steps_of_baseline"].get(str(entry["patients"])) == entry["steps"]
    steps = f"{entry['steps']} (best for {entry['minus']})" if is_best else str(entry["steps"])
    return (
        entry["arm"], entry["patients"], steps, estimate_of(entry), better(entry), entry["p_value"],
        entry.get("p_holm"), _each(entry, "+"),
    )  # fmt: skip


def _place(entry: Entry) -> Sequence[Cell]:
    return entry["arm"], entry["patients"], entry["steps"]


def _each(entry: Entry, sign: str) -> str:
    return ", ".join("n/a" if value is None else f"{value:{sign}.3f}" for value in entry["per_seed"])


def _before(entry: Entry) -> float | None:
    cost: float | None = entry["pretraining_cost_s"]
    return cost
