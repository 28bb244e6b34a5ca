"""Caches beside the first one, for recipes whose mixture names them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl_cli.base.errors import UsageError

if TYPE_CHECKING:
    from medssl_cli.cache.store import Cache

CachesOption = Annotated[
    list[str] | None,
    typer.Option("--cache-of", metavar="NAME=FOLDER", help="Another cache, which a recipe's data.mixture calls NAME."),
]


def open_caches(given: list[str] | None) -> "dict[str, Cache]":
    """Caches by name.

    Raises:
        UsageError: `E_USAGE`, `E_NO_CACHE`.
    """
    from medssl_cli.cache.store import Cache

    found: dict[str, Cache] = {}
    for text in given or []:
        name, separator, folder = text.partition("=")
        if not name or not separator or not folder or name in found:
            raise UsageError(
                "E_USAGE", f"--cache-of {text!r} is not NAME=FOLDER", hint="for example --cache-of chest=caches/chest"
            )
        found[name] = Cache.open(Path(folder))
    return found
