"""`medssl evaluate A B`: several models on the same patients."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import make_output_folder, write_atomic
from medssl_cli.base.plain_json import dump
from medssl_cli.cache.store import Cache
from medssl_cli.cli.options import require_path
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.probing import TypedProbe
from medssl_cli.cli.scoring import default_split, load_subject, split_words
from medssl_cli.cli.scoring_output import write_results
from medssl_cli.cli.terminal import Terminal, result, table
from medssl_cli.engine.evaluate import Terms
from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report.gallery import Gallery
from medssl_cli.study.comparison import comparison, comparison_csv, unfair
from medssl_cli.study.comparison_page import comparison_page
from medssl_cli.study.contestants import contestant, names_of


def require_plain(asked: TypedProbe, limits: Mapping[str, float | None]) -> None:
    """Refuse options of a comparison that are about one model.

    Raises:
        UsageError: `E_USAGE`.
    """
    if asked.is_given or any(limit is not None for limit in limits.values()):
        raise UsageError("E_USAGE", "probes and limits are about one model", hint="name one, or leave them out")


def compare(
    paths: Sequence[Path],
    cache: Path,
    split: str | None,
    terms: Terms,
    out: Path | None,
    *,
    pictures: int,
    device: str,
    json: bool,
    quiet: bool,
) -> None:
    """Score every model, write its own results, and compare them.

    Raises:
        UsageError: `E_USAGE`, they are of different tasks.
        NothingUsableError: `E_TOO_FEW_PATIENTS`, they have no image in common.
    """
    names, opened, terminal = names_of([require_path(path) for path in paths]), Cache.open(cache), Terminal(quiet=quiet)
    folder = Path("runs") / f"comparison-{'-'.join(map(_folder_name, names))}" if out is None else outside_caches(out)
    part = split or default_split(paths[0])
    models = []
    with terminal.running():
        for name, path in zip(names, paths, strict=True):
            terminal.note(f"model {name} · cache {cache} · split {split_words(path, part)}")
            subject = load_subject(path, opened, split=part, device=device, terms=terms)
            gallery = Gallery(subject.draw, limit=pictures, stage=subject.stage)
            scored = subject.score(opened, split=split_words(path, part), talk=terminal, on_case=gallery.add)
            place = folder / _folder_name(name)
            write_results(place, subject, scored, gallery, split=part, terms=terms, terminal=terminal)
            models.append(contestant(name, path, subject, scored.document))
    document = comparison(models)
    for fact, values in unfair(document).items():
        terminal.note(f"W_UNEQUAL: {fact}: " + "; ".join(f"{name}: {value}" for name, value in values.items()))
    make_output_folder(folder)
    write_atomic(folder / "comparison.json", dump(document).encode())
    write_atomic(folder / "comparison.csv", comparison_csv(document).encode())
    write_atomic(folder / "page.html", comparison_page(document).encode())
    if json:
        result(document, as_json=True, text="")
        return
    rows = [
        (f"{entry['metric']}, {entry['structure']}", f"{entry['model']} minus {entry['minus']}",
         "{0.mean:+.3f} [{0.low:+.3f}, {0.high:+.3f}]".format(estimate_of(entry)), _shown(entry["p_holm"]))
        for entry in document["differences"]
    ]  # fmt: skip
    title = f"{document['num_patients']} patients, differences and 95 % intervals over patients"
    table(title, ("figure", "models", "difference", "p (Holm)"), rows)
    typer.echo(f"page: {folder / 'page.html'}")


def _folder_name(name: str) -> str:
    """A model's name as a folder of every system may be called."""
    return name.replace("/", "-").replace(": ", "-")


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
