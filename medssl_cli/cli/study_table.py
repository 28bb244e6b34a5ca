"""The tables that `medssl study labels` prints: one for each number of labelled patients and each length."""

from collections.abc import Mapping
from typing import Any

from medssl_cli.cli.terminal import table


def show_study(document: Mapping[str, Any]) -> None:
    """Print every arm's main figure with its difference, its interval and its cost."""
    from medssl_cli.study.label_page import main_entries, unit

    differences = {(_block(entry), entry["arm"]): entry for entry in main_entries(document, "differences")}
    blocks: dict[tuple[int, int], list[tuple[str, ...]]] = {}
    for level in main_entries(document, "levels"):
        row = _told(differences.get((_block(level), level["arm"])))
        blocks.setdefault(_block(level), []).append((level["arm"], _number(level["mean"], ".3f"), *row, _cost(level)))
    columns = ("arm", document["figure"], f"minus {document['baseline']}", "better", "p", unit(document))
    number, lengths = document["num_test_patients"], {steps for _, steps in blocks}
    for (patients, steps), rows in blocks.items():
        labels = f"{patients} labelled patient{'s' * (patients > 1)}, {steps} steps"
        is_best = document["best_steps_of_baseline"][str(patients)] == steps
        best = f" (best for {document['baseline']})" if is_best and len(lengths) > 1 else ""
        table(f"{labels}{best}: {number} test patients, intervals of 95 %", columns, rows)


def _block(entry: Mapping[str, Any]) -> tuple[int, int]:
    return entry["patients"], entry["steps"]


def _told(difference: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """The difference, how many patients do better, and the adjusted p-value."""
    if difference is None:
        return "", "", ""
    told = _number(difference["mean"], "+.3f")
    if difference["low"] is not None:
        told += f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    return told, _number(difference["num_better"], "d"), _number(difference.get("p_holm"), ".3f")


def _cost(level: Mapping[str, Any]) -> str:
    """Seconds of a training, and of the pre-training before it."""
    known = [level[key] for key in ("cost_s", "pretraining_cost_s") if level[key] is not None]
    return " + ".join(f"{seconds:.0f}" for seconds in known)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
