"""How many labelled patients does a task need, from scratch and from pre-trained encoders?

For every number of patients, seed and arm: one fine-tuning and one evaluation, each in a run folder of its own, which
is skipped when finished and resumed when not. Everything but the initial weights of the encoder is the same in all
arms: the network, the schedule, the labelled patients (of one seed, the few are among the many), the test patients. The
weights that are tested are those of the last step, so that no label beyond the training patients has a say.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medssl_cli.base import plugins
from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.base.files import storage_errors, write_atomic
from medssl_cli.base.plain_json import dump
from medssl_cli.base.signals import StopRequest, stop_on_signals
from medssl_cli.base.talk import Talk
from medssl_cli.cache.splits import held_out_patients
from medssl_cli.cache.store import Cache
from medssl_cli.engine.choices import Choices
from medssl_cli.engine.evaluate import subject_of_run
from medssl_cli.engine.finetune import finetune
from medssl_cli.engine.weights import Encoder, load_encoder
from medssl_cli.recipe import TaskRecipe

SCRATCH: Final = "scratch"
COMPARED: Final = ("Dice", "AUROC")
"""Figures of merit of which it is known how one patient compares with another."""
SEED_FIELD: Final = "{seed}"


@dataclass(frozen=True)
class LabelStudyPlan:
    """What is compared.

    Args:
        recipe: Recipe of the task.
        inits: Arm to run folder of its pre-training; `{seed}` in it stands for the seed.
        patients: Numbers of labelled patients.
        num_seeds: Each with other labelled patients, decoder, crops and augmentation.
    """

    recipe: TaskRecipe
    inits: Mapping[str, str]
    patients: Sequence[int]
    num_seeds: int


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of a plan."""

    arm: str
    patients: int
    seed: int

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.arm}-{self.patients}-seed{self.seed}"


@dataclass(frozen=True)
class Scored:
    """A finished cell and the document of its evaluation."""

    cell: Cell
    scores: dict[str, Any]


def arm_names(inits: Sequence[str]) -> dict[str, str]:
    """Arms named after the folders of their pre-trainings.

    Raises:
        UsageError: `E_USAGE` if two have the same name.
    """
    arms = {Path(init).name.replace(f"-{SEED_FIELD}", "").replace(SEED_FIELD, ""): init for init in inits}
    if len(arms) < len(inits) or SCRATCH in arms or "" in arms:
        raise UsageError(
            "E_USAGE", "every --init needs a folder name of its own", hint="rename one of the folders; scratch is taken"
        )
    return arms


def parse_numbers(text: str) -> tuple[int, ...]:
    """Numbers of patients from "5,10,20".

    Raises:
        UsageError: `E_USAGE`.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError("E_USAGE", f"--patients {text!r} is not a list of numbers", hint="for example 5,10,20,40")
    return tuple(int(part) for part in parts)


def compare_labels(plan: LabelStudyPlan, cache: Cache, folder: Path, *, device: str, talk: Talk) -> list[Scored]:
    """Train and test every cell that is not done yet.

    Args:
        plan: What is compared.
        cache: Holds the labelled images.
        folder: Folder of the run folders.
        device: To train on.
        talk: Progress.

    Raises:
        UsageError: Of a recipe, device or run folder; `E_WEIGHTS_MISMATCH` if the encoders are of different networks.
        GateError: `E_SPLIT_LEAK` if a pre-training has seen a test patient, or labels of anyone in the cache.
        InterruptedCleanlyError: A signal; the same call goes on.
    """
    if plugins.load("task", plan.recipe.task.name).FIGURE.title not in COMPARED:
        raise UsageError("E_USAGE", f"study labels compares {' and '.join(COMPARED)}, not {plan.recipe.task.name}")
    encoders = {(arm, seed): load_encoder(path) for arm, seed, path in _init_paths(plan)}
    recipe = _for_all_arms(plan.recipe, list(encoders.values()))
    _require_unseen(cache, recipe, list(encoders.values()))
    cells = [
        Cell(arm, number, seed)
        for seed in range(plan.num_seeds)
        for number in sorted(set(plan.patients))
        for arm in (SCRATCH, *plan.inits)
    ]
    scored = []
    with stop_on_signals() as stop:
        for done, cell in enumerate(cells):
            if stop.is_set:
                stop.raise_interrupted(f"stopped after {done} of {len(cells)} trainings")
            talk.note(f"training {done + 1} of {len(cells)}: {cell.arm}, {cell.patients} patients, seed {cell.seed}")
            root = folder / cell.name
            choices = Choices(patients=cell.patients, draw=cell.seed, encoder=encoders.get((cell.arm, cell.seed)))
            finetune(recipe.model_copy(update={"seed": cell.seed}), cache, root, choices, device=device, talk=talk)
            scored.append(Scored(cell, _scores(root, cache, device=device, talk=talk, stop=stop)))
    return scored


def _init_paths(plan: LabelStudyPlan) -> list[tuple[str, int, Path]]:
    return [
        (arm, seed, Path(init.replace(SEED_FIELD, str(seed))))
        for arm, init in plan.inits.items()
        for seed in range(plan.num_seeds)
    ]


def _for_all_arms(recipe: TaskRecipe, encoders: Sequence[Encoder]) -> TaskRecipe:
    """One network for all arms, validated once, at the end: the last weights are then the best ones."""
    networks = {json.dumps(encoder.backbone.model_dump(), sort_keys=True) for encoder in encoders}
    if len(networks) > 1:
        raise UsageError(
            "E_WEIGHTS_MISMATCH",
            f"the encoders are of {len(networks)} different networks: they cannot be compared with one from scratch",
            hint="compare them one after the other, each with an --out of its own",
        )
    return recipe.model_copy(update={"backbone": encoders[0].backbone, "validate_every": recipe.steps})


def _require_unseen(cache: Cache, recipe: TaskRecipe, encoders: Sequence[Encoder]) -> None:
    held_out = held_out_patients(cache.records(), recipe.split_seed)
    known = {patient for encoder in encoders for patient in encoder.labelled_patients}
    labelled = known & {record.patient_key for record in cache.records()}
    if labelled:
        raise GateError(
            "E_SPLIT_LEAK",
            f"a pre-training has learnt from labels of {len(labelled)} patients of this cache",
            hint="the comparison counts labelled patients: pre-train without labels, or with labels of another cache",
        )
    seen = held_out & frozenset().union(*(encoder.patients or frozenset() for encoder in encoders))
    if seen:
        raise GateError(
            "E_SPLIT_LEAK",
            f"a pre-training has seen images of {len(seen)} test patients",
            hint="pre-train again on this cache: its labelled test patients are left out now",
        )


def _scores(root: Path, cache: Cache, *, device: str, talk: Talk, stop: StopRequest) -> dict[str, Any]:
    """The evaluation of a finished run on its test patients, done once."""
    folder = root / "evaluation-test"
    path = folder / "scores.json"
    if not path.is_file():
        subject = subject_of_run(root, cache, split="test", device=device)

        def stop_between_cases(*_: object) -> None:
            if stop.is_set:
                stop.raise_interrupted("stopped in an evaluation")

        results = subject.score(cache, split="test", talk=talk, on_case=stop_between_cases)
        with storage_errors("the results"):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "scores.csv", results.csv.encode())
        write_atomic(path, dump(results.document).encode())
    scores: dict[str, Any] = json.loads(path.read_bytes())
    return scores
