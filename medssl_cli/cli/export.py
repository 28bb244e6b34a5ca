"""`medssl export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medssl_cli.cli.options import (
    DEFAULT_CACHE,
    CacheOption,
    JsonOption,
    MirrorOption,
    ModelsOption,
    QuietOption,
    mirror_axes,
    models_folder,
)
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.terminal import Terminal, result

PrecisionChoice = Literal["float32", "float16"]


def export(
    run: Annotated[Path, typer.Argument(help="Run folder, folder of folds, or an exportable pre-training.")],
    model: Annotated[Path | None, typer.Argument(help="ONNX file to write.")] = None,
    install: Annotated[bool, typer.Option(help="Put the model into the model store under its task's name.")] = False,
    cache: CacheOption = DEFAULT_CACHE,
    models: ModelsOption = None,
    cases: Annotated[int, typer.Option(min=1, help="Whole cached images to compare torch with ONNX on.")] = 4,
    precision: Annotated[PrecisionChoice, typer.Option(help="Numbers that the model computes in.")] = "float32",
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Largest allowed difference of a logit (relative).", show_default="1e-4; 1e-2 of float16"
        ),
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the model's label.")] = "not stated",
    mirror: MirrorOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export a run to one ONNX file and prove that it gives the trained model's answers.

    torch and the written file answer for whole cached images; if they differ, no file remains and the exit code is 5.
    Operating points of findings and boxes are chosen on the validation images. Of a pre-training with joint the encoder
    is exported: slices in, slice and volume embeddings out. Of a folder of folds the mean of their probabilities is one
    model, whose operating points are the means of theirs. A file of float16 is half as large and made for GPUs; on a
    CPU it is slower.

    Examples:

        medssl export runs/heart-seg-scratch-fold0 model.onnx

        medssl export runs/heart-seg-scratch-fold0 --install
    """
    from medssl_cli.base.errors import UsageError
    from medssl_cli.deploy.export import export_run
    from medssl_cli.deploy.model_store import ModelStore

    if model is None and not install:
        raise UsageError("E_USAGE", "nowhere to write to", hint="give an ONNX file, or --install")
    path = run / "model.onnx" if model is None else outside_caches(model)
    terminal = Terminal(quiet=quiet)
    terminal.note(f"run {run} · cache {cache} · {cases} cases · model {path}")
    with terminal.running():
        bundle = export_run(
            run,
            path,
            cache_root=cache,
            cases=cases,
            tolerance=tolerance,
            precision=precision,
            licence=licence,
            tell=terminal.note,
            mirror_axes=mirror_axes(mirror),
        )
    lines = [f"{path}: {bundle.proof}"]
    if install:
        store = ModelStore(models_folder(models))
        lines.append(f"installed as {store.add(path).name} in {store.root}")
        if bundle.head.kind != "embeddings":
            one = "image.png" if bundle.takes_flat else "scan.nii.gz"
            lines.append(f"next: medssl infer {one if bundle.in_channels == 1 else 'CASES'} --task {bundle.task}")
    document = {
        "model": str(path),
        "task": bundle.task,
        "head": bundle.head.kind,
        "parity": bundle.parity and bundle.parity.model_dump(),
        "installed": install,
    }
    result(document, as_json=json, text="\n".join(lines))
