"""`medssl evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, DeviceOption, JsonOption, QuietOption, require_path
from medssl_cli.cli.terminal import Terminal, result, table


def evaluate(
    model: Annotated[Path, typer.Argument(help="Run folder of `medssl finetune`, or an exported model.onnx.")],
    cache: CacheOption = DEFAULT_CACHE,
    split: Annotated[Literal["test", "val", "train"], typer.Option(help="Which patients.")] = "test",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the results; default: in the run.")] = None,
    min_dice: Annotated[float | None, typer.Option(help="Exit with code 5 if the mean Dice is lower.")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Show so many of the worst and best images on the page.")] = 3,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a model on held-out patients: Dice, HD95, NSD per structure, with confidence intervals.

    A structure that is missed counts as the worst value. Writes scores.json, scores.csv and page.html.

    Examples:

        medssl evaluate runs/heart-seg-scratch-fold0 --split test

        medssl evaluate model.onnx --cache CACHE --min-dice 0.85
    """
    from medssl_cli.cache.store import Cache
    from medssl_cli.cli.scoring import load_subject, write_results
    from medssl_cli.engine.evaluate import evaluate as run_evaluate
    from medssl_cli.engine.evaluate import to_document
    from medssl_cli.errors import GateError
    from medssl_cli.report.evaluation import Gallery

    opened = Cache.open(cache)
    subject = load_subject(require_path(model), opened, split=split, device=device)
    folder = out or subject.folder / f"evaluation-{split}"
    terminal = Terminal(quiet=quiet)
    terminal.note(f"model {model} · cache {cache} · {len(subject.records)} images of split {split} · results {folder}")
    gallery = Gallery(subject.classes, limit=pictures)
    with terminal.running():
        scores = run_evaluate(
            subject.segment,
            opened,
            subject.records,
            label_set=subject.label_set,
            classes=subject.classes,
            nsd_tolerance_mm=subject.nsd_tolerance_mm,
            talk=terminal,
            on_case=lambda case, image, prediction, reference: gallery.add(
                case.item_id, case.mean_dice, image, prediction, reference
            ),
        )
    document = to_document(scores, {"model": subject.name, "split": split, "task": subject.task})
    write_results(folder, document, scores, gallery)
    rows = [
        (name, *(f"{m[k].mean:.3f} [{m[k].low:.3f}, {m[k].high:.3f}]" for k in m), f"{scores.constant_dice[name]:.3f}")
        for name, m in scores.estimates.items()
    ]
    if json:
        result(document, as_json=True, text="")
    else:
        title = f"{document['num_patients']} patients, mean and 95 % interval over patients"
        table(title, ("structure", "Dice", "HD95 mm", "NSD", "Dice of marking all"), rows)
        typer.echo(f"mean Dice {scores.mean_dice:.4f}\npage: {folder / 'page.html'}")
    if min_dice is not None and not scores.mean_dice >= min_dice:
        raise GateError("E_GATE_DICE", f"mean Dice {scores.mean_dice:.4f} is below {min_dice:g}")
