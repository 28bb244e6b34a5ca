"""Average precision of boxes: that of COCO's own evaluation, asked for the precision at every recall that there is."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from medssl_cli.metrics.marks import average_precision, marks_of

Array = np.ndarray[Any, np.dtype[np.float64]]


def drawn(rng: np.random.Generator, count: int) -> Array:
    low = rng.uniform(0, 40, (count, 2))
    return np.concatenate([low, low + rng.uniform(4, 24, (count, 2))], axis=1)


def images(seed: int) -> tuple[list[Array], list[Array], list[Array]]:
    """Boxes found, their scores and boxes that are there, on images some of which have none of one kind."""
    rng = np.random.default_rng(seed)
    truth = [drawn(rng, rng.integers(0, 6)) for _ in range(6)]
    found = []
    for there in truth:
        near = there + rng.normal(0, 2, there.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found.append(np.concatenate([near[rng.random(len(near)) < 0.8], near[:1], drawn(rng, rng.integers(0, 4))]))
    return found, [rng.random(len(own)).round(1 if seed % 2 else 6) for own in found], truth


def coco_average_precision(found: list[Array], scores: list[Array], truth: list[Array], min_overlap: float) -> float:
    """COCO's, whose recalls are those of 1, 2, ... boxes of all, of all sizes and of any number of marks."""
    numbers = range(1, len(truth) + 1)

    def of(boxes: Array) -> list[float]:
        return [*boxes[:2].tolist(), *(boxes[2:] - boxes[:2]).tolist()]

    marked = [(number, box, float(np.prod(box[2:] - box[:2]))) for number, own in zip(numbers, truth, strict=True)
              for box in own]  # fmt: skip
    there = [
        {"id": place, "image_id": number, "category_id": 1, "bbox": of(box), "area": area, "iscrowd": 0}
        for place, (number, box, area) in enumerate(marked, start=1)
    ]
    marks = [
        {"image_id": number, "category_id": 1, "bbox": of(box), "score": float(score)}
        for number, own, values in zip(numbers, found, scores, strict=True)
        for box, score in zip(own, values, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in numbers],
            "categories": [{"id": 1}],
            "annotations": there,
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(marks), "bbox")
        judge.params.iouThrs = np.array([min_overlap])
        judge.params.recThrs = np.arange(1, len(there) + 1) / len(there)
        judge.params.areaRng, judge.params.areaRngLbl, judge.params.maxDets = [[0, 1e10]], ["all"], [1000]
        judge.evaluate()
        judge.accumulate()
    return float(judge.eval["precision"][0, :, 0, 0, 0].mean())


@pytest.mark.parametrize("min_overlap", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(8))
def test_average_precision_equals_that_of_coco(seed: int, min_overlap: float) -> None:
    found, scores, truth = images(seed)

    ours = float(average_precision(marks_of(found, scores, truth, min_overlap=min_overlap)))

    assert ours == pytest.approx(coco_average_precision(found, scores, truth, min_overlap), abs=1e-6)


def test_a_box_without_marks_and_marks_without_a_box() -> None:
    box, nothing = np.array([[1.0, 1.0, 5.0, 5.0]]), np.zeros((0, 4))
    found, scores, truth = [nothing, box], [np.zeros(0), np.ones(1)], [box, nothing]

    assert float(average_precision(marks_of(found, scores, truth, min_overlap=0.5))) == 0
    assert coco_average_precision(found, scores, truth, 0.5) == 0
