"""What `medssl evaluate` scores (a run or an exported model), and where its results go."""

from pathlib import Path

from medssl_cli.cache.splits import split_items
from medssl_cli.cache.store import Cache
from medssl_cli.cli.options import num_threads
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.engine.results import Results, Subject, dump
from medssl_cli.engine.subject import subject_of_run
from medssl_cli.engine.supervision.label_maps import SegmentationSubject
from medssl_cli.errors import GateError, UsageError
from medssl_cli.files import storage_errors, write_atomic
from medssl_cli.report.evaluation import Gallery
from medssl_cli.report.figures import FIGURES


def load_subject(path: Path, cache: Cache, *, split: str, device: str, label_set: str | None = None) -> Subject:
    """A run folder, or an exported model whose split is made anew from the cache.

    Args:
        path: Of the run or the model.
        cache: Holds the images.
        split: Which patients.
        device: Where to compute.
        label_set: Score by these labels instead of those that it was trained on, such as corrected ones.

    Raises:
        UsageError: `E_USAGE` for another split of an exported model, which remembers only whom it has seen.
        GateError: `E_SPLIT_LEAK` if the exported model has seen a patient of the cache's test split.
    """
    if path.is_dir():
        return subject_of_run(path, cache, split=split, device=device, label_set=label_set)
    if split != "test":
        raise UsageError("E_USAGE", f"an exported model has no {split} split", hint="evaluate its run folder instead")
    model = OnnxModel(path, device, threads=num_threads())
    bundle = model.bundle
    label_set = label_set or bundle.label_set
    found = cache.require_records(modality=bundle.modality, label_set=label_set)
    usable = [record for record in found if record.is_volume]
    records = list(split_items(cache.records(), usable, seed=bundle.split_seed, fold=bundle.fold).test)
    leaked = {record.patient_key for record in records if bundle.has_seen(record.patient_key)}
    if leaked:
        raise GateError(
            "E_SPLIT_LEAK",
            f"the model has seen {len(leaked)} of the cache's test patients",
            hint="evaluate its run folder instead: it knows its own test patients",
        )
    return SegmentationSubject(
        name=path.name,
        task=bundle.task,
        folder=path.parent / path.stem,
        segment=model.segment,
        records=records,
        label_set=label_set,
        classes=bundle.classes,
        wanted=bundle.wanted,
        nsd_tolerance_mm=bundle.nsd_tolerance_mm,
    )


def gallery_of(subject: Subject, *, limit: int) -> Gallery:
    """What keeps the pictures of the worst and best images.

    Args:
        subject: What is scored.
        limit: How many of each.
    """
    return Gallery(FIGURES[subject.figure].draw(subject.classes), limit=limit)


def write_results(folder: Path, results: Results, gallery: Gallery, *, figure: str) -> None:
    """`scores.json`, `scores.csv` and `page.html`.

    Raises:
        StorageError: `E_IO`.
    """
    document = results.document
    page = FIGURES[figure].page(document, gallery.pictures())
    with storage_errors("the results"):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "scores.json", dump(document).encode())
    write_atomic(folder / "scores.csv", results.csv.encode())
    write_atomic(folder / "page.html", page.encode())


def limit_of(subject: Subject, limits: dict[str, float | None]) -> float | None:
    """The least mean that is asked for.

    Args:
        subject: What is scored.
        limits: By the name of a figure.

    Raises:
        UsageError: `E_USAGE`, a limit for a figure that this kind of task does not have.
    """
    for name, limit in limits.items():
        if limit is not None and name != subject.figure:
            hint = f"its figure is the {FIGURES[subject.figure].title}"
            raise UsageError("E_USAGE", f"{subject.task} has no {FIGURES[name].title}", hint=hint)
    return limits[subject.figure]


def require_mean(figure: str, mean: float, limit: float | None) -> None:
    """Refuse results that are below a limit.

    Raises:
        GateError: `E_GATE_DICE`, `E_GATE_AUROC`, `E_GATE_AP`.
    """
    if limit is not None and not mean >= limit:
        raise GateError(FIGURES[figure].gate, f"mean {FIGURES[figure].title} {mean:.4f} is below {limit:g}")
