"""What every evaluation of a task has, whatever it scores: for a file, for a table on a terminal, for a limit."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.engine.talk import Talk
from medssl_cli.metrics.statistics import Estimate


@dataclass(frozen=True)
class Results:
    """How a model did on a split.

    Args:
        document: All of it, for JSON; its `schema` says which page shows it.
        csv: One row per item and class.
        columns: Of the table; the first is text.
        rows: Of the table.
        value: The figure that one looks at first, a mean over classes.
    """

    document: dict[str, Any]
    csv: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    value: float


OnCase = Callable[..., None]
"""Called with (item, figure, image, prediction, reference) of every label map that was scored."""


@dataclass(frozen=True)
class Subject(ABC):
    """A model and the images to score it on.

    Args:
        name: Of the run or file.
        task: Name of the task.
        folder: Where results go by default.
        records: The split.
        classes: Names by value.
    """

    figure: ClassVar[str]
    """Name of what one looks at first: `dice`, `auroc` or `average_precision`."""

    name: str
    task: str
    folder: Path
    records: Sequence[ItemRecord]
    classes: dict[int, str]

    @abstractmethod
    def score(self, cache: Cache, *, split: str, talk: Talk, on_case: OnCase | None = None) -> Results:
        """Score the model on all of its images.

        Args:
            cache: Holds the images.
            split: Its name, for the results.
            talk: Progress.
            on_case: Called after each image, where there is something to draw.

        Raises:
            NothingUsableError: `E_TOO_FEW_PATIENTS` for an empty split.
        """


def shown(estimate: Estimate) -> str:
    """An estimate with its interval, for a table."""
    if math.isnan(estimate.mean):
        return "n/a"
    if math.isnan(estimate.low):
        return f"{estimate.mean:.3f}"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def without_nan(node: Any) -> Any:
    """A document with null for every number that is not finite, which JSON cannot hold."""
    if isinstance(node, dict):
        return {key: without_nan(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_nan(value) for value in node]
    if isinstance(node, float) and not math.isfinite(node):
        return None
    return node


def dump(document: dict[str, Any]) -> str:
    """JSON text without NaN."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
