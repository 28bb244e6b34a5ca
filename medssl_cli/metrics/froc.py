"""How well points find nodules, by the rule of LUNA16: sensitivity by false marks per scan, and its mean.

Setio et al., Medical Image Analysis 42 (2017), https://arxiv.org/abs/1612.08012, and its challenge:

- A mark hits a nodule if it lies nearer to its centre than its radius.
- Marks that hit a nodule are no false ones, however many there are; the nodule has the best of their scores.
- Marks that hit an irrelevant finding and no nodule are left out.
- Of each scan the 100 best marks count.
- False marks are divided by all scans, also those without a nodule.
- Between two thresholds sensitivity is linear in the false marks per scan.

Shapes: N scans, L nodules and M marks of a scan, T marks of all scans, R resamples (any leading axes of weights).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.spots import Array, Spots
from medssl_cli.metrics.marks import BLOCK, FALSE_PER_IMAGE, Marks, sorted_marks
from medssl_cli.metrics.statistics import ratio

MOST_MARKS: Final = 100


def marks_at(
    points_mm: Sequence[Array], scores: Sequence[Array], nodules: Sequence[Spots], irrelevant: Sequence[Spots]
) -> Marks:
    """What counts of the marks of N scans: for each nodule that is hit its best score, and all false marks.

    Args:
        points_mm: Marks of each scan, `[M, 3]`.
        scores: Scores of each scan's marks, `[M]`.
        nodules: Nodules of each scan.
        irrelevant: Findings of each scan that count for nothing.
    """
    each = [_of_scan(*scan) for scan in zip(points_mm, scores, nodules, irrelevant, strict=True)]
    return sorted_marks([own[0] for own in each], [own[1] for own in each], [len(own.diameters_mm) for own in nodules])


def _of_scan(points: Array, scores: Array, nodules: Spots, irrelevant: Spots) -> tuple[Array, NDArray[np.bool_]]:
    """Scores of what counts on one scan, and whether each stands for a nodule."""
    best = np.argsort(-scores, kind="stable")[:MOST_MARKS]
    points, scores = points[best], scores[best]
    hits = nodules.hit_by(points)
    found = np.array([scores[own].max() for own in hits.T if own.any()])
    false = scores[~hits.any(axis=1) & ~irrelevant.hit_by(points).any(axis=1)]
    return np.concatenate([found, false]), np.arange(len(found) + len(false)) < len(found)


def froc(marks: Marks, weights: Array | None = None, rates: Sequence[float] = FALSE_PER_IMAGE) -> Array:
    """Sensitivity at so many false marks per scan, `[..., rates]`; NaN where no nodule is there.

    Args:
        marks: See `marks_at`.
        weights: Weights of the scans, `[..., N]`, not negative; 1 if not given.
        rates: False marks per scan.
    """
    given = np.ones(len(marks.num_boxes)) if weights is None else weights
    rows = given.reshape(-1, given.shape[-1])
    ends = np.flatnonzero(np.append(marks.scores[:-1] > marks.scores[1:], True)[: len(marks.scores)])
    size = max(1, BLOCK // max(1, len(marks.images)))
    found = np.zeros((len(rows), len(rates)))
    for first in range(0, len(rows), size):
        block = rows[first : first + size]
        of_marks = block[:, marks.images]
        true, false = (np.cumsum(of_marks * kind, axis=-1)[:, ends] for kind in (marks.is_true, ~marks.is_true))
        sensitivity = ratio(true, (block @ marks.num_boxes.astype(np.float64))[:, None] * np.ones_like(true))
        per_scan = ratio(false, block.sum(axis=-1)[:, None] * np.ones_like(false))
        for place, (along, up) in enumerate(zip(per_scan, sensitivity, strict=True), start=first):
            found[place] = np.interp(rates, np.append(0.0, along), np.append(0.0, up))
    found[rows @ marks.num_boxes <= 0] = np.nan
    return found.reshape(*given.shape[:-1], len(rates))


def competition_metric(marks: Marks, weights: Array | None = None) -> Array:
    """Mean of the sensitivities at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false marks per scan (CPM), `[...]`."""
    mean: Array = froc(marks, weights).mean(axis=-1)
    return mean
