"""What a task learns from and is scored by, one kind of labels per file: which images, which batches, which figure.

A task names its kind (`SUPERVISION`); the loop of `engine.finetune` and `medssl evaluate` are the same for all.
"""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medssl_cli import plugins
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.splits import Split
from medssl_cli.cache.store import Cache
from medssl_cli.engine.build import task_options
from medssl_cli.engine.predict import Answer
from medssl_cli.engine.results import Subject
from medssl_cli.engine.talk import Talk
from medssl_cli.recipe import TaskRecipe


@dataclass(frozen=True)
class Validation:
    """How a network did on the validation images.

    Args:
        score: The figure that chooses the best weights; NaN if the images cannot tell good from bad.
        by_class: The same for each class; NaN where it cannot be told.
    """

    score: float
    by_class: Mapping[str, float] = field(default_factory=dict)


Validate = Callable[[Answer], Validation]
"""A network to how it did."""


def mean_of_known(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


class SupervisionBase(ABC):
    """What every `Supervision` offers.

    Args:
        recipe: Of the task.
    """

    annotation: ClassVar[Literal["labels", "boxes", "findings"]]
    """Field of an item's record that holds what is learnt from."""
    is_exportable: ClassVar[bool] = False
    """Whether `medssl export` and `medssl infer` know what to do with the network's answers."""

    def __init__(self, recipe: TaskRecipe) -> None:
        self.recipe = recipe
        self.options: Any = task_options(recipe)

    @property
    def label_set(self) -> str:
        """Name of the labels in the cache."""
        name: str = self.options.label_set
        return name

    @property
    @abstractmethod
    def classes(self) -> dict[int, str]:
        """Names by value."""

    @property
    @abstractmethod
    def score(self) -> str:
        """Name of the validation's figure: a key of logs, such as `dice`; more is better."""

    @abstractmethod
    def usable(self, cache: Cache, talk: Talk) -> list[ItemRecord]:
        """Items with labels that the task can learn from or be tested on.

        Raises:
            NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`.
            UsageError: Labels and recipe do not go together.
        """

    @abstractmethod
    def check(self, cache: Cache, usable: Sequence[ItemRecord], split: Split, talk: Talk) -> dict[str, Any]:
        """Refuse what would fail later, and tell what the run's manifest should remember of the labels.

        Args:
            cache: Of the items.
            usable: All of the items.
            split: Who trains, validates and tests.
            talk: Told what is worth knowing.

        Raises:
            MedsslError: The labels cannot be used.
        """

    @abstractmethod
    def dataset(self, cache: Cache, records: Sequence[ItemRecord], talk: Talk) -> Dataset[Any]:
        """Samples by (step, slot) of the training items."""

    @abstractmethod
    def begin(self, task: nn.Module, dataset: Any) -> None:
        """Let network and labels know of each other before the first step."""

    @abstractmethod
    def loader(self, dataset: Any, *, first_step: int, num_steps: int) -> DataLoader[Any]:
        """Loader of the batches of these steps."""

    @abstractmethod
    def inputs(
        self, batch: Any, random: torch.Generator, to_device: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the network gets, augmented images first, and the targets, on the device.

        Args:
            batch: Of the loader.
            random: The only source of randomness.
            to_device: Brings a tensor to where the network is.
        """

    @abstractmethod
    def validator(self, cache: Cache, records: Sequence[ItemRecord]) -> Validate:
        """What scores a network on the validation items."""

    @abstractmethod
    def subject(
        self, network: nn.Module, device: str, *, name: str, folder: Path, records: Sequence[ItemRecord]
    ) -> Subject:
        """A trained network with the images to score it on.

        Args:
            network: The task, on the device.
            device: Where it computes.
            name: Of the run.
            folder: Of the run.
            records: The images.
        """


def supervision_of(recipe: TaskRecipe) -> SupervisionBase:
    """What the task of a recipe learns from.

    Raises:
        UsageError: `E_UNKNOWN_NAME` or `E_RECIPE`.
    """
    kind = plugins.load("task", recipe.task.name).SUPERVISION
    supervision: SupervisionBase = importlib.import_module(f"{__name__}.{kind}").Supervision(recipe)
    return supervision
