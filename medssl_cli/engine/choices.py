"""What a user decides beside the recipe of a fine-tuning, and who trains, validates and tests by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.named_splits import GivenSplit, split_by_names
from medssl_cli.cache.splits import NUM_FOLDS, Split, shuffled, split_items
from medssl_cli.cache.store import Cache
from medssl_cli.engine.weights import Encoder
from medssl_cli.recipe import TaskRecipe


@dataclass(frozen=True)
class Choices:
    """What a user decides beside the recipe.

    Args:
        fold: Which part of the training patients validates.
        fraction: Share of the training patients to use.
        patients: Number of training patients to use, instead of a share.
        draw: Which random order they are taken in; of one draw, the few are among the many.
        max_minutes: Time limit instead of the recipe's steps.
        encoder: Pre-trained weights, or None to start from scratch.
        num_folds: Parts of equal size that the training patients make.
        split: Files that say who trains, validates and tests, instead of the rule.
        is_cross_validation: All patients of the fold are held out, so that all folds together score every patient;
            the recipe's `max_validation_patients` of them choose the best weights.
    """

    fold: int = 0
    fraction: float = 1.0
    patients: int | None = None
    draw: int = 0
    max_minutes: float | None = None
    encoder: Encoder | None = None
    num_folds: int = NUM_FOLDS
    split: GivenSplit | None = None
    is_cross_validation: bool = False

    def document(self, cache: Cache) -> dict[str, Any]:
        """For the manifest; what came with a later version is named only where it is used, so that old runs go on."""
        later = {
            "patients": self.patients,
            "draw": self.draw or None,
            "num_folds": None if self.num_folds == NUM_FOLDS else self.num_folds,
            "split_file": None if self.split is None else self.split.document(cache.pseudonyms),
            "is_cross_validation": self.is_cross_validation or None,
        }
        return {
            "fold": self.fold,
            "fraction": self.fraction,
            **{name: value for name, value in later.items() if value is not None},
            "max_minutes": self.max_minutes,
            "encoder_sha256": None if self.encoder is None else self.encoder.sha256,
            **({} if self.encoder is None else {"init": self.encoder.origin()}),
        }


def split_of(recipe: TaskRecipe, cache: Cache, usable: Sequence[ItemRecord], choices: Choices, talk: Talk) -> Split:
    """Who trains, validates and tests: by the files that are given, else by the rule.

    Raises:
        UsageError: `E_SPLIT_FILE`, `E_SPLIT_NAMES`, `E_SPLIT_PATIENT`.
        NothingUsableError: `E_TOO_FEW_PATIENTS`.
    """
    records = cache.records()
    if choices.split is None:
        return split_items(
            records,
            usable,
            seed=recipe.split_seed,
            fold=choices.fold,
            fraction=choices.fraction,
            num_val=None if choices.is_cross_validation else recipe.max_validation_patients,
            num_train=choices.patients,
            draw=choices.draw,
            num_folds=choices.num_folds,
        )
    split, said = split_by_names(
        records,
        usable,
        choices.split,
        cache.pseudonyms,
        seed=recipe.split_seed,
        fold=choices.fold,
        num_folds=choices.num_folds,
        fraction=choices.fraction,
        num_train=choices.patients,
        draw=choices.draw,
    )
    if said:
        talk.note(said)
    return split


def validated_items(split: Split, recipe: TaskRecipe, choices: Choices) -> Sequence[ItemRecord]:
    """The validation items that choose the best weights: of `max_validation_patients` patients, where that is set."""
    if choices.split is None and not choices.is_cross_validation:
        return split.val
    patients = shuffled(sorted({record.patient_key for record in split.val}), recipe.split_seed)
    kept = set(patients[: recipe.max_validation_patients])
    return [record for record in split.val if record.patient_key in kept]
