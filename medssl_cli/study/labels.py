"""How many labelled patients does a task need, from scratch, from pre-trained encoders, with unlabelled images?

For every arm, number of patients, schedule, draw of the patients and seed: one fine-tuning and one evaluation, each in
a run folder of its own, which is skipped when finished and resumed when not. But for what an arm has of its own,
everything is the same in all of them: the network, the labelled patients (of one draw, the few are among the many), the
test patients. The weights that are tested are those of the last step, so that no label beyond the training patients
has a say.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.base.talk import Silence, Talk
from medssl_cli.cache.named_splits import held_out_by_names
from medssl_cli.cache.splits import held_out_patients
from medssl_cli.cache.store import Cache
from medssl_cli.engine.choices import Choices, split_of
from medssl_cli.engine.cost import Cost, cost_of
from medssl_cli.engine.trainings import Places, train_all
from medssl_cli.engine.weights import Encoder, load_encoder
from medssl_cli.recipe import TaskRecipe
from medssl_cli.study.arms import Arm
from medssl_cli.study.label_plan import Cell, LabelStudyPlan
from medssl_cli.study.trainings import StudyTraining, read_scores
from medssl_cli.tasks import load_part, supervision_of

Encoders = Mapping[tuple[str, int | None], Encoder]
"""Weights of an arm and a seed."""


@dataclass(frozen=True)
class Scored:
    """A finished cell and the document of its evaluation.

    Args:
        cell: What was trained.
        scores: Document of its evaluation.
        cost: Cost of its training; None where nobody knows.
        pretraining_cost: Cost of the weights it began with.
    """

    cell: Cell
    scores: dict[str, Any]
    cost: Cost | None = None
    pretraining_cost: Cost | None = None


def compare_labels(
    plan: LabelStudyPlan, cache: Cache, folder: Path, *, device: str, talk: Talk, places: Places | None = None
) -> list[Scored]:
    """Train and test every cell that is not done yet.

    Args:
        plan: What is compared.
        cache: Holds the labelled images.
        folder: Folder of the run folders.
        device: Device to train on.
        talk: Progress.
        places: Where the trainings are done; one after another here unless given.

    Raises:
        UsageError: Fault of a recipe, device or run folder; `E_WEIGHTS_MISMATCH` if the encoders are of different
            networks.
        NothingUsableError: `E_TOO_FEW_PATIENTS`, before anything is trained.
        GateError: `E_SPLIT_LEAK` if a pre-training has seen a test patient, or labels of anyone in the cache.
        MedsslError: See `train_all`.
        InterruptedCleanlyError: A signal; the same call goes on.
    """
    places = places or Places()
    places.check(device)
    cells = list(plan.cells())
    inits = {(arm.name, cell.seed): arm.init_of(cell.seed) for arm, cell in cells}
    encoders = {key: load_encoder(path) for key, path in inits.items() if path is not None}
    recipes = _recipes(plan, list(encoders.values()))
    first = next(iter(recipes.values()))
    if not hasattr(load_part(first.task.name, "scores"), "paired_figures"):
        raise UsageError("E_USAGE", f"scores of {first.task.name} are not compared patient by patient")
    for recipe in recipes.values():
        _require_unseen(plan, cache, recipe, encoders)
    trainings = [
        StudyTraining(
            cell.name,
            recipes[cell.arm, cell.steps].model_copy(update={"seed": cell.training_seed}),
            cache.root,
            folder / cell.name,
            Choices(patients=cell.patients, draw=cell.row, split=plan.split),
            inits[arm.name, cell.seed],
            device,
        )
        for arm, cell in cells
    ]
    _require_patients([arm for arm, _ in cells], trainings, cache)
    train_all(trainings, places=places, talk=talk)
    return [
        Scored(
            cell,
            read_scores(training.root),
            cost_of(training.root),
            None if training.init is None else cost_of(training.init),
        )
        for (_, cell), training in zip(cells, trainings, strict=True)
    ]


def _recipes(plan: LabelStudyPlan, encoders: Sequence[Encoder]) -> dict[tuple[str, int | None], TaskRecipe]:
    """The recipe of every arm and length: one network for all, validated once, at the end, so the last are the best."""
    networks = {json.dumps(encoder.backbone.model_dump(), sort_keys=True) for encoder in encoders}
    if len(networks) > 1:
        raise UsageError(
            "E_WEIGHTS_MISMATCH",
            f"the encoders are of {len(networks)} different networks: they cannot be compared with one from scratch",
            hint="compare them one after the other, each with an --out of its own",
        )
    found = {}
    for arm in plan.arms:
        for steps in plan.steps or (None,):
            recipe = arm.recipe(plan.document, steps=steps, source=plan.source)
            backbone = encoders[0].backbone_for(recipe.backbone) if encoders else recipe.backbone
            found[arm.name, steps] = recipe.model_copy(update={"backbone": backbone, "validate_every": recipe.steps})
    kinds = sorted({recipe.task.name for recipe in found.values()})
    if len(kinds) > 1:
        raise UsageError("E_USAGE", f"arms of {' and '.join(kinds)} have no scores in common")
    return found


def _require_patients(arms: Sequence[Arm], trainings: Sequence[StudyTraining], cache: Cache) -> None:
    """Refuse numbers of patients that are not there before the first training, not when their turn comes."""
    pairs = [pair for pair in zip(arms, trainings, strict=True) if not pair[1].is_done]
    ascending = sorted(pairs, key=lambda pair: pair[1].choices.patients or 0)
    most = {arm.name: training for arm, training in ascending}
    for training in most.values():
        usable = supervision_of(training.recipe).usable(cache, Silence())
        split_of(training.recipe, cache, usable, training.choices, Silence())


def _require_unseen(plan: LabelStudyPlan, cache: Cache, recipe: TaskRecipe, encoders: Encoders) -> None:
    records = cache.records()
    known = {patient for encoder in encoders.values() for patient in encoder.labelled_patients}
    labelled = known & {record.patient_key for record in records}
    if labelled:
        raise GateError(
            "E_SPLIT_LEAK",
            f"a pre-training has learnt from labels of {len(labelled)} patients of this cache",
            hint="the comparison counts labelled patients: pre-train without labels, or with labels of another cache",
        )
    held_out = held_out_patients(records, recipe.split_seed)
    hint = "pre-train again on this cache: its labelled test patients are left out now"
    if plan.split is not None:
        held_out = held_out_by_names(records, plan.split, cache.pseudonyms)
        hint = "pre-train again with the same files: medssl pretrain --split-file"
    seen = held_out & frozenset().union(*(encoder.patients or frozenset() for encoder in encoders.values()))
    if seen:
        raise GateError("E_SPLIT_LEAK", f"a pre-training has seen images of {len(seen)} test patients", hint=hint)
