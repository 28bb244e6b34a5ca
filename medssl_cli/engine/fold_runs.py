"""A folder of folds: runs of one training, each of which leaves out other patients, side by side.

PARENT/folds.json  fold0/  fold1/  ...
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import storage_errors, write_json
from medssl_cli.base.strict import PositiveInt, Strict
from medssl_cli.engine.runs import LOCK, damaged, read_document

RECORD: Final = "folds.json"


class FoldsRecord(Strict):
    """`folds.json`: what makes a folder one of folds."""

    format_version: Literal[1] = 1
    kind: Literal["folds"] = "folds"
    num_folds: PositiveInt


def fold_folder(parent: Path, fold: int) -> Path:
    """Where the run of a fold lies."""
    return parent / f"fold{fold}"


def are_folds(path: Path) -> bool:
    """Whether a folder is one of folds."""
    return (path / RECORD).is_file()


def folds_of(parent: Path) -> tuple[int, dict[int, Path]]:
    """How many folds there are to be, and the runs of those that were begun.

    Raises:
        GateError: `E_RUN_CORRUPT`.
        UsageError: `E_RUN_UNFINISHED`, none was begun.
    """
    num_folds = _record(parent).num_folds
    begun = {fold: path for fold in range(num_folds) if (path := fold_folder(parent, fold)).is_dir()}
    if not begun:
        raise UsageError("E_RUN_UNFINISHED", f"{parent} holds no fold yet", hint="let medssl finetune --folds go on")
    return num_folds, begun


def fold_words(parent: Path) -> str:
    """How many folds were begun, and of how many that is."""
    number, begun = folds_of(parent)
    return f"{number} folds" if len(begun) == number else f"{len(begun)} of {number} folds"


def open_folds(parent: Path, num_folds: int) -> None:
    """Make a folder of folds, or open the one that the same command made before.

    Raises:
        UsageError: `E_RECIPE_CHANGED`, it is of another number of folds, or no folder of folds.
    """
    if are_folds(parent):
        known = _record(parent).num_folds
        if known != num_folds:
            raise UsageError(
                "E_RECIPE_CHANGED",
                f"{parent} is of {known} folds, {num_folds} are asked for",
                hint="choose another folder with --run, or remove this one",
            )
        return
    if (parent / LOCK).is_file():
        raise UsageError("E_RECIPE_CHANGED", f"{parent} is a run of its own, and no folder of folds")
    with storage_errors("the folds"):
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(parent / RECORD, FoldsRecord(num_folds=num_folds).model_dump(mode="json"))


def _record(parent: Path) -> FoldsRecord:
    try:
        return FoldsRecord.model_validate(read_document(parent / RECORD))
    except ValidationError as error:
        raise damaged(RECORD) from error
