"""`medssl models`: what is installed."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli import models_pack
from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.options import JsonOption, ModelsOption, models_folder
from medssl_cli.cli.terminal import announce, result

app = typer.Typer(help="List, show, add, check, pack and remove installed models.", no_args_is_help=True)
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
    card: Annotated[
        Path | None, typer.Option(help="Write the model's card to this file instead: .md or .html.")
    ] = None,
    models: ModelsOption = None,
    json: JsonOption = False,
) -> None:
    """Print the card of a model, or with --json everything that it says about itself; every byte is checked first.

    Examples:

        medssl models show heart-seg

        medssl models show heart-seg --card heart-seg.html
    """
    from medssl_cli.base.files import write_atomic
    from medssl_cli.deploy.card import card_in, card_markdown
    from medssl_cli.deploy.model_store import ModelStore

    store = ModelStore(models_folder(models))
    announce(f"models {store.root}")
    bundle = store.show(name).bundle
    assert bundle is not None
    if card is not None:
        write_atomic(card, card_in(bundle, card.suffix).encode(), is_output=True)
        result({"card": str(card)}, as_json=json, text=f"card: {card}")
    elif json:
        typer.echo(bundle.model_dump_json(indent=2))
    else:
        typer.echo(card_markdown(bundle))


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


for command in models_pack.COMMANDS:
    app.command()(guarded(command))
