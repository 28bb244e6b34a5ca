"""Figures of marks on images against their slow definitions, and what must hold for any boxes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medssl_cli.metrics import marks as module
from medssl_cli.metrics.marks import (
    FALSE_PER_IMAGE,
    Marks,
    average_precision,
    marks_of,
    match,
    mean_sensitivity,
    overlaps,
    sensitivity_at,
)

Array = NDArray[np.float64]
pixels = st.integers(0, 6)
extent = st.integers(1, 6)
box = st.tuples(pixels, pixels, extent, extent).map(lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3]))
image = st.tuples(st.lists(st.tuples(box, st.integers(1, 5)), max_size=4), st.lists(box, max_size=3))
data_set = st.lists(image, min_size=1, max_size=4)


def array(boxes: list[tuple[int, int, int, int]]) -> Array:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def marks(images: list[tuple[list[tuple[tuple[int, int, int, int], int]], list[tuple[int, int, int, int]]]]) -> Marks:
    return marks_of(
        [array([own for own, _ in found]) for found, _ in images],
        [np.array([float(score) for _, score in found]) for found, _ in images],
        [array(there) for _, there in images],
        min_overlap=0.5,
    )


def pixel_overlap(first: Array, second: Array) -> float:
    """The definition, by counting pixels."""
    sets = [{(x, y) for x in range(int(b[0]), int(b[2])) for y in range(int(b[1]), int(b[3]))} for b in (first, second)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(st.lists(box, max_size=3), st.lists(box, max_size=3))
def test_overlap_counts_pixels(first: list[tuple[int, int, int, int]], second: list[tuple[int, int, int, int]]) -> None:
    found = overlaps(array(first), array(second))

    expected = [[pixel_overlap(one, other) for other in array(second)] for one in array(first)]
    np.testing.assert_allclose(found, np.array(expected).reshape(len(first), len(second)))


def test_the_best_mark_takes_the_box_that_it_overlaps_most_and_the_next_finds_it_taken() -> None:
    there = array([(0, 0, 4, 4), (0, 0, 4, 6)])
    found = array([(0, 0, 4, 6), (0, 0, 4, 5), (0, 0, 4, 4), (9, 9, 12, 12)])

    assert match(found, np.array([0.5, 0.9, 0.4, 0.8]), there, min_overlap=0.5).tolist() == [True, True, False, False]
    assert match(found, np.ones(4), array([]), min_overlap=0.5).tolist() == [False] * 4
    assert match(array([]), np.ones(0), there, min_overlap=0.5).tolist() == []


@given(data_set)
def test_average_precision_is_the_area_under_the_best_precision_at_each_recall(images: list) -> None:
    each = marks(images)
    number = int(each.num_boxes.sum())
    points = [
        (each.is_true[: k + 1].sum() / max(1, number), each.is_true[: k + 1].mean()) for k in range(len(each.scores))
    ]
    expected = math.nan
    if number:
        recalls = [(k + 1) / number for k in range(number)]
        expected = sum(max([p for r, p in points if r >= wanted - 1e-12], default=0.0) for wanted in recalls) / number

    assert float(average_precision(each)) == pytest.approx(expected, nan_ok=True)


@given(data_set, st.sampled_from(FALSE_PER_IMAGE))
def test_sensitivity_counts_what_is_found_before_there_are_too_many_false_marks(images: list, rate: float) -> None:
    each = marks(images)
    found, false, best = 0, 0, 0
    for is_true in each.is_true:
        found, false = found + int(is_true), false + int(not is_true)
        best = found if false <= rate * len(images) else best
    number = int(each.num_boxes.sum())

    expected = best / number if number else math.nan
    assert float(sensitivity_at(each, rate)) == pytest.approx(expected, nan_ok=True)
    rates = [float(sensitivity_at(each, one)) for one in FALSE_PER_IMAGE]
    assert float(mean_sensitivity(each)) == pytest.approx(float(np.mean(rates)), nan_ok=True)


@given(data_set, st.data())
def test_a_weight_of_two_is_the_image_twice(images: list, draw: st.DataObject) -> None:
    counts = np.array(draw.draw(st.lists(st.integers(0, 2), min_size=len(images), max_size=len(images))))
    again = [image for image, count in zip(images, counts, strict=True) for _ in range(count)]
    if not again:
        return
    # images drawn twice have marks of equal scores: order among them must not matter, so scores are made to differ
    separate = [([(own, score + 0.01 * n) for own, score in found], there) for n, (found, there) in enumerate(images)]
    weighed = marks(separate)
    repeated = marks([image for image, count in zip(separate, counts, strict=True) for _ in range(count)])

    rows = np.stack([counts, np.ones(len(images))]).astype(np.float64)
    assert average_precision(weighed, rows).shape == (2,)
    found = float(sensitivity_at(weighed, 8.0, rows)[0])
    assert found == pytest.approx(float(sensitivity_at(repeated, 8.0)), nan_ok=True)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    each = Marks(np.sort(rng.random(40))[::-1], rng.random(40) < 0.5, rng.integers(0, 6, 40), np.full(6, 5))
    weights = rng.integers(0, 3, (50, 6)).astype(np.float64)
    whole = average_precision(each, weights)

    monkeypatch.setattr(module, "BLOCK", 100)

    np.testing.assert_array_equal(average_precision(each, weights), whole)


def test_a_threshold_allows_so_many_false_marks_per_image() -> None:
    # Two images with one box each; marks 0.9 true, 0.7 false, 0.6 false, 0.5 true, 0.4 false.
    found = module.Marks(
        np.array([0.9, 0.7, 0.6, 0.5, 0.4]), np.array([True, False, False, True, False]),
        np.array([0, 0, 1, 1, 0]), np.array([1, 1]),
    )  # fmt: skip

    assert module.threshold_at(found, 1.0, lowest=0.05) == pytest.approx((0.45, 1.0, 1.0))
    assert module.threshold_at(found, 0.5, lowest=0.05) == pytest.approx((0.65, 0.5, 0.5))
    assert module.threshold_at(found, 2.0, lowest=0.05) == pytest.approx((0.05, 1.0, 1.5))


def test_marks_of_what_counts_for_nothing_are_left_out() -> None:
    found = array([(0, 0, 4, 4), (10, 10, 14, 14), (20, 20, 24, 24)])
    there, ignored = array([(0, 0, 4, 4)]), array([(10, 10, 14, 15), (0, 0, 4, 5)])

    each = marks_of([found], [np.array([0.9, 0.8, 0.7])], [there], min_overlap=0.5, ignored=[ignored])

    assert each.scores.tolist() == [0.9, 0.7]
    assert each.is_true.tolist() == [True, False]
