"""What a task offers in its `plan.py` to be planned for: `PLANNER`, a `TaskPlanner`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.plan.common import PlanBudget
from medssl_cli.plan.draft import Draft, Pins
from medssl_cli.plan.fingerprint import Fingerprint


class TaskPlanner(ABC):
    """From labelled images to drafts of a recipe."""

    annotation: ClassVar[Literal["labels", "boxes", "findings"]]
    """Field of an item's record that holds what is learnt from."""

    @abstractmethod
    def own_task(self, records: Sequence[ItemRecord], label_set: str) -> dict[str, Any]:
        """The task section of a recipe for somebody's own labels: classes by the names that they have.

        Args:
            records: All that have labels of the set.
            label_set: Name of the labels.
        """

    @abstractmethod
    def sketch(self, pins: Pins, records: Sequence[ItemRecord]) -> dict[str, Any]:
        """A recipe that is sound but trains nothing, from which the images of a task can be asked for.

        Args:
            pins: The recipe's task, and whatever else of it is given.
            records: Images with labels of the set.
        """

    @abstractmethod
    def look(self, cache: Cache, supervision: Any, records: Sequence[ItemRecord], talk: Talk) -> Fingerprint:
        """Take the fingerprint.

        Args:
            cache: Where the images are.
            supervision: Supervision of the sketch.
            records: Records without test patients.
            talk: Told of progress.
        """

    @abstractmethod
    def drafts(self, pins: Pins, fingerprint: Fingerprint, budget: PlanBudget, *, scale: float) -> list[Draft]:
        """Recipes that suit the images, from the cheapest step to the dearest.

        Args:
            pins: What is given.
            fingerprint: Fingerprint of the images.
            budget: Budget of the training; its time is not looked at here.
            scale: Scale of what a step reads; below 1 where memory is short.
        """
