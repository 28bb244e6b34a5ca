"""`medssl evaluate MODEL`: one model on a split, with its results and its limits."""

from collections.abc import Mapping
from pathlib import Path

import typer

from medssl_cli.cache.store import Cache
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.scoring import (
    default_split,
    limit_of,
    load_subject,
    require_mean,
    split_words,
)
from medssl_cli.cli.scoring_output import write_results
from medssl_cli.cli.terminal import Terminal, result, table
from medssl_cli.engine.evaluate import Terms
from medssl_cli.report.gallery import Gallery


def score_one(
    model: Path,
    cache: Path,
    split: str | None,
    terms: Terms,
    out: Path | None,
    *,
    limits: Mapping[str, float | None],
    pictures: int,
    device: str,
    json: bool,
    quiet: bool,
) -> None:
    """Score a model, write its results, and refuse a mean that is below a limit.

    Raises:
        UsageError: `E_USAGE`, a limit for a figure that the task does not have.
        GateError: Refusal with the code of the figure.
    """
    opened, part = Cache.open(cache), split or default_split(model)
    words = split_words(model, part)
    subject = load_subject(model, opened, split=part, device=device, terms=terms)
    limit, figure = limit_of(subject, limits), subject.figure
    folder = subject.folder / "-".join(("evaluation", part, *terms.words)) if out is None else outside_caches(out)
    terminal = Terminal(quiet=quiet)
    terminal.note(f"model {model} · cache {cache} · split {words} · results {folder}")
    gallery = Gallery(subject.draw, limit=pictures, stage=subject.stage)
    with terminal.running():
        results = subject.score(opened, split=words, talk=terminal, on_case=gallery.add)
    write_results(folder, subject, results, gallery, split=part, terms=terms, terminal=terminal)
    if json:
        result(results.document, as_json=True, text="")
    else:
        title = f"{results.document['num_patients']} patients, mean and 95 % interval over patients"
        table(title, results.columns, results.rows)
        typer.echo(f"mean {figure.title} {results.value:.4f}\npage: {folder / 'page.html'}")
    require_mean(figure, results.value, limit)
