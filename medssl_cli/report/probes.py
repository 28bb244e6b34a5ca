"""The plot of a comparison of pre-trainings by probes."""

from collections.abc import Mapping
from typing import Any

from medssl_cli.report.plots import seed_dots


def probes_plot(document: Mapping[str, Any]) -> bytes:
    """AUROC of every arm, a panel per question and kind of probe, as SVG.

    Args:
        document: As `bench.probes.compare_probes` returns it.
    """
    panels: dict[str, dict[str, list[float]]] = {}
    for level in document["levels"]:
        panels.setdefault(f"{level['question']}, {level['probe']}", {})[level["arm"]] = level["per_seed"]
    return seed_dots(panels, xlabel="AUROC on test patients")
