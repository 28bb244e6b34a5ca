"""Scores of several segmentations of the same images, patient by patient."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from medssl_cli.metrics.paired import PairedFigure, mean_figure
from medssl_cli.metrics.statistics import known, ratio

ALL_STRUCTURES: Final = "mean of structures"
PAIRED: Final = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 mm", "lesion_dice": "lesion Dice"}
"""Scores that are compared patient by patient, by their keys."""


def paired_figures(documents: Sequence[Mapping[str, Any]]) -> list[PairedFigure]:
    """Scores of several models: of each structure, and of the mean of the structures of an image.

    Dice, NSD and HD95, and the Dice of lesions where all models were scored by it.

    Args:
        documents: Evaluations of the same items in the same order.
    """
    cases = documents[0]["cases"]
    patients = [case["patient"] for case in cases]
    structures = [name for name in documents[0]["structures"] if all(name in each["structures"] for each in documents)]
    found = []
    every = [case["scores"][name] for document in documents for case in document["cases"] for name in structures]
    for key, title in PAIRED.items():
        if not all(key in scores for scores in every):
            continue
        values = np.array(
            [
                [[known(case["scores"][name][key]) for name in structures] for case in document["cases"]]
                for document in documents
            ],
            dtype=np.float64,
        )
        has_all = ~np.isnan(values).any(axis=0)  # of each image, the structures that all models have a value of
        means = ratio(
            np.where(has_all, values, 0.0).sum(axis=2), np.broadcast_to(has_all.sum(axis=1), values.shape[:2])
        )
        columns = {ALL_STRUCTURES: means, **{name: values[:, :, place] for place, name in enumerate(structures)}}
        found += [
            mean_figure(title, name, column, patients, is_main=name == ALL_STRUCTURES, less_is_better=key == "hd95_mm")
            for name, column in columns.items()
        ]
    return found
