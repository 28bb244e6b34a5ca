"""Scores of several models that find boxes, on the same images: average precision, and in volumes the metric of LUNA16.

Shapes: M boxes, D axes of space.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from medssl_cli.base.errors import NothingUsableError
from medssl_cli.data.boxes import IGNORED
from medssl_cli.metrics.froc import competition_metric
from medssl_cli.metrics.marks import average_precision
from medssl_cli.metrics.paired import PairedFigure, exchange_test, mean_of_figures
from medssl_cli.metrics.statistics import Figure
from medssl_cli.tasks.detection.image_boxes import ImageBoxes, class_marks
from medssl_cli.tasks.detection.volume_scores import marks_of_rows

ALL_CLASSES: Final = "mean of classes"
SEED: Final = 0
"""Seed of the exchanges."""
FigureOf = Callable[[Sequence[int], Sequence[int]], Figure]
"""Models, whose images follow one another, and classes to their figure."""


def paired_figures(documents: Sequence[Mapping[str, Any]]) -> list[PairedFigure]:
    """Scores of several models: of each class of which there is a box, and of the mean of these.

    Average precision; in volumes the metric of LUNA16 too, where all evaluations tell the points of their images.

    Args:
        documents: Evaluations of the same items in the same order.

    Raises:
        NothingUsableError: `E_TOO_FEW_PATIENTS`, there is no box.
    """
    patients = [case["patient"] for case in documents[0]["cases"]]
    names = [name for name in documents[0]["classes"] if all(name in each["classes"] for each in documents)]
    there = _boxes_of_cases([documents[0]], "there", names)
    present = [place for place in range(len(names)) if any(len(boxes.of(place).scores) for boxes in there)]
    if not present:
        raise NothingUsableError("E_TOO_FEW_PATIENTS", "there is no box on the images that the models have in common")
    min_overlap = documents[0]["match_overlap"]

    def boxes_of(models: Sequence[int], places: Sequence[int]) -> Figure:
        found = _boxes_of_cases([documents[model] for model in models], "found", names)
        every = [class_marks(found, there * len(models), place, min_overlap=min_overlap) for place in places]
        return mean_of_figures([partial(average_precision, marks) for marks in every])

    def points_of(models: Sequence[int], places: Sequence[int]) -> Figure:
        cases = [case for model in models for case in documents[model]["cases"]]
        every = [marks_of_rows([case["points"][names[place]] for case in cases]) for place in places]
        return mean_of_figures([partial(competition_metric, marks) for marks in every])

    def compared(metric: str, figure_of: FigureOf, structure: str, places: Sequence[int]) -> PairedFigure:
        def p_value(first: Sequence[int], second: Sequence[int]) -> float:
            pairs = [figure_of(pair, places) for pair in zip(first, second, strict=True)]
            return exchange_test(mean_of_figures(pairs), patients, rng=np.random.default_rng(SEED))

        figures = [figure_of((model,), places) for model in range(len(documents))]
        return PairedFigure(metric, structure, structure == ALL_CLASSES, patients, figures, p_value)

    metrics: dict[str, FigureOf] = {"AP": boxes_of}
    if all("points" in case for document in documents for case in document["cases"]):
        metrics["CPM"] = points_of
    places_of = {ALL_CLASSES: present, **{names[place]: [place] for place in present}}
    return [
        compared(metric, figure_of, structure, places)
        for metric, figure_of in metrics.items()
        for structure, places in places_of.items()
    ]


def _boxes_of_cases(documents: Sequence[Mapping[str, Any]], key: str, names: Sequence[str]) -> list[ImageBoxes]:
    """Boxes of the images of documents, one after another; those of classes without a name here are left out."""
    cases = [case for document in documents for case in document["cases"]]
    every = [box["corners"] for case in cases for kind in ("found", "there") for box in case[kind]]
    width = len(every[0]) if every else 4
    found = []
    for case in cases:
        own = [box for box in case[key] if box["class"] in names]
        ignored = case.get("ignored", []) if key == "there" else []
        corners = np.array([*(box["corners"] for box in own), *ignored], dtype=np.float64).reshape(-1, width)
        classes = np.array([*(names.index(box["class"]) for box in own), *(IGNORED for _ in ignored)], dtype=np.int64)
        scores = np.array([*(box["score"] for box in own), *(1.0 for _ in ignored)], dtype=np.float64)
        found.append(ImageBoxes(corners, classes, scores))
    return found
