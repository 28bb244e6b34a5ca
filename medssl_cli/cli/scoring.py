"""What `medssl evaluate` scores (a run or an exported model), and where its results go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.engine.evaluate import Evaluation, Segment, dump, split_of_manifest, to_csv
from medssl_cli.errors import GateError, UsageError
from medssl_cli.files import storage_errors, write_atomic
from medssl_cli.report.evaluation import Gallery, evaluation_page


@dataclass(frozen=True)
class Subject:
    """A model to score and the images to score it on."""

    name: str
    task: str
    folder: Path
    segment: Segment
    records: list[ItemRecord]
    label_set: str
    classes: dict[int, str]
    nsd_tolerance_mm: float


def load_subject(path: Path, cache: Cache, *, split: str, device: str) -> Subject:
    """A run folder, or an exported model whose split is made anew from the cache.

    Raises:
        UsageError: `E_USAGE` for another split of an exported model, which remembers only whom it has seen.
        GateError: `E_SPLIT_LEAK` if the exported model has seen a patient of the cache's test split.
    """
    return _run(path, cache, split=split, device=device) if path.is_dir() else _model(path, cache, split, device)


def _run(path: Path, cache: Cache, *, split: str, device: str) -> Subject:
    from medssl_cli.engine.build import task_options
    from medssl_cli.engine.devices import resolve_device
    from medssl_cli.engine.finetune import load_finetuned, torch_predict
    from medssl_cli.imaging.segment import segment_volume

    run = load_finetuned(path)
    place = resolve_device(device)
    predict = torch_predict(run.network.to(place), place)
    recipe = run.recipe
    return Subject(
        name=path.name,
        task=recipe.name,
        folder=path,
        segment=lambda volume: segment_volume(
            predict,
            volume,
            preprocessing=recipe.data.preprocessing,
            tile=recipe.tile_size,
            overlap=recipe.inference.overlap,
            mirror_axes=recipe.inference.mirror_axes,
        ),
        records=split_of_manifest(cache, run.manifest, split),
        label_set=task_options(recipe).label_set,
        classes=run.classes,
        nsd_tolerance_mm=recipe.evaluation.nsd_tolerance_mm,
    )


def _model(path: Path, cache: Cache, split: str, device: str) -> Subject:
    from medssl_cli.cache.splits import split_items
    from medssl_cli.deploy.bundle import patient_digest
    from medssl_cli.deploy.runtime import OnnxModel, predict_volume

    if split != "test":
        raise UsageError("E_USAGE", f"an exported model has no {split} split", hint="evaluate its run folder instead")
    model = OnnxModel(path, device)
    bundle = model.bundle
    usable = cache.require_records(modality=bundle.modality, label_set=bundle.label_set)
    parts = split_items(cache.records(), usable, seed=bundle.split_seed, fold=bundle.fold)
    records = list(parts.test)
    seen = set(bundle.trained_on)
    leaked = {record.patient_key for record in records if patient_digest(record.patient_key) in seen}
    if leaked:
        raise GateError(
            "E_SPLIT_LEAK",
            f"the model has seen {len(leaked)} of the cache's test patients",
            hint="evaluate its run folder instead: it knows its own test patients",
        )
    return Subject(
        name=path.name,
        task=bundle.task,
        folder=path.parent / path.stem,
        segment=lambda volume: predict_volume(model, volume),
        records=records,
        label_set=bundle.label_set,
        classes=bundle.classes,
        nsd_tolerance_mm=bundle.nsd_tolerance_mm,
    )


def write_results(folder: Path, document: dict[str, Any], scores: Evaluation, gallery: Gallery) -> None:
    """`scores.json`, `scores.csv` and `page.html`.

    Raises:
        StorageError: `E_IO`.
    """
    with storage_errors("the results"):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "scores.json", dump(document).encode())
    write_atomic(folder / "scores.csv", to_csv(scores).encode())
    write_atomic(folder / "page.html", evaluation_page(document, gallery.pictures()).encode())
