"""The table that `medssl study labels` prints."""

from collections.abc import Mapping
from typing import Any

from medssl_cli.cli.terminal import table


def show_study(document: Mapping[str, Any]) -> None:
    """Print every arm's main figure with its difference, its interval and its cost."""
    from medssl_cli.study.label_page import better, main_entries, unit

    differences = {_place(entry): entry for entry in main_entries(document, "differences")}
    rows = []
    for level in main_entries(document, "levels"):
        difference = differences.get(_place(level))
        told = ("", "", "")
        if difference is not None:
            told = (_interval(difference, "+"), better(difference), _number(difference.get("p_holm"), ".4f"))
        costs = (_number(level["cost_s"], ".0f"), _number(level["pretraining_cost_s"], ".0f"))
        rows.append((*map(str, _place(level)), _interval(level, ""), *told, *costs))
    title = f"{document['num_test_patients']} test patients, mean and 95 % interval over choices of labels and patients"
    columns = (
        "arm", "patients", "steps", f"mean {document['figure']}", f"minus {document['baseline']}", "better", "p (Holm)",
        unit(document), "pre-training",
    )  # fmt: skip
    table(title, columns, rows)


def _place(entry: Mapping[str, Any]) -> tuple[str, int, int]:
    return entry["arm"], entry["patients"], entry["steps"]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _interval(entry: Mapping[str, Any], sign: str) -> str:
    if None in (entry["mean"], entry["low"], entry["high"]):
        return _number(entry["mean"], f"{sign}.3f")
    return "{mean:{s}.3f} [{low:{s}.3f}, {high:{s}.3f}]".format(s=sign, **entry)
