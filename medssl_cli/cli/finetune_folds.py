"""`medssl finetune --folds`: which folds, where, and how they went."""

from pathlib import Path
from typing import TYPE_CHECKING

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.many_trainings import require_one_place, typed_places

if TYPE_CHECKING:
    from medssl_cli.base.talk import Talk
    from medssl_cli.cache.store import Cache
    from medssl_cli.engine.choices import Choices
    from medssl_cli.recipe import TaskRecipe


def require_folds(folds: str | None, fold: int, jobs: int, cluster: str | None, *, is_alone: bool) -> None:
    """Refuse options that do not go with several folds, or with one.

    Args:
        folds: As typed.
        fold: As typed.
        jobs: As typed.
        cluster: As typed.
        is_alone: Each training is to be one process that tells nobody else of itself.

    Raises:
        UsageError: `E_USAGE`.
    """
    if folds is None and (jobs > 1 or cluster is not None):
        raise UsageError("E_USAGE", "--jobs and --cluster are about several folds", hint="add --folds all")
    if folds is not None and fold:
        raise UsageError("E_USAGE", "--fold and --folds say the same thing", hint="give one of them")
    require_one_place(jobs, cluster)
    if folds is not None and not is_alone:
        raise UsageError(
            "E_USAGE",
            "--folds does not go with --devices, --num-nodes, --strategy, --log and --profile",
            hint="--jobs trains a fold on each device; or train one --fold at a time",
        )


def parse_folds(text: str, num_folds: int) -> list[int]:
    """Folds from "all" or "0,2".

    Raises:
        UsageError: `E_USAGE`, they are no folds, or there is only one.
    """
    if num_folds < 2:
        raise UsageError("E_USAGE", "the split file names one part to validate on, no folds", hint="leave --folds out")
    if text == "all":
        return list(range(num_folds))
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) < num_folds for part in parts):
        raise UsageError(
            "E_USAGE",
            f"--folds {text!r} is neither all nor numbers of folds",
            hint=f"numbers from 0 to {num_folds - 1}",
        )
    return sorted({int(part) for part in parts})


def train_folds(
    recipe: "TaskRecipe",
    cache: "Cache",
    parent: Path,
    choices: "Choices",
    folds: str,
    *,
    device: str,
    talk: "Talk",
    init: str,
    jobs: int,
    cluster: str | None,
    json: bool,
) -> None:
    """`medssl finetune --folds`: trains and says how it went."""
    from medssl_cli.cli.terminal import result
    from medssl_cli.cli.training_results import folds_document, folds_text
    from medssl_cli.engine.folds import finetune_folds

    summaries = finetune_folds(
        recipe,
        cache,
        parent,
        choices,
        parse_folds(folds, choices.num_folds),
        device=device,
        talk=talk,
        init=None if choices.encoder is None else Path(init),
        places=typed_places(jobs, cluster),
    )
    result(folds_document(parent, summaries), as_json=json, text=folds_text(parent, summaries))
