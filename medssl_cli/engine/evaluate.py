"""What an evaluation of a run scores: its best network, on a split of its own manifest."""

from pathlib import Path
from typing import Any

from medssl_cli.base.errors import NothingUsableError
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.engine.devices import resolve_device
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.engine.predict import torch_predict
from medssl_cli.recipe import Named, TaskRecipe
from medssl_cli.tasks import Subject, SupervisionBase, supervision_of


def subject_of_run(path: Path, cache: Cache, *, split: str, device: str, label_set: str | None = None) -> Subject:
    """The best network of a run, on a split of the run's own manifest.

    Args:
        path: Of the run.
        cache: Holds the images.
        split: Which patients.
        device: Where to compute.
        label_set: Score by these labels instead of the recipe's.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_DEVICE`.
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`.
    """
    run = load_finetuned(path)
    place = resolve_device(device)
    recipe = run.recipe if label_set is None else with_label_set(run.recipe, label_set)
    supervision = supervision_of(recipe)
    records = labelled_split(cache, run.manifest, split, supervision)
    network = run.network.to(place)
    return supervision.subject(network, torch_predict(network, place), name=path.name, folder=path, records=records)


def labelled_split(
    cache: Cache, manifest: dict[str, Any], split: str, supervision: SupervisionBase
) -> list[ItemRecord]:
    """The cached items of a run's split, all of which have the labels that a task asks for.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`.
    """
    records = split_of_manifest(cache, manifest, split)
    lacking = [record for record in records if supervision.label_set not in getattr(record, supervision.annotation)]
    if lacking:
        raise NothingUsableError(
            "E_NO_LABELS",
            f"{len(lacking)} of the {len(records)} images of the {split} split have no {supervision.annotation} of the "
            f"set {supervision.label_set!r}",
            hint="label all of them in one set: medssl ingest --label-set NAME",
        )
    return records


def with_label_set(recipe: TaskRecipe, label_set: str) -> TaskRecipe:
    """A recipe that learns from, or is scored by, another set of labels."""
    task = Named.model_validate({**recipe.task.model_dump(), "label_set": label_set})
    return recipe.model_copy(update={"task": task})


def split_of_manifest(cache: Cache, manifest: dict[str, Any], split: str) -> list[ItemRecord]:
    """The cached items of a run's split, in the run's order.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY` if the cache lacks any of them.
    """
    records = {record.item_id: record for record in cache.records()}
    wanted = [entry["item"] for entry in manifest["splits"][split]]
    missing = [item for item in wanted if item not in records]
    if missing:
        raise NothingUsableError(
            "E_CACHE_EMPTY",
            f"{len(missing)} of {len(wanted)} items of the run's {split} split are not in this cache",
            hint="name the cache that the run was trained on with --cache",
        )
    return [records[item] for item in wanted]
