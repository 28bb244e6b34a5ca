"""`medssl evaluate --probe`: what a pre-trained encoder knows without fine-tuning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.terminal import Terminal, result, table


@dataclass(frozen=True)
class TypedProbe:
    """Options of a probe as typed; None where not given."""

    kind: Literal["linear", "knn"] | None
    labels: str | None
    finding: str | None

    @property
    def is_given(self) -> bool:
        """Whether any of them was typed."""
        return any(value is not None for value in (self.kind, self.labels, self.finding))


def probe(
    run: Path,
    cache: Path,
    asked: TypedProbe,
    *,
    split: str,
    out: Path | None,
    limits: dict[str, float | None],
    device: str,
    json: bool,
    quiet: bool,
) -> None:
    """Fit and score a probe, write `scores.json`, show a table.

    Raises:
        UsageError: `E_USAGE`.
        GateError: `E_GATE_AUROC`.
    """
    if asked.kind is None or asked.labels is None:
        raise UsageError("E_USAGE", "a probe needs --probe and --labels", hint="for example --probe knn --labels nih")
    if split != "test" or limits["dice"] is not None:
        raise UsageError("E_USAGE", "a probe is scored on the test patients by its AUROC", hint="see --min-auroc")
    from medssl_cli.base.files import storage_errors, write_atomic
    from medssl_cli.base.plain_json import dump
    from medssl_cli.cache.store import Cache
    from medssl_cli.cli.scoring import OWN_FIGURE, require_mean
    from medssl_cli.study.probe import probe_run
    from medssl_cli.tasks import figures

    parts = ["probe", asked.kind, asked.labels, *([] if asked.finding is None else [asked.finding.replace(" ", "_")])]
    folder = run / "-".join(parts).replace("/", "_") if out is None else outside_caches(out)
    terminal = Terminal(quiet=quiet)
    terminal.note(f"run {run} · cache {cache} · {asked.kind} probe of {asked.labels} · results {folder}")
    opened = Cache.open(cache)
    with terminal.running():
        document = probe_run(
            run, opened, kind=asked.kind, labels=asked.labels, finding=asked.finding, device=device, talk=terminal
        )
    with storage_errors("the results"):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "scores.json", dump(document).encode())
    if json:
        result(document, as_json=True, text="")
    else:
        _show(document)
    limit = limits[OWN_FIGURE] if limits["auroc"] is None else limits["auroc"]
    require_mean(figures()["auroc"], document["mean_auroc"]["pretrained"], limit)


def _show(document: dict[str, Any]) -> None:
    from medssl_cli.metrics.statistics import estimate_of, shown

    rows = []
    for name, scores in document["classes"].items():
        counts = f"{scores['num_positive']} of {scores['num_known']}"
        arms = [scores[arm][figure] for figure in ("auroc", "average_precision") for arm in ("pretrained", "random")]
        rows.append((name, counts, *(shown(estimate_of(entry)) for entry in (*arms, scores["auroc_difference"]))))
    title = f"{document['num_patients']} patients, fitted on {document['num_fitted_patients']}; 95 % intervals"
    columns = ("class", "positive", "AUROC", "untrained", "average precision", "untrained", "AUROC gained")
    table(title, columns, rows)
    means = document["mean_auroc"]
    typer.echo(f"mean AUROC {means['pretrained']:.4f}, of the untrained network {means['random']:.4f}")
