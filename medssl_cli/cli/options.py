"""Options that several commands share, each defined once."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from medssl_cli.base.errors import UsageError


def _complete_pretrain(incomplete: str) -> list[str]:
    from medssl_cli.recipe import recipe_names

    return [name for name in recipe_names("pretrain") if name.startswith(incomplete)]


def _complete_task(incomplete: str) -> list[str]:
    from medssl_cli.recipe import recipe_names

    return [name for name in recipe_names("tasks") if name.startswith(incomplete)]


CacheOption = Annotated[
    Path, typer.Option("--cache", help="Cache folder written by `medssl ingest`.", envvar="MEDSSL_CACHE")
]
ModelsOption = Annotated[
    Path | None,
    typer.Option(
        "--models", help="Folder of installed models; default: the user's data folder.", envvar="MEDSSL_MODELS"
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the recipe, e.g. data.batch_size=2."),
]
RunOption = Annotated[Path | None, typer.Option("--run", help="Run folder; default: named after the recipe in ./runs.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N. Never falls back silently.")]
DevicesOption = Annotated[
    int, typer.Option("--devices", min=0, help="Devices per machine; 0: as many as torchrun or SLURM started, or 1.")
]
NodesOption = Annotated[
    int, typer.Option("--num-nodes", min=0, help="Machines; 0: as many as torchrun or SLURM started on, or 1.")
]
StrategyOption = Annotated[
    Literal["auto", "ddp", "fsdp"],
    typer.Option("--strategy", help="ddp: the whole network on every device; fsdp: a part of it; auto: ddp."),
]
LogOption = Annotated[
    list[str] | None, typer.Option("--log", metavar="mlflow|wandb", help="Send the numbers there too; repeatable.")
]
ProfileOption = Annotated[
    int, typer.Option("--profile", min=0, help="Time the parts of so many steps, for RUN/profile.json.")
]
MirrorOption = Annotated[
    str | None,
    typer.Option("--mirror", metavar="N,N,...|none", help="Average over flips along these axes, not the recipe's."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and notes; errors only.")]
RecipeOption = Annotated[
    str,
    typer.Option("--recipe", help="Name of a pre-training recipe, or a YAML file.", autocompletion=_complete_pretrain),
]
TaskOption = Annotated[
    str, typer.Option("--task", help="Name of a task recipe, or a YAML file.", autocompletion=_complete_task)
]
DEFAULT_CACHE = Path("medssl-cache")
DEFAULT_MODELS = Path("medssl-models")


def num_threads() -> int | None:
    """Threads of ONNX Runtime, as OMP_NUM_THREADS says; None for as many as there are cores."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list speaks of nested loops, too
    return int(said) or None if said.isdecimal() else None


def models_folder(given: Path | None) -> Path:
    """The model store: as given, or in the user's data folder, or in the current one for a user who has no home."""
    if given is not None:
        return given
    from platformdirs import user_data_path

    try:
        return user_data_path("medssl", appauthor=False) / "models"
    except RuntimeError:
        return DEFAULT_MODELS


def bytes_of(gib: float) -> int:
    """Bytes of an option in GiB; infinity is as much as can be counted."""
    return int(min(gib * 2**30, 2.0**62))


def mirror_axes(text: str | None) -> tuple[int, ...] | None:
    """Axes from "0,1" or "none"; None where nothing is said.

    Raises:
        UsageError: `E_USAGE`.
    """
    if text is None or text == "none":
        return None if text is None else ()
    parts = [part.strip() for part in text.split(",")]
    if not set(parts) <= {"0", "1", "2"} or len(set(parts)) < len(parts):
        raise UsageError("E_USAGE", f"--mirror {text!r} is no list of axes", hint="for example 0,1 or none")
    return tuple(sorted(int(part) for part in parts))


def require_path(path: Path) -> Path:
    """An input path that must exist.

    Raises:
        UsageError: `E_NOT_FOUND`.
    """
    if not path.exists():
        raise UsageError("E_NOT_FOUND", f"no such file or folder: {path}")
    return path
