"""The page of a comparison of arms at several numbers of labelled patients."""

from collections.abc import Mapping
from typing import Any

from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report.page import Page
from medssl_cli.report.plots import Level, level_curves


def label_plot(document: Mapping[str, Any]) -> bytes:
    """Mean Dice or AUROC over the number of labelled patients, as SVG.

    Args:
        document: As `study.label_results.label_results` returns it.
    """
    main = document["levels"][0]["structure"]
    curves: dict[str, dict[int, Level]] = {}
    for entry in document["levels"]:
        if entry["structure"] == main:
            curves.setdefault(entry["arm"], {})[entry["patients"]] = Level(estimate_of(entry), entry["per_seed"])
    return level_curves(curves, xlabel="labelled patients", ylabel=f"{document['figure']}, {main}")


def label_page(document: Mapping[str, Any]) -> str:
    """HTML of a comparison.

    Args:
        document: As `study.label_results.label_results` returns it.
    """
    page = Page(f"{document['task']}: labelled patients", "from scratch and from pre-trained encoders")
    page.paragraph(
        f"{document['num_seeds']} seeds, {document['steps']} steps, {document['num_test_patients']} test patients "
        "that no training has seen. Intervals of 95 % draw seeds and patients; with few seeds they are too narrow."
    )
    page.figure(
        label_plot(document),
        alt=f"{document['figure']} over labelled patients, one line per arm",
        caption="A dot per seed",
    )
    page.heading("Pre-trained minus scratch").table(
        ("arm", "patients", "structure", "difference", "each seed", "p over patients", "p adjusted"),
        [
            (
                entry["arm"],
                entry["patients"],
                entry["structure"],
                estimate_of(entry),
                ", ".join(f"{value:+.3f}" for value in entry["per_seed"]),
                entry["p_value"],
                entry.get("p_holm"),
            )
            for entry in document["differences"]
        ],
    )
    page.heading(document["figure"]).table(
        ("arm", "patients", "structure", "mean", "each seed"),
        [
            (
                entry["arm"],
                entry["patients"],
                entry["structure"],
                estimate_of(entry),
                ", ".join(f"{value:.3f}" for value in entry["per_seed"]),
            )
            for entry in document["levels"]
        ],
    )
    return page.render()
