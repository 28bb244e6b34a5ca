"""What `medssl evaluate` scores: a run or an exported model, on which patients, and the least that is asked of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.splits import held_out_patients
from medssl_cli.cache.store import Cache
from medssl_cli.cli.options import num_threads
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.engine.evaluate import AS_TRAINED, Terms, subject_of_folds, subject_of_run
from medssl_cli.engine.fold_runs import are_folds, fold_words
from medssl_cli.tasks import FigureOfMerit, Subject, figures, load_part, task_of_head

OWN_FIGURE: Final = "score"
"""Stands for the figure of whatever task a model is of."""


def default_split(path: Path) -> str:
    """Which patients a model is scored on: those whom no training has seen; of folds, each by the fold without it."""
    return "val" if are_folds(path) else "test"


def split_words(path: Path, split: str) -> str:
    """A split as results call it; of folds also how their models go together."""
    if not are_folds(path):
        return split
    words = fold_words(path)
    return f"{split}, mean of {words}" if split == "test" else f"{split}, pooled over {words}"


def load_subject(path: Path, cache: Cache, *, split: str, device: str, terms: Terms = AS_TRAINED) -> Subject:
    """A run folder, a folder of folds, or an exported model whose split is made anew from the cache.

    Args:
        path: Path of the run or the model.
        cache: Holds the images.
        split: Which patients.
        device: Where to compute.
        terms: Where they are not those of the training: other labels, such as corrected ones, or mirroring.

    Raises:
        UsageError: `E_USAGE` for another split of an exported model, which remembers only whom it has seen.
        GateError: `E_SPLIT_LEAK` if the exported model has seen a patient of the cache's test split.
    """
    if are_folds(path):
        return subject_of_folds(path, cache, split=split, device=device, terms=terms)
    if path.is_dir():
        return subject_of_run(path, cache, split=split, device=device, terms=terms)
    if split != "test":
        raise UsageError("E_USAGE", f"an exported model has no {split} split", hint="evaluate its run folder instead")
    if terms.mirror_axes is not None:
        raise UsageError("E_USAGE", "an exported model mirrors as it was exported", hint="give --mirror to its run")
    model = OnnxModel(path, device, threads=num_threads())
    bundle = model.bundle
    label_set = terms.label_set or bundle.label_set
    scores = load_part(task_of_head(bundle.head.kind), "scores")
    usable = scores.usable(cache, bundle, label_set=label_set, talk=Silence())
    test = held_out_patients(cache.records(), bundle.split_seed)
    records = [record for record in usable if record.patient_key in test]
    leaked = {record.patient_key for record in records if bundle.has_seen(record.patient_key)}
    if leaked:
        raise GateError(
            "E_SPLIT_LEAK",
            f"the model has seen {len(leaked)} of the cache's test patients",
            hint="evaluate its run folder instead: it knows its own test patients",
        )
    subject: Subject = scores.of_model(
        model, name=path.name, folder=path.parent / path.stem, records=records, label_set=label_set
    )
    return subject


def limit_of(subject: Subject, limits: Mapping[str, float | None]) -> float | None:
    """The least mean that is asked for.

    Args:
        subject: What is scored.
        limits: Limits by the name of a figure; that of `OWN_FIGURE` holds for every task.

    Raises:
        UsageError: `E_USAGE`, a limit for a figure that this kind of task does not have.
    """
    for name, limit in limits.items():
        if limit is not None and name not in (subject.figure.name, OWN_FIGURE):
            hint = f"its figure is the {subject.figure.title}"
            raise UsageError("E_USAGE", f"{subject.task} has no {figures()[name].title}", hint=hint)
    own, of_figure = limits[OWN_FIGURE], limits.get(subject.figure.name)
    return own if of_figure is None else of_figure


def require_mean(figure: FigureOfMerit, mean: float, limit: float | None) -> None:
    """Refuse results that are below a limit.

    Raises:
        GateError: Refusal with the code of the figure.
    """
    if limit is not None and not mean >= limit:
        raise GateError(figure.gate, f"mean {figure.title} {mean:.4f} is below {limit:g}")
