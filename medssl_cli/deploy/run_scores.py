"""How a run did when it was evaluated, as a model carries it.

`medssl evaluate` keeps the figures in the run's folder, wherever its results go, beside the digest of the weights that
they are of. An export reads them there: figures of other weights are not its own.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from medssl_cli.base.files import read_regular, write_json
from medssl_cli.base.plain_json import parse_json
from medssl_cli.base.strict import Digest, PositiveInt, Probability, Strict

SCORES_FILE: Final = "scores.json"
MOST_FIGURES: Final = 2000
ESTIMATE: Final = ("mean", "low", "high", "confidence")
Word = Annotated[str, Field(min_length=1, max_length=64)]


class RunFigure(Strict):
    """One figure of an evaluation with its confidence interval.

    Args:
        name: Class that it is about; "mean" of all together.
        metric: What is measured.
        mean: The figure.
        low: Lower end of the interval; None where there is none.
        high: Upper end.
        confidence: Level of the interval.
    """

    name: Word
    metric: Word
    mean: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    confidence: Probability = 0.95

    @model_validator(mode="after")
    def _has_both_ends(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high go together")
        return self


class RunScores(Strict):
    """An evaluation of a run.

    Args:
        split: Who was scored, `test`, or `val` of folds.
        num_patients: How many they were.
        num_images: Their images.
        figures: Figures of each class.
    """

    split: Annotated[str, Field(min_length=1, max_length=200)]
    num_patients: PositiveInt
    num_images: PositiveInt
    figures: Annotated[tuple[RunFigure, ...], Field(min_length=1, max_length=MOST_FIGURES)]


class KeptScores(Strict):
    """The last evaluation of a run on one split, as its folder keeps it.

    Args:
        format_version: Version of this layout.
        weights_sha256: Digest of the weights that were scored.
        scores: How they did.
    """

    format_version: Literal[1] = 1
    weights_sha256: Digest
    scores: RunScores


def keep_scores(
    run_dir: Path, document: Any, *, weights_sha256: str, split: str, words: Sequence[str] = ()
) -> RunScores | None:
    """Keep the figures of an evaluation for the card of the run's model.

    Args:
        run_dir: A run folder, or a folder of folds.
        document: The results' document.
        weights_sha256: Digest of the weights that were scored.
        split: Who was scored.
        words: See `scores_of`.

    Returns:
        What was kept; None of a task whose results have no such figures.

    Raises:
        StorageError: `E_IO`.
    """
    try:
        scores = scores_from(document)
    except ValueError:
        return None
    kept = KeptScores(weights_sha256=weights_sha256, scores=scores)
    write_json(_kept_path(run_dir, split, words), kept.model_dump(mode="json"))
    return scores


def scores_of(run_dir: Path, *, weights_sha256: str, words: Sequence[str] = ()) -> RunScores | None:
    """The last evaluation of a run on patients whom it has not seen; None if there is none of these weights.

    Args:
        run_dir: A run folder, or a folder of folds.
        weights_sha256: Digest of its weights.
        words: How the model answers otherwise than its recipe says.
    """
    for split in ("test", "val"):
        try:
            kept = KeptScores.model_validate_json(read_regular(_kept_path(run_dir, split, words)))
        except FileNotFoundError:
            found = _scores_without_digest(run_dir, split, words)
        except (OSError, ValueError):
            continue
        else:
            found = kept.scores if kept.weights_sha256 == weights_sha256 else None
        if found is not None:
            return found
    return None


def _kept_path(run_dir: Path, split: str, words: Sequence[str]) -> Path:
    return run_dir / f"{'-'.join(('scores', split, *words))}.json"


def _scores_without_digest(run_dir: Path, split: str, words: Sequence[str]) -> RunScores | None:
    """What an earlier medssl left of an evaluation, if it is not older than the weights."""
    path = run_dir / "-".join(("evaluation", split, *words)) / SCORES_FILE
    try:
        is_old = path.stat().st_mtime_ns < _trained_ns(run_dir)
        return None if is_old else scores_from(parse_json(read_regular(path)))
    except (OSError, ValueError):
        return None


def scores_from(document: Any) -> RunScores:
    """The figures of a results' document, whatever its task.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(document, dict) or not str(document.get("schema", "")).startswith("medssl."):
        raise ValueError("not the results of an evaluation")
    try:
        return _scores_of_document(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not the results of an evaluation") from error


def _scores_of_document(document: dict[str, Any]) -> RunScores:
    found = [figure for name in ("structures", "classes") for figure in _figures(document.get(name))]
    means = {name: own for name, own in document.items() if name.startswith("mean_")}
    found = [*_figures({"mean": {name.removeprefix("mean_"): own for name, own in means.items()}}), *found]
    return RunScores(
        split=document["split"],
        num_patients=document["num_patients"],
        num_images=document["num_items"],
        figures=tuple(found[:MOST_FIGURES]),
    )


def _figures(by_name: Any) -> Iterator[RunFigure]:
    """Estimates by class and metric; other numbers of a class are no figures of the card."""
    for name, own in (by_name or {}).items():
        for metric, estimate in own.items():
            if isinstance(estimate, float):
                estimate = {"mean": estimate} if name == "mean" else {}
            if isinstance(estimate, dict) and isinstance(estimate.get("mean"), int | float):
                known = {key: estimate.get(key) for key in ESTIMATE if estimate.get(key) is not None}
                yield RunFigure(name=name, metric=metric, **known)


def _trained_ns(run_dir: Path) -> int:
    """When the newest of the best weights of a run, or of its folds, was written; 0 where none is found."""
    found = [*run_dir.glob("checkpoints/best-*"), *run_dir.glob("*/checkpoints/best-*")]
    return max((path.stat().st_mtime_ns for path in found), default=0)
