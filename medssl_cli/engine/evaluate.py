"""What an evaluation of a run scores: its best network, on a split of its own manifest; of folds all of their networks.

Pooled over folds, every patient is scored by the one network that has not learnt from them. On test patients, whom none
of the folds has seen, the mean of all networks is scored.
"""

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.engine.devices import resolve_device
from medssl_cli.engine.ensemble import ensemble_of, load_folds, weights_digest
from medssl_cli.engine.finetuned import FineTunedRun, load_finetuned
from medssl_cli.engine.predict import torch_predict
from medssl_cli.recipe import Named, TaskRecipe, dump_recipe, validate_recipe
from medssl_cli.tasks import Subject, SupervisionBase, supervision_of


@dataclass(frozen=True)
class Terms:
    """How a run is scored, where that is otherwise than its recipe says.

    Args:
        label_set: Score by these labels.
        mirror_axes: Average over the flips along these axes.
    """

    label_set: str | None = None
    mirror_axes: tuple[int, ...] | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """For the name of a folder of results; none if nothing is otherwise."""
        axes = None if self.mirror_axes is None else "".join(map(str, self.mirror_axes)) or "none"
        return tuple(word for word in (self.label_set, axes and f"mirror{axes}") if word is not None)

    def applied(self, recipe: TaskRecipe) -> TaskRecipe:
        """A recipe on these terms.

        Raises:
            UsageError: See `mirrored`.
        """
        recipe = recipe if self.label_set is None else with_label_set(recipe, self.label_set)
        return recipe if self.mirror_axes is None else mirrored(recipe, self.mirror_axes)


AS_TRAINED: Final = Terms()


def subject_of_run(path: Path, cache: Cache, *, split: str, device: str, terms: Terms = AS_TRAINED) -> Subject:
    """The best network of a run, on a split of the run's own manifest.

    Args:
        path: Path of the run.
        cache: Holds the images.
        split: Which patients.
        device: Where to compute.
        terms: Where they are not the recipe's.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_DEVICE`.
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`.
    """
    return _subject(load_finetuned(path), cache, split, resolve_device(device), terms)


def subject_of_folds(path: Path, cache: Cache, *, split: str, device: str, terms: Terms = AS_TRAINED) -> Subject:
    """The networks of several folds: on validation patients each on its own, on test patients their mean.

    An image that validates in several folds is scored by the first of them. For arguments see `subject_of_run`.

    Raises:
        UsageError: `E_NO_RUN`, `E_RUN_UNFINISHED`, `E_DEVICE`; `E_USAGE`, another split; `E_TASK_EXPORT`, answers of
            the task have no mean.
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`, `E_TOO_FEW_PATIENTS`.
    """
    place = resolve_device(device)
    members = load_folds(path)
    if split == "test":
        return _subject(ensemble_of(path, members), cache, split, place, terms)
    if split != "val":
        raise UsageError("E_USAGE", f"folds have no {split} split in common", hint="take val or test, or one fold")
    scored: set[str] = set()
    subjects = []
    for member in members:
        subjects.append(_subject(member, cache, split, place, terms, without=frozenset(scored)))
        scored |= {record.item_id for record in subjects[-1].records}
    first, *others = [subject for subject in subjects if subject.records]
    return replace(first.pooled(others), name=path.name, folder=path, weights_sha256=weights_digest(members))


def _subject(
    run: FineTunedRun,
    cache: Cache,
    split: str,
    place: str,
    terms: Terms,
    *,
    without: Container[str] = (),
) -> Subject:
    """A network on a split of its run's manifest, some items left out."""
    supervision = supervision_of(terms.applied(run.recipe))
    records = [each for each in labelled_split(cache, run.manifest, split, supervision) if each.item_id not in without]
    network, root = run.network.to(place), run.root
    subject = supervision.subject(network, torch_predict(network, place), name=root.name, folder=root, records=records)
    return replace(subject, weights_sha256=run.weights_sha256)


def labelled_split(
    cache: Cache, manifest: dict[str, Any], split: str, supervision: SupervisionBase
) -> list[ItemRecord]:
    """The cached items of a run's split, all of which have the labels that a task asks for.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`; `E_TOO_FEW_PATIENTS`, the run has nobody in the split.
    """
    if not manifest["splits"].get(split):
        raise NothingUsableError(
            "E_TOO_FEW_PATIENTS",
            f"nobody is in the {split} split of the run",
            hint="its split file names none: medssl evaluate --split val scores those who validate",
        )
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


def mirrored(recipe: TaskRecipe, axes: tuple[int, ...]) -> TaskRecipe:
    """A recipe whose answers are averaged over the flips along axes, 0 for x.

    Raises:
        UsageError: `E_USAGE`, the task has no such answers; `E_RECIPE`, the axes were never flipped in training.
    """
    if not supervision_of(recipe).is_mirrored:
        raise UsageError("E_USAGE", f"answers of {recipe.task.name} are not averaged over flips", hint="leave it out")
    document = dump_recipe(recipe)
    document["inference"]["mirror_axes"] = list(axes)
    changed = validate_recipe(document, source=recipe.name)
    assert isinstance(changed, TaskRecipe)
    return changed


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
