"""Which images take part in a fine-tuning without their labels, and batches of them beside the labelled ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from medssl_cli.base.errors import NothingUsableError
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import Entry, ItemRecord, entry_of
from medssl_cli.cache.named_splits import NamedItems
from medssl_cli.cache.splits import Split, held_out_patients, same_people
from medssl_cli.cache.store import Cache
from medssl_cli.data.examples import Example
from medssl_cli.engine.choices import Choices
from medssl_cli.engine.randomness import Purpose, stream_seed
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks import SupervisionBase
from medssl_cli.unlabelled import learning_unlabelled


def unlabelled_examples(
    recipe: TaskRecipe, cache: Cache, split: Split, choices: Choices, supervision: SupervisionBase, talk: Talk
) -> list[Example]:
    """All examples that a task could see, without those it learns labels of and those of held-out patients.

    Nobody who validates or tests takes part, by the split of this run and by the rule for all tasks, nor whom a split
    file names for that and of whom the task has no labels. Other images of patients with labels do.

    Args:
        recipe: Recipe of the task.
        cache: Where the images are.
        split: Who trains, validates and tests.
        choices: How they were split.
        supervision: What the task learns from.
        talk: Told how many there are.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, nothing is left.
    """
    found = learning_unlabelled(supervision).unlabelled(cache, talk)
    people = same_people(cache.entries())
    held_out = {record.patient_key for record in (*split.val, *split.test)} | _named_or_by_rule(recipe, cache, choices)
    persons = {people[patient] for patient in held_out}
    learnt = {record.item_id for record in split.train}
    allowed = [example for example in found if people[example.patient_key] not in persons]
    kept = [example for example in allowed if not learnt & {item.item_id for item in example.items}]
    if not kept:
        raise NothingUsableError(
            "E_CACHE_EMPTY",
            f"none of {len(found)} images is left to take part without labels: {len(found) - len(allowed)} are of "
            f"patients who validate or test, {len(allowed)} have labels that are learnt",
            hint="ingest unlabelled images into the same cache, or learn fewer labels with medssl finetune --patients",
        )
    patients = len({example.patient_key for example in kept})
    talk.note(
        f"{len(kept)} images of {patients} patients take part without labels "
        f"({len(found) - len(allowed)} of validation and test patients left out)"
    )
    return kept


def _named_or_by_rule(recipe: TaskRecipe, cache: Cache, choices: Choices) -> set[str]:
    """Patients whom a split file names to validate or test, or else every test patient of the cache."""
    if choices.split is None:
        return held_out_patients(cache.entries(), recipe.split_seed)
    records = cache.records()
    parts = NamedItems(records, cache.pseudonyms).match(choices.split.file.parts(choices.fold)).parts
    items = parts.get("val", set()) | parts.get("test", set())
    return {record.patient_key for record in records if record.item_id in items}


def without_labels(found: Sequence[Example]) -> list[Entry]:
    """For a manifest: the image that stands for each example, without its labels, which nobody reads."""
    firsts = [example.first for example in found]
    entries = [entry_of(first) if isinstance(first, ItemRecord) else first for first in firsts]
    return [entry._replace(label_digests={}, annotation_sets=()) for entry in entries]


def unlabelled_dataset(
    recipe: TaskRecipe,
    cache: Cache,
    found: Sequence[Example],
    supervision: SupervisionBase,
    talk: Talk,
    *,
    beside: Any,
) -> Any:
    """Samples of unlabelled examples, in an order of their own, to be shown beside a data set of labelled ones.

    None where the recipe has none take part.
    """
    if recipe.unlabelled is None:
        return None
    batch_size = recipe.unlabelled.batch_size or recipe.data.batch_size
    seed = stream_seed(recipe.seed, Purpose.UNLABELLED)
    learning = learning_unlabelled(supervision)
    return learning.unlabelled_dataset(cache, found, talk, beside=beside, batch_size=batch_size, seed=seed)


def without_second_average(recipe: TaskRecipe, talk: Talk) -> TaskRecipe:
    """The recipe without `ema_decay` where a teacher is kept: that is an average of the weights already."""
    if recipe.unlabelled is None or recipe.unlabelled.keep != "teacher" or not recipe.ema_decay:
        return recipe
    talk.note("ema_decay is left out: the teacher is an average of the weights already (unlabelled.momentum)")
    return recipe.model_copy(update={"ema_decay": 0.0})


@dataclass(frozen=True)
class BothBatches:
    """What a micro-step shows.

    Args:
        labelled: Images with targets.
        unlabelled: Images without.
    """

    labelled: Any
    unlabelled: Any

    @property
    def item_ids(self) -> list[str]:
        """Where the unlabelled images came from."""
        found: list[str] = self.unlabelled.item_ids
        return found


class BothLoaders:
    """Labelled and unlabelled batches side by side.

    Args:
        labelled: One batch per micro-step.
        unlabelled: As many.
    """

    def __init__(self, labelled: DataLoader[Any], unlabelled: DataLoader[Any]) -> None:
        self._labelled, self._unlabelled = labelled, unlabelled

    def __iter__(self) -> Iterator[BothBatches]:
        return map(BothBatches, iter(self._labelled), iter(self._unlabelled))
