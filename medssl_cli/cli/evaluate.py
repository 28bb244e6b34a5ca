"""`medssl evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medssl_cli.cli.options import (
    DEFAULT_CACHE,
    CacheOption,
    DeviceOption,
    JsonOption,
    MirrorOption,
    QuietOption,
    mirror_axes,
    require_path,
)
from medssl_cli.cli.probing import TypedProbe
from medssl_cli.cli.probing import probe as run_probe


def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(help="Run folder of `medssl finetune`, folder of folds, or model.onnx; several are compared."),
    ],
    cache: CacheOption = DEFAULT_CACHE,
    label_set: Annotated[
        str | None, typer.Option(help="Score by this set of labels, such as corrected ones; default: the recipe's.")
    ] = None,
    split: Annotated[
        Literal["test", "val", "train"] | None, typer.Option(help="Which patients; default: test, of folds val.")
    ] = None,
    mirror: MirrorOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the results; default: in the run.")] = None,
    min_dice: Annotated[float | None, typer.Option(help="Exit with code 5 if the mean Dice is lower.")] = None,
    min_auroc: Annotated[float | None, typer.Option(help="Exit with code 5 if the mean AUROC is lower.")] = None,
    min_ap: Annotated[
        float | None, typer.Option(help="Exit with code 5 if the mean average precision is lower.")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Exit with code 5 if the mean of the task's own figure, whichever, is lower.")
    ] = None,
    probe: Annotated[
        Literal["linear", "knn"] | None, typer.Option(help="Probe the frozen encoder of a run of `medssl pretrain`.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Target of a probe: a set of findings, modality, or level (third of a volume).")
    ] = None,
    finding: Annotated[
        str | None, typer.Option(help="Finding of a probe: one, or any; default: each, and any of them.")
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=0, help="Show so many of the worst, median and best images on the page.")
    ] = 3,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a model on held-out patients, with confidence intervals.

    Dice, HD95 and NSD per structure, AUROC per class, or average precision and sensitivity of boxes per class.
    A structure that is missed counts as the worst value. Writes scores.json, scores.csv and page.html. Of a folder of
    folds every patient is scored by the fold that has not learnt from them; with --split test, the mean of all folds.
    The run keeps the figures for the card of its model, wherever the results go.

    Several models are compared on the same patients: differences with intervals and tests, and what else differs.

    With --probe the encoder of a pre-training is asked what its embeddings tell, beside the same network untrained.

    Examples:

        medssl evaluate runs/heart-seg-scratch-fold0 --split test

        medssl evaluate runs/heart-seg-scratch-folds

        medssl evaluate runs/heart-seg-scratch-fold0 runs/heart-seg-voco-fold0

        medssl evaluate model.onnx --cache CACHE --min-dice 0.85

        medssl evaluate runs/heart --label-set corrected

        medssl evaluate runs/swav --probe linear --labels nih --finding any
    """
    from medssl_cli.base.errors import UsageError
    from medssl_cli.cli.comparing import compare, require_plain
    from medssl_cli.cli.scoring import OWN_FIGURE
    from medssl_cli.cli.scoring_one import score_one
    from medssl_cli.engine.evaluate import Terms

    limits = {"dice": min_dice, "auroc": min_auroc, "average_precision": min_ap, OWN_FIGURE: min_score}
    asked, terms = TypedProbe(probe, labels, finding), Terms(label_set, mirror_axes(mirror))
    model = require_path(models[0])
    if len(models) > 1:
        require_plain(asked, limits)
        compare(models, cache, split, terms, out, pictures=pictures, device=device, json=json, quiet=quiet)
        return
    if asked.is_given:
        if terms != Terms():
            raise UsageError(
                "E_USAGE",
                "--label-set and --mirror are for models of a task; a probe has --labels",
                hint="leave one out",
            )
        run_probe(
            model, cache, asked, split=split or "test", out=out, limits=limits, device=device, json=json, quiet=quiet
        )
        return
    score_one(model, cache, split, terms, out, limits=limits, pictures=pictures, device=device, json=json, quiet=quiet)
