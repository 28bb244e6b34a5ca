"""What a comparison at few labels is to compare: arms, numbers of patients, choices of them, seeds, lengths."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import storage_errors, write_atomic
from medssl_cli.base.talk import Talk
from medssl_cli.cache.named_splits import GivenSplit
from medssl_cli.cache.store import Cache
from medssl_cli.engine.planning import with_plan
from medssl_cli.plan.draft import filled
from medssl_cli.recipe import automatic_keys, raw_recipe, to_yaml
from medssl_cli.study.arms import Arm

SEED_STRIDE: Final = 1000
"""Trainings of one draw differ in their seeds by this, so that no two of a study are alike."""
PLANNED: Final = "planned.yaml"
"""In the folder of a study: the recipe with what was planned for it."""


@dataclass(frozen=True)
class LabelStudyPlan:
    """What is compared.

    Args:
        document: Recipe of the task, not validated; nothing in it is left to a plan.
        source: Name of its file.
        arms: Arms, the one from scratch first.
        patients: Numbers of labelled patients.
        num_seeds: Seeds of the pre-trainings; without `num_draws` each has other labelled patients too.
        num_draws: Choices of the labelled patients, each of which meets each seed; arms whose weights have no seeds are
            trained once in each.
        steps: Lengths of the trainings; none for that of the recipe.
        split: Files that say who tests, instead of the rule.
    """

    document: Mapping[str, Any]
    source: str
    arms: tuple[Arm, ...]
    patients: tuple[int, ...]
    num_seeds: int
    num_draws: int | None = None
    steps: tuple[int, ...] = ()
    split: GivenSplit | None = None

    def cells(self) -> Iterator[tuple[Arm, "Cell"]]:
        """All trainings: whatever is stopped early has something of every arm."""
        draws: Sequence[int | None] = (None,) if self.num_draws is None else range(self.num_draws)
        lengths: Sequence[int | None] = sorted(set(self.steps)) if self.steps else (None,)
        for draw in draws:
            for seed in range(self.num_seeds):
                for number in sorted(set(self.patients)):
                    for steps in lengths:
                        for arm in self.arms:
                            if draw is None or arm.has_seeds:
                                yield arm, Cell(arm.name, number, seed, draw, steps)
                            elif seed == 0:
                                yield arm, Cell(arm.name, number, None, draw, steps)


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of a plan.

    Args:
        arm: Name of its arm.
        patients: Labelled patients.
        seed: Seed of its pre-training; None where it has none of its own.
        draw: Which choice of the labelled patients; None for that of the seed.
        steps: Where the plan has several lengths.
    """

    arm: str
    patients: int
    seed: int | None = None
    draw: int | None = None
    steps: int | None = None

    @property
    def row(self) -> int:
        """Which choice of the labelled patients it has learnt from."""
        return (self.seed or 0) if self.draw is None else self.draw

    @property
    def training_seed(self) -> int:
        """Seed of its recipe."""
        return self.row if self.draw is None else self.row + SEED_STRIDE * (self.seed or 0)

    @property
    def name(self) -> str:
        """Name of its run folder."""
        parts = {"draw": self.draw, "seed": self.seed, "steps": self.steps}
        return "-".join((self.arm, str(self.patients), *(f"{k}{v}" for k, v in parts.items() if v is not None)))


def with_planned_values(plan: LabelStudyPlan, cache: Cache, folder: Path, *, device: str, talk: Talk) -> LabelStudyPlan:
    """A plan whose recipe leaves nothing to be planned: planned once, and kept for all trainings and later calls.

    Args:
        plan: What is compared.
        cache: Holds the labelled images.
        folder: Folder of the study.
        device: Device of the trainings.
        talk: Told what was planned.

    Raises:
        MedsslError: See `engine.planning.plan_task`.
    """
    document = dict(plan.document)
    if plan.steps:
        document["steps"] = max(plan.steps)
    if not automatic_keys(document):
        return replace(plan, document=document)
    path = folder / PLANNED
    if path.is_file():
        return replace(plan, document=filled(document, raw_recipe(path)))
    planned = with_plan(document, cache, folder, device=device, talk=talk, minutes=None, given=plan.split)
    with storage_errors("the plan"):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_yaml(planned).encode())
    return replace(plan, document=planned)


def parse_numbers(text: str, option: str = "--patients", example: str = "5,10,20,40") -> tuple[int, ...]:
    """Whole numbers from "5,10,20".

    Raises:
        UsageError: `E_USAGE`.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError("E_USAGE", f"{option} {text!r} is not a list of numbers", hint=f"for example {example}")
    return tuple(int(part) for part in parts)
