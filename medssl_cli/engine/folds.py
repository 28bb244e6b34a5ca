"""Cross-validation: one fine-tuning for each fold, each a run of its own, side by side in one folder.

The folds share their test patients, whom none of them sees, and every other patient validates in one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medssl_cli.base.errors import UsageError
from medssl_cli.base.signals import StopRequest
from medssl_cli.base.talk import Silence, Talk
from medssl_cli.cache.splits import same_people
from medssl_cli.cache.store import Cache
from medssl_cli.engine.choices import Choices, split_of
from medssl_cli.engine.finetune import FinetuneSummary
from medssl_cli.engine.fold_runs import fold_folder, open_folds
from medssl_cli.engine.live_page import Outlets
from medssl_cli.engine.runs import is_finished_for
from medssl_cli.engine.trainings import Places, SeparateTraining, train_all
from medssl_cli.recipe import TaskRecipe
from medssl_cli.report.run import finetuning_page
from medssl_cli.tasks import supervision_of


@dataclass(frozen=True)
class FoldTraining(SeparateTraining[FinetuneSummary]):
    """See `SeparateTraining`: the training of one fold."""

    @property
    def is_done(self) -> bool:
        """See `SeparateTraining.is_done`."""
        return is_finished_for(self.root, steps=self.recipe.steps, max_minutes=self.choices.max_minutes)

    def train(self, talk: Talk, stop: StopRequest) -> FinetuneSummary:
        """See `SeparateTraining.train`."""
        return self.finetune(talk, Outlets(finetuning_page))

    def told(self, result: FinetuneSummary) -> str:
        """See `SeparateTraining.told`."""
        best = "unknown" if result.best_score is None else f"{result.best_score:.4f}"
        return f"is done: best validation {result.score} {best}"


def finetune_folds(
    recipe: TaskRecipe,
    cache: Cache,
    parent: Path,
    choices: Choices,
    folds: Sequence[int],
    *,
    device: str,
    talk: Talk,
    init: Path | None = None,
    places: Places | None = None,
) -> dict[int, FinetuneSummary]:
    """Train folds, or go on where an earlier call stopped.

    Args:
        recipe: How to train.
        cache: Holds the images.
        parent: Folder of the folds.
        choices: The same for all of them.
        folds: Which ones.
        device: Device to train on; several at once are dealt to several CUDA devices.
        talk: Told how it goes.
        init: Where the weights come from; None for from scratch.
        places: Where they are trained; one after another here unless given.

    Raises:
        UsageError: Fault of a recipe, device, weights or run folder; `E_SPLIT_PATIENT`, a test patient of one fold is
            learnt from in another.
        MedsslError: See `train_all`.
        InterruptedCleanlyError: A signal; the same call goes on.
    """
    places = places or Places()
    places.check(device)
    choices = replace(choices, is_cross_validation=True, encoder=None)
    _require_held_out(recipe, cache, choices, folds)
    open_folds(parent, choices.num_folds)
    trainings = [
        FoldTraining(
            f"fold {fold}",
            recipe,
            cache.root,
            fold_folder(parent, fold),
            replace(choices, fold=fold),
            init,
            device,
        )
        for fold in folds
    ]
    return dict(zip(folds, train_all(trainings, places=places, talk=talk), strict=True))


def _require_held_out(recipe: TaskRecipe, cache: Cache, choices: Choices, folds: Sequence[int]) -> None:
    """Refuse folds one of which learns from, or chooses its weights by, a test patient of another."""
    usable = supervision_of(recipe).usable(cache, Silence())
    people = same_people(cache.records())
    test: set[str] = set()
    learnt: set[str] = set()
    for fold in folds:
        split = split_of(recipe, cache, usable, replace(choices, fold=fold), Silence())
        test |= {people[record.patient_key] for record in split.test}
        learnt |= {people[record.patient_key] for record in (*split.train, *split.val)}
    if test & learnt:
        raise UsageError(
            "E_SPLIT_PATIENT",
            f"{len(test & learnt)} test patients of one fold are learnt from in another",
            hint="such folds have no test patients in common: train them one by one with medssl finetune --fold",
        )
