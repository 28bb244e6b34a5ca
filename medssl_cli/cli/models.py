"""`medssl models`: what is installed."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.options import JsonOption, ModelsOption, models_folder
from medssl_cli.cli.terminal import announce, result

app = typer.Typer(help="List, show, add and remove installed models.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of an installed model.")]


@app.command("ls")
@guarded
def list_models(models: ModelsOption = None, json: JsonOption = False) -> None:
    """List the installed models.

    Example: medssl models ls
    """
    from medssl_cli.deploy.model_store import ModelStore

    store = ModelStore(models_folder(models))
    announce(f"models {store.root}")
    document, lines = [], []
    for model in store.models():
        kind = model.bundle.head.kind if model.bundle else ""
        words = ", ".join(model.bundle.head.words) if model.bundle else model.problem
        document.append({"name": model.name, "bytes": model.size_bytes, "problem": model.problem, "head": kind})
        lines.append(f"{model.name:20} {model.size_bytes / 1e6:8.1f} MB  {kind:10} {words}")
    text = "\n".join(lines) or f"no models in {store.root}; install one with: medssl export RUN --install"
    result(document, as_json=json, text=text)


@app.command()
@guarded
def show(
    name: Annotated[str, typer.Argument(help="Name of an installed model, or a model.onnx.")],
    models: ModelsOption = None,
) -> None:
    """Print everything that a model says about itself, as JSON, after checking every byte of it.

    Example: medssl models show heart-seg
    """
    from medssl_cli.deploy.model_store import ModelStore

    store = ModelStore(models_folder(models))
    announce(f"models {store.root}")
    bundle = store.show(name).bundle
    typer.echo(bundle.model_dump_json(indent=2) if bundle else "")


@app.command()
@guarded
def add(
    model: Annotated[Path, typer.Argument(help="An exported model.onnx.")],
    models: ModelsOption = None,
    json: JsonOption = False,
) -> None:
    """Install a model under its task's name.

    Example: medssl models add model.onnx
    """
    from medssl_cli.deploy.model_store import ModelStore

    store = ModelStore(models_folder(models))
    announce(f"models {store.root}")
    added = store.add(model)
    document = {"name": added.name, "path": str(added.path)}
    result(document, as_json=json, text=f"installed as {added.name} in {store.root}")


@app.command()
@guarded
def remove(name: Name, models: ModelsOption = None, json: JsonOption = False) -> None:
    """Remove an installed model.

    Example: medssl models remove heart-seg
    """
    from medssl_cli.deploy.model_store import ModelStore

    store = ModelStore(models_folder(models))
    announce(f"models {store.root}")
    store.remove(name)
    result({"removed": name}, as_json=json, text=f"removed {name}")
