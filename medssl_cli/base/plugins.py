"""The folder is the registry: what lies in `methods/`, `tasks/`, `unlabelled/` or `nn/backbones/` is a plugin.

A task is a folder; a method or a backbone is a file, or a folder when it is large.
"""

import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import Final

from medssl_cli.base.errors import UsageError

PACKAGES: Final = {
    "method": "medssl_cli.methods",
    "task": "medssl_cli.tasks",
    "backbone": "medssl_cli.nn.backbones",
    "semi-supervised method": "medssl_cli.unlabelled",
}
FOLDERS: Final = frozenset({"task"})
"""Kinds of which every plugin is a folder; files beside them are none."""


def names(kind: str) -> list[str]:
    """Names of all plugins of a kind, a key of `PACKAGES`, sorted."""
    package = importlib.import_module(PACKAGES[kind])
    return sorted(
        module.name
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_") and (module.ispkg or kind not in FOLDERS)
    )


def load(kind: str, name: str) -> ModuleType:
    """Import one plugin.

    Raises:
        UsageError: `E_UNKNOWN_NAME`, with the nearest name.
    """
    available = names(kind)
    if name not in available:
        raise UsageError("E_UNKNOWN_NAME", f"no {kind} called {name!r}", hint=suggest(name, available))
    return importlib.import_module(f"{PACKAGES[kind]}.{name}")


def suggest(name: str, available: list[str]) -> str:
    """'Did you mean' with the nearest of the available names, or their list."""
    near = difflib.get_close_matches(name, available, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"choose from: {', '.join(available)}" if available else "there are none"
