"""How well boxes with scores find boxes that are there: average precision, and sensitivity by false marks per image.

Every figure takes weights of the images, so that a bootstrap over patients (`statistics.bootstrap_figure`) draws an
image twice by giving it the weight 2. Images without any box count: every mark on them is a false one.

Shapes: N images, M boxes of an image, T marks of all images, R resamples (any leading axes of weights). Boxes have D
low and then D high corners, D 2 or 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medssl_cli.metrics.statistics import ratio

Array = NDArray[np.float64]
MarkFigure = Callable[[Array, Array, Array, Array], Array]
FALSE_PER_IMAGE: Final = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""Rates of the LUNA16 challenge: Setio et al., Medical Image Analysis 42 (2017), https://arxiv.org/abs/1612.08012."""
CURVE_RATES: Final = tuple(2.0 ** (step / 4) for step in range(-12, 13))
"""Where a curve over false marks is drawn: from 1/8 to 8, the seven rates among them."""
BLOCK: Final = 2**24
"""Numbers that a figure holds in memory at a time."""


@dataclass(frozen=True)
class Marks:
    """Marks of one class on all images, best first.

    Args:
        scores: `[T]`, falling.
        is_true: Whether each finds a box that no better mark of its image has found, `[T]`.
        images: Number of its image, `[T]`.
        num_boxes: Boxes that are there, of each image, `[N]`.
    """

    scores: Array
    is_true: NDArray[np.bool_]
    images: NDArray[np.int64]
    num_boxes: NDArray[np.int64]


