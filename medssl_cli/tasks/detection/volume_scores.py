"""Scores of boxes in volumes by where their centres lie: FROC and the metric of LUNA16; see `metrics.froc`.

Shapes: N volumes, M boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.items import ItemRecord
from medssl_cli.imaging.geometry import spacing_mm
from medssl_cli.imaging.spots import Spots
from medssl_cli.metrics.froc import competition_metric, froc, marks_at
from medssl_cli.metrics.marks import CURVE_RATES, FALSE_PER_IMAGE, Marks, sorted_marks
from medssl_cli.metrics.statistics import bootstrap_figure
from medssl_cli.tasks.detection.image_boxes import ImageBoxes

METRIC: Final = "competition_metric"
"""Mean sensitivity at the seven rates of LUNA16, between which it is linear."""
SEED: Final = 0
"""Seed of the resamples."""


def hits(found: Sequence[ImageBoxes], truth: Sequence[ImageBoxes], records: Sequence[ItemRecord], place: int) -> Marks:
    """Marks of one class on N volumes: a box hits what is there if its centre lies nearer than the radius."""
    return marks_at(
        [centres_mm(own.of(place), record) for own, record in zip(found, records, strict=True)],
        [own.of(place).scores for own in found],
        [spots_of(there.of(place), record) for there, record in zip(truth, records, strict=True)],
        [spots_of(there.ignored, record) for there, record in zip(truth, records, strict=True)],
    )


def rows_of(marks: Marks, image: int) -> dict[str, Any]:
    """What the metric of LUNA16 takes of one volume, for a document; see `marks_of_rows`."""
    own = marks.images == image
    return {
        "true": marks.scores[own & marks.is_true].tolist(),
        "false": marks.scores[own & ~marks.is_true].tolist(),
        "num_there": int(marks.num_boxes[image]),
    }


def marks_of_rows(rows: Sequence[Mapping[str, Any]]) -> Marks:
    """Marks of volumes from their documents.

    Args:
        rows: As `rows_of` returns them.
    """
    scores = [np.array([*row["true"], *row["false"]], dtype=np.float64) for row in rows]
    is_true = [np.arange(len(own)) < len(row["true"]) for own, row in zip(scores, rows, strict=True)]
    return sorted_marks(scores, is_true, [row["num_there"] for row in rows])


def centres_mm(boxes: ImageBoxes, record: ItemRecord) -> NDArray[np.float64]:
    """Where boxes of a volume lie in the patient, RAS+ `[M, 3]`."""
    indices = (boxes.corners[:, :3] + boxes.corners[:, 3:]) / 2 - 0.5
    affine = record.affine_array
    centres: NDArray[np.float64] = indices @ affine[:3, :3].T + affine[:3, 3]
    return centres


def spots_of(boxes: ImageBoxes, record: ItemRecord) -> Spots:
    """Boxes that are there as round findings: of their diameter, else of the mean of their sides."""
    sides = ((boxes.corners[:, 3:] - boxes.corners[:, :3]) * spacing_mm(record.affine_array)).mean(axis=1)
    known = np.full(len(sides), np.nan) if boxes.diameters_mm is None else boxes.diameters_mm
    diameters = np.where(np.isnan(known), np.where(sides > 0, sides, -1.0), known)
    return Spots(centres_mm(boxes, record), diameters)


def froc_scores(marks: Marks, patients: Sequence[str]) -> dict[str, Any]:
    """The part of a document about one class; intervals draw patients."""
    return {
        METRIC: asdict(
            bootstrap_figure(
                lambda weights: competition_metric(marks, weights), patients, rng=np.random.default_rng(SEED)
            )
        ),
        "sensitivity": dict(zip(map("{:g}".format, FALSE_PER_IMAGE), froc(marks).tolist(), strict=True)),
        "curve": froc(marks, rates=CURVE_RATES).tolist(),
    }
