"""`medssl doctor`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, JsonOption, ModelsOption, models_folder
from medssl_cli.cli.terminal import result, table

if TYPE_CHECKING:
    from medssl_cli.deploy.doctor import Finding


def doctor(cache: CacheOption = DEFAULT_CACHE, models: ModelsOption = None, json: JsonOption = False) -> None:
    """Say what is installed, which devices are really used, and whether the cache is sound.

    Example:

        medssl doctor
    """
    from medssl_cli.base.errors import Exit
    from medssl_cli.deploy.doctor import examine

    findings = [*examine(), _cache(cache), _models(models_folder(models))]
    if json:
        result([asdict(finding) for finding in findings], as_json=True, text="")
    else:
        rows = [(finding.what, finding.status, finding.detail) for finding in findings]
        table("medssl doctor", ("what", "status", "detail"), rows)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(int(Exit.GATE))


def _cache(root: Path) -> "Finding":
    from medssl_cli.cache.marker import MARKER
    from medssl_cli.cache.store import Cache
    from medssl_cli.deploy.doctor import Finding

    if not (root / MARKER).is_file():
        return Finding("cache", "note", f"none at {root}; medssl ingest PATH makes one")
    checks = list(Cache.open(root).verify())
    num_damaged = sum(problem is not None for problem in checks)
    return Finding("cache", "problem" if num_damaged else "ok", f"{root}: {len(checks)} items, {num_damaged} damaged")


def _models(root: Path) -> "Finding":
    from medssl_cli.deploy.doctor import Finding
    from medssl_cli.deploy.model_store import ModelStore

    models = ModelStore(root).models()
    broken = [model.name for model in models if model.problem]
    detail = f"{root}: {len(models)} installed" + (f", damaged: {', '.join(broken)}" if broken else "")
    return Finding("models", "problem" if broken else "ok", detail)
