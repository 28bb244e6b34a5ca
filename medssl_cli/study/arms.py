"""The arms of a study: which weights each begins with, and what of the recipe is its own."""

import copy
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import UsageError
from medssl_cli.recipe import TaskRecipe, apply_override, validate_recipe

SCRATCH: Final = "scratch"
"""The arm that every study has: the recipe as it is, from scratch."""
SEED_FIELD: Final = "{seed}"
NOTHING: Final = "none"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,31}")
EXAMPLE: Final = "--arm 'bcp: unlabelled.method=bcp' or --arm 'both: init=runs/position-{seed} unlabelled.method=bcp'"


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        name: Name in tables and names of folders.
        init: Run folder of a pre-training, in which `{seed}` stands for its seed; None begins from scratch.
        overrides: What its recipe has instead of the others', as for `--set`.
    """

    name: str
    init: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def has_seeds(self) -> bool:
        """Whether every seed has a pre-training of its own."""
        return self.init is not None and SEED_FIELD in self.init

    def init_of(self, seed: int | None) -> Path | None:
        """Where its weights come from."""
        return None if self.init is None else Path(self.init.replace(SEED_FIELD, str(seed)))

    def recipe(self, document: Mapping[str, Any], *, steps: int | None, source: str) -> TaskRecipe:
        """Its recipe.

        Args:
            document: Document of the recipe that all arms share, not validated.
            steps: Instead of the recipe's.
            source: Name of the recipe's file.

        Raises:
            UsageError: `E_RECIPE`.
        """
        own = copy.deepcopy(dict(document))
        for override in self.overrides:
            apply_override(own, override)
        if steps is not None:
            own["steps"] = steps
        recipe = validate_recipe(own, source=f"{source}, arm {self.name}")
        if not isinstance(recipe, TaskRecipe):
            raise UsageError("E_RECIPE", f"{source} is a pre-training recipe", hint="name a task recipe")
        return recipe


def arms_of(inits: Sequence[str], described: Sequence[str]) -> tuple[Arm, ...]:
    """All arms of a study, from scratch first.

    Args:
        inits: Run folders, several with commas between them; `none` is the arm from scratch.
        described: Arms with a recipe of their own; see `parse_arm`.

    Raises:
        UsageError: `E_USAGE`, there is no arm beside the one from scratch, or two have the same name.
    """
    known = [init for init in split_inits(inits) if init != NOTHING]
    arms = [Arm(name, init) for name, init in arm_names(known).items()] + [parse_arm(text) for text in described]
    names = [arm.name for arm in arms]
    if not arms:
        raise UsageError("E_USAGE", "there is nothing to compare with scratch", hint="add --init RUN or --arm")
    if len(set(names)) < len(names) or SCRATCH in names:
        raise UsageError("E_USAGE", "every arm needs a name of its own", hint="rename one of them; scratch is taken")
    return Arm(SCRATCH), *arms


def parse_arm(text: str) -> Arm:
    """An arm from `NAME: [init=RUN] [KEY=VALUE ...]`.

    Raises:
        UsageError: `E_USAGE`.
    """
    name, colon, rest = text.partition(":")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UsageError("E_USAGE", f"--arm {text!r}: {str(error).lower()}", hint=EXAMPLE) from error
    name = name.strip()
    if not colon or not words or not NAME.fullmatch(name) or not all("=" in word for word in words):
        raise UsageError("E_USAGE", f"--arm {text!r} is not NAME: KEY=VALUE", hint=EXAMPLE)
    inits = [word.removeprefix("init=") for word in words if word.startswith("init=")]
    if len(inits) > 1:
        raise UsageError("E_USAGE", f"--arm {name} has two init=", hint="give one of them")
    overrides = tuple(word for word in words if not word.startswith("init="))
    return Arm(name, next((init for init in inits if init != NOTHING), None), overrides)


def split_inits(inits: Sequence[str]) -> list[str]:
    """Run folders of options that may hold several, with commas between them."""
    return [part.strip() for init in inits for part in init.split(",")]


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
