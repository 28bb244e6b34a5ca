"""What a training begins with, and who trains, validates and tests: the options of `medssl finetune` that say so."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medssl_cli.cache.named_splits import GivenSplit

InitOption = Annotated[
    str,
    typer.Option(
        "--init",
        help="Run of `medssl pretrain` or `finetune`, folder of `medssl weights import`, or none: from scratch.",
    ),
]
UnlabelledOption = Annotated[
    bool,
    typer.Option("--unlabelled", help="Let the cache's other images take part without labels, never test patients."),
]
FoldOption = Annotated[
    int, typer.Option("--fold", min=0, help="Which part of the training patients validates; --folds all: each in turn.")
]
NumFoldsOption = Annotated[
    int | None,
    typer.Option("--num-folds", min=2, help="Parts of equal size; by default 5, or those of a split file."),
]
SplitFileOption = Annotated[
    list[str] | None,
    typer.Option(
        "--split-file",
        metavar="[PART=]FILE",
        help="Split by names: splits_final.json, JSON or table of parts or folds, test=LIST, nnunet=LIST.",
    ),
]
SkipMissingOption = Annotated[
    bool, typer.Option("--skip-missing", help="Leave out names of the split file that are not in the cache.")
]
FoldsOption = Annotated[
    str | None, typer.Option("--folds", metavar="all|N,N,...", help="Train several folds, each a run in one folder.")
]


def given_split(
    files: list[str] | None, fold: int, num_folds: int | None, *, skip_missing: bool
) -> "tuple[GivenSplit | None, int]":
    """The split that files give, and how many folds there are.

    Raises:
        UsageError: `E_USAGE`, options contradict each other; `E_SPLIT_FILE`.
    """
    from medssl_cli.base.errors import UsageError
    from medssl_cli.cache.named_splits import GivenSplit
    from medssl_cli.cache.split_files import read_split
    from medssl_cli.cache.splits import NUM_FOLDS

    if skip_missing and not files:
        raise UsageError("E_USAGE", "--skip-missing is about the names of a --split-file", hint="leave it out")
    file = read_split(files) if files else None
    of_file = None if file is None else file.num_folds
    if of_file is not None and num_folds not in (None, of_file):
        raise UsageError(
            "E_USAGE", f"the split file names {of_file} folds, not {num_folds}", hint="leave --num-folds out"
        )
    number = of_file or num_folds or NUM_FOLDS
    if fold >= number:
        raise UsageError("E_USAGE", f"there is no fold {fold}", hint=f"--fold takes 0 to {number - 1} here")
    return None if file is None else GivenSplit(file, skip_missing), number
