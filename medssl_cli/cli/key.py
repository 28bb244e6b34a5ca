"""`medssl key`: the site's secret, which pseudonyms are made with."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.options import JsonOption
from medssl_cli.cli.terminal import result

app = typer.Typer(help="Make and show the site's key, which patients' pseudonyms depend on.", no_args_is_help=True)
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        help="File of the site's key; default: in the user's configuration folder.",
        envvar="MEDSSL_KEY_FILE",
    ),
]


@app.command()
@guarded
def init(key_file: KeyFileOption = None, json: JsonOption = False) -> None:
    """Make the site's key, unless there is one; caches made from now on use it. Keep a backup of the file.

    Example: medssl key init
    """
    from medssl_cli.cache.keys import Pseudonyms, create_key, load_key, site_key_path

    path = key_file or site_key_path()
    is_new = create_key(path)
    key_id = Pseudonyms(load_key(path)).key_id
    text = f"key {key_id} {'made' if is_new else 'is there already'}: {path}"
    result({"key_id": key_id, "is_new": is_new, "path": str(path)}, as_json=json, text=text)


@app.command()
@guarded
def show(key_file: KeyFileOption = None, json: JsonOption = False) -> None:
    """Print the id of the site's key, which says nothing about the key itself.

    Example: medssl key show
    """
    from medssl_cli.cache.keys import Pseudonyms, load_key, site_key_path

    key_id = Pseudonyms(load_key(key_file or site_key_path())).key_id
    result({"key_id": key_id}, as_json=json, text=key_id)
