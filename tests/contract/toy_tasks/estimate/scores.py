"""How well numbers agree: one minus their mean difference."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from medssl_cli.tasks.estimate import FIGURE
from medssl_cli.tasks.estimate.page import estimate_page
from numpy.typing import NDArray

from medssl_cli.base.talk import Talk
from medssl_cli.cache.store import Cache
from medssl_cli.report.gallery import Shown
from medssl_cli.tasks import OnCase, Results, Subject


def agreement(found: NDArray[np.float64], there: NDArray[np.float32]) -> float:
    return float(1 - np.abs(found - there).mean())


@dataclass(frozen=True)
class EstimateSubject(Subject):
    """A model that estimates."""

    figure = FIGURE

    found: Callable[[Cache], NDArray[np.float64]]
    numbers: NDArray[np.float32]

    def score(self, cache: Cache, *, split: str, talk: Talk, on_case: OnCase | None = None) -> Results:
        found = self.found(cache)
        value = agreement(found, self.numbers)
        patients = {record.patient_key for record in self.records}
        document = {"model": self.name, "task": self.task, "split": split, "num_patients": len(patients)}
        rows = [(name, f"{agreement(found[:, k], self.numbers[:, k]):.3f}") for k, name in self.classes.items()]
        lines = [f"{record.item_id},{number}" for record, number in zip(self.records, found[:, 0], strict=True)]
        return Results({**document, "agreement": value}, "\n".join(lines), ("finding", "agreement"), rows, value)

    def page(self, document: dict[str, Any], pictures: list[Shown]) -> str:
        return estimate_page(document)