def overlaps(first: Array, second: Array) -> Array:
    """Intersection over union of every pair of boxes `[M, 2 D]` and `[L, 2 D]`, `[M, L]`.

    It does not change with the unit along any axis: that of boxes in voxels is that of the same boxes in millimetres.
    """
    dims = first.shape[1] // 2
    low = np.maximum(first[:, None, :dims], second[None, :, :dims])
    high = np.minimum(first[:, None, dims:], second[None, :, dims:])
    common = (high - low).clip(min=0).prod(axis=-1)
    areas = [(boxes[:, dims:] - boxes[:, :dims]).prod(axis=-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - common
    ratio: Array = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return ratio


def match(boxes: Array, scores: Array, truth: Array, *, min_overlap: float) -> NDArray[np.bool_]:
    """Which marks of an image find a box: the best mark first, each takes the free box that it overlaps most.

    Args:
        boxes: `[M, 2 D]`.
        scores: `[M]`.
        truth: Boxes that are there, `[L, 2 D]`.
        min_overlap: Least intersection over union.

    Returns:
        `[M]`, in the order of the marks.
    """
    is_true = np.zeros(len(boxes), dtype=bool)
    pairs = overlaps(boxes, truth)
    for mark in np.argsort(-scores, kind="stable"):
        if not len(truth):
            break
        found = int(pairs[mark].argmax())
        if pairs[mark, found] >= min_overlap:
            is_true[mark] = True
            pairs[:, found] = -1.0
    return is_true


def marks_of(
    boxes: Sequence[Array],
    scores: Sequence[Array],
    truth: Sequence[Array],
    *,
    min_overlap: float,
    ignored: Sequence[Array] | None = None,
) -> Marks:
    """Marks of one class on N images; see `match`.

    Args:
        boxes: Boxes found on each image.
        scores: Scores of these.
        truth: Boxes that are there, of each image.
        min_overlap: Least intersection over union.
        ignored: Boxes of each image that count for nothing: a mark that finds one of them and none of `truth` is left
            out.
    """
    each = [match(*image, min_overlap=min_overlap) for image in zip(boxes, scores, truth, strict=True)]
    counts = [np.ones(len(own), dtype=bool) for own in boxes]
    for image, others in enumerate(ignored or ()):
        if len(others):
            counts[image] = each[image] | (overlaps(boxes[image], others).max(axis=1) < min_overlap)
    return sorted_marks(
        [own[kept] for own, kept in zip(scores, counts, strict=True)],
        [own[kept] for own, kept in zip(each, counts, strict=True)],
        [len(own) for own in truth],
    )


def sorted_marks(scores: Sequence[Array], is_true: Sequence[NDArray[np.bool_]], num_boxes: Sequence[int]) -> Marks:
    """Marks of N images, best first.

    Args:
        scores: Scores of the marks of each image.
        is_true: Whether each mark of an image finds a box that no other does.
        num_boxes: Boxes that are there, of each image.
    """
    values = np.concatenate([np.zeros(0), *scores])
    order = np.argsort(-values, kind="stable")
    images = np.repeat(np.arange(len(scores)), [len(own) for own in scores])
    found = np.concatenate([np.zeros(0, dtype=bool), *is_true])
    return Marks(values[order], found[order], images[order], np.array(num_boxes, dtype=np.int64))


def average_precision(marks: Marks, weights: Array | None = None) -> Array:
    """Area under the precision by recall, where the precision at a recall is the best at any higher one.

    As PASCAL VOC since 2010: Everingham et al., IJCV 111 (2015), https://doi.org/10.1007/s11263-014-0733-5

    Args:
        marks: See `Marks`.
        weights: `[..., N]`, not negative; 1 if not given.

    Returns:
        `[...]`; NaN where no box is there.
    """

    def figure(true: Array, false: Array, boxes: Array, _: Array) -> Array:
        if not true.shape[-1]:
            return np.where(boxes > 0, 0.0, np.nan)
        precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
        best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        steps = np.diff(true, axis=-1, prepend=0.0)
        return ratio((steps * best).sum(axis=-1), boxes)

    return _in_blocks(figure, marks, weights)


def sensitivity_at(marks: Marks, false_per_image: float, weights: Array | None = None) -> Array:
    """Share of the boxes that is found while false marks are at most so many per image, `[...]`; NaN without boxes."""

    def figure(true: Array, false: Array, boxes: Array, images: Array) -> Array:
        if not true.shape[-1]:
            return np.where(boxes > 0, 0.0, np.nan)
        allowed = false <= false_per_image * images[..., None] + 1e-9
        return ratio(np.where(allowed, true, 0.0).max(axis=-1), boxes)

    return _in_blocks(figure, marks, weights)


def mean_sensitivity(marks: Marks, weights: Array | None = None) -> Array:
    """Mean of the sensitivities at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false marks per image: LUNA16's score, `[...]`."""
    each = [sensitivity_at(marks, rate, weights) for rate in FALSE_PER_IMAGE]
    mean: Array = np.mean(each, axis=0)
    return mean


def _in_blocks(figure: MarkFigure, marks: Marks, weights: Array | None) -> Array:
    """A figure of the weight of true and false marks up to each, of all boxes, and of all images."""
    given = np.ones(len(marks.num_boxes)) if weights is None else weights
    rows = given.reshape(-1, given.shape[-1])
    size = max(1, BLOCK // max(1, len(marks.images)))
    parts = []
    for first in range(0, len(rows), size):
        block = rows[first : first + size]
        of_marks = block[:, marks.images]
        true, false = (np.cumsum(of_marks * kind, axis=-1) for kind in (marks.is_true, ~marks.is_true))
        parts.append(figure(true, false, block @ marks.num_boxes.astype(np.float64), block.sum(axis=-1)))
    return np.concatenate(parts).reshape(given.shape[:-1])


class Allowed(NamedTuple):
    """A threshold of scores with what is found at it: share of the boxes, and false marks per image."""

    threshold: float
    sensitivity: float
    false_per_image: float


def threshold_at(marks: Marks, rate: float, *, lowest: float) -> Allowed:
    """The lowest threshold at which there are at most so many false marks per image.

    Args:
        marks: See `Marks`.
        rate: False marks per image.
        lowest: Threshold where all marks are allowed.

    Returns:
        Its threshold lies in the middle between the last score that reaches it and the next one; sensitivity NaN where
        no box is there.
    """
    false, true = np.cumsum(~marks.is_true), np.cumsum(marks.is_true)
    scores, allowed = marks.scores, rate * len(marks.num_boxes)
    ends = np.append(scores[:-1] > scores[1:], True) if len(scores) else np.zeros(0, dtype=bool)
    fit = np.flatnonzero(ends & (false <= allowed))
    last = int(fit[-1]) if len(fit) else -1
    above = scores[last] if last >= 0 else 1.0
    threshold = lowest if last + 1 == len(scores) else float(above + scores[last + 1]) / 2
    found, wrong = (int(each[last]) if last >= 0 else 0 for each in (true, false))
    num_boxes = int(marks.num_boxes.sum())
    return Allowed(threshold, found / num_boxes if num_boxes else float("nan"), wrong / max(1, len(marks.num_boxes)))
