"""`--log`: whether the user has configured a server is read from the environment."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.recipe import Recipe, dump_recipe

if TYPE_CHECKING:
    from medssl_cli.engine.metrics_log import Sink

CONFIGURED_BY: Final = {
    "mlflow": ("MLFLOW_TRACKING_URI",),
    "wandb": ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"),
}


def open_sinks(names: Sequence[str], root: Path, recipe: Recipe) -> "list[Sink]":
    """Loggers by name, offline unless the environment names a server.

    Raises:
        UsageError: `E_USAGE`, `E_EXTRA_MISSING`.
    """
    from medssl_cli.engine.loggers import open_sink

    configured = {name: any(os.environ.get(key) for key in keys) for name, keys in CONFIGURED_BY.items()}
    return [
        open_sink(name, root, dump_recipe(recipe), is_configured=configured.get(name, False))
        for name in dict.fromkeys(names)
    ]
