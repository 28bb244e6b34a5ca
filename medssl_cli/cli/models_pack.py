"""`medssl models`: are they whole, and how they travel to a place without a network."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.options import JsonOption, ModelsOption, models_folder, require_path
from medssl_cli.cli.terminal import announce, result

Names = Annotated[list[str] | None, typer.Argument(help="Names of installed models.")]


def verify(names: Names = None, models: ModelsOption = None, json: JsonOption = False) -> None:
    """Check every byte of installed models, all of them by default; exit code 5 if any is damaged.

    Example: medssl models verify
    """
    from medssl_cli.base.errors import Exit, MedsslError
    from medssl_cli.deploy.model_store import ModelStore

    store = ModelStore(models_folder(models))
    announce(f"models {store.root}")
    problems = {}
    wanted = names or store.names()
    for name in wanted:
        path = store.find(name)
        try:
            store.show(name)
        except MedsslError as error:
            problems[path.stem] = f"{error.code}: {error.message}"
    lines = [f"{name}: {problem}" for name, problem in problems.items()]
    document = {"checked": len(wanted), "problems": problems}
    result(document, as_json=json, text="\n".join([*lines, f"checked: {len(wanted)}, damaged: {len(problems)}"]))
    if problems:
        raise typer.Exit(int(Exit.GATE))


def pack(
    out: Annotated[Path, typer.Argument(help="File to write, such as models.zip.")],
    names: Names = None,
    every: Annotated[bool, typer.Option("--all", help="Pack every installed model.")] = False,
    models: ModelsOption = None,
    json: JsonOption = False,
) -> None:
    """Write installed models with their cards, licences and digests into one file.

    The same models give the same bytes.

    Examples:

        medssl models pack models.zip --all

        medssl models pack heart.zip heart-seg
    """
    from medssl_cli.base.errors import UsageError
    from medssl_cli.base.files import sha256_file
    from medssl_cli.deploy.model_store import ModelStore
    from medssl_cli.deploy.pack import write_pack

    store = ModelStore(models_folder(models))
    announce(f"models {store.root}")
    wanted = store.names() if every else names or []
    if not wanted or (every and names):
        raise UsageError("E_USAGE", "no model is named, or all and some", hint="name installed models, or pass --all")
    manifest = write_pack(out, store, wanted)
    digest = sha256_file(out)
    document = {"pack": str(out), "sha256": digest, "models": [one.model_dump() for one in manifest.models]}
    lines = [f"{one.name:20} {one.size_bytes / 1e6:8.1f} MB  licence {one.licence}" for one in manifest.models]
    result(document, as_json=json, text="\n".join([*lines, f"{out}: sha256 {digest}"]))


def unpack(
    file: Annotated[Path, typer.Argument(help="File written by `medssl models pack`.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace installed models of the same names.")] = False,
    models: ModelsOption = None,
    json: JsonOption = False,
) -> None:
    """Check a pack whole, then install its models.

    A model that is installed already stays. If another one of its name is installed, nothing is unpacked, unless
    --replace is given. After an interruption the same command goes on.

    Example: medssl models unpack models.zip
    """
    from medssl_cli.deploy.model_store import ModelStore
    from medssl_cli.deploy.pack import unpack as unpack_models

    store = ModelStore(models_folder(models))
    announce(f"models {store.root}")
    done = unpack_models(require_path(file), store, replace=replace)
    document = {"models": [vars(one) for one in done]}
    result(document, as_json=json, text="\n".join(f"{one.name}: {one.status}" for one in done))


COMMANDS = (verify, pack, unpack)
