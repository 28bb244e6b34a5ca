"""What an evaluation leaves: its results, and in the run the figures for the card of its model."""

import os
from pathlib import Path

from medssl_cli.base.files import storage_errors, write_atomic
from medssl_cli.base.plain_json import dump
from medssl_cli.cli.terminal import Terminal
from medssl_cli.deploy.run_scores import keep_scores
from medssl_cli.engine.evaluate import Terms
from medssl_cli.report.gallery import Gallery
from medssl_cli.tasks import Results, Subject


def write_results(
    folder: Path, subject: Subject, results: Results, gallery: Gallery, *, split: str, terms: Terms, terminal: Terminal
) -> None:
    """`scores.json`, `scores.csv` and `page.html`; of a run also its figures, in its own folder.

    Raises:
        StorageError: `E_IO`.
    """
    document = results.document
    page = subject.page(document, gallery.pictures())
    with storage_errors("the results"):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "scores.json", dump(document).encode())
    write_atomic(folder / "scores.csv", results.csv.encode())
    write_atomic(folder / "page.html", page.encode())
    digest = subject.weights_sha256
    if digest and os.access(subject.folder, os.W_OK):
        keep_scores(subject.folder, document, weights_sha256=digest, split=split, words=terms.words)
    elif digest:
        terminal.note(f"{subject.folder} cannot be written: the card of its model will not show these scores")
