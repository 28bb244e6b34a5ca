"""FROC and the metric of LUNA16 against a literal restatement of the challenge's rules, and against its test vector."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from medssl_cli.imaging.spots import Spots
from medssl_cli.metrics.froc import competition_metric, froc, marks_at
from medssl_cli.metrics.marks import FALSE_PER_IMAGE, Marks, overlaps
from medssl_cli.metrics.statistics import bootstrap_figure

Array = NDArray[np.float64]
Point = tuple[float, float, float]


class Scan(NamedTuple):
    """Marks with scores, nodules and irrelevant findings with diameters."""

    marks: list[tuple[Point, float]]
    nodules: Sequence[tuple[Point, float]] = ()
    irrelevant: Sequence[tuple[Point, float]] = ()


def spots(findings: Sequence[tuple[Point, float]]) -> Spots:
    centres = np.array([place for place, _ in findings], dtype=np.float64).reshape(-1, 3)
    return Spots(centres, np.array([diameter for _, diameter in findings], dtype=np.float64))


def marks_of_scans(scans: list[Scan]) -> Marks:
    return marks_at(
        [np.array([place for place, _ in scan.marks], dtype=np.float64).reshape(-1, 3) for scan in scans],
        [np.array([score for _, score in scan.marks], dtype=np.float64) for scan in scans],
        [spots(scan.nodules) for scan in scans],
        [spots(scan.irrelevant) for scan in scans],
    )


def literal_froc(scans: list[Scan]) -> list[float]:
    """The rules, one mark after the other, and every threshold counted anew."""

    def is_hit(place: Point, finding: tuple[Point, float]) -> bool:
        centre, diameter = finding
        radius = (10.0 if diameter < 0 else diameter) / 2
        return sum((a - b) ** 2 for a, b in zip(place, centre, strict=True)) < radius**2

    found: list[float] = []
    false: list[float] = []
    for scan in scans:
        best = sorted(scan.marks, key=lambda mark: -mark[1])[:100]
        for nodule in scan.nodules:
            scores = [score for place, score in best if is_hit(place, nodule)]
            found += [max(scores)] if scores else []
        for place, score in best:
            if not any(is_hit(place, finding) for finding in [*scan.nodules, *scan.irrelevant]):
                false.append(score)
    total = sum(len(scan.nodules) for scan in scans)
    points = [(0.0, 0.0)]
    for threshold in sorted({*found, *false}, reverse=True):
        points.append(
            (
                sum(score >= threshold for score in false) / len(scans),
                sum(score >= threshold for score in found) / total,
            )
        )
    return [interpolated(points, rate) for rate in FALSE_PER_IMAGE]


def interpolated(points: list[tuple[float, float]], rate: float) -> float:
    """Linear between the last point that is not beyond a rate and the next one."""
    last = max(n for n, (x, _) in enumerate(points) if x <= rate)
    (x, y) = points[last]
    if last + 1 == len(points) or x == rate:
        return y
    (x_next, y_next) = points[last + 1]
    return y + (y_next - y) * (rate - x) / (x_next - x)


def random_scans(seed: int) -> list[Scan]:
    rng = np.random.default_rng(seed)

    def findings(most: int) -> list[tuple[Point, float]]:
        number = int(rng.integers(0, most + 1))
        return [(tuple(rng.uniform(0, 40, 3)), float(rng.choice([-1.0, 6.0, 15.0]))) for _ in range(number)]

    scans = []
    for _ in range(int(rng.integers(2, 6))):
        nodules, irrelevant = findings(3), findings(2)
        near = [tuple(np.array(place) + rng.normal(0, 3, 3)) for place, _ in [*nodules, *irrelevant] for _ in range(2)]
        far = [tuple(rng.uniform(0, 40, 3)) for _ in range(int(rng.integers(0, 130)))]
        scans.append(Scan([(place, float(rng.integers(1, 60)) / 60) for place in [*near, *far]], nodules, irrelevant))
    return [*scans, Scan([((0.0, 0.0, 0.0), 0.5)], [((0.0, 0.0, 0.0), 4.0)])]


def test_the_vector_of_the_challenge() -> None:
    scans = [
        Scan([((0, 4.9, 0), 0.9), ((0, -3, 0), 0.95), ((50, 3, 0), 0.8)], [((0, 0, 0), 10), ((50, 0, 0), 6)]),
        Scan(
            [((1, 0, 0), 0.7), ((30, 1, 0), 0.99), ((90, 0, 0), 0.6)],
            [((0, 0, 0), 8)],
            [((30, 0, 0), 10)],
        ),
    ]

    marks = marks_of_scans(scans)

    np.testing.assert_allclose(froc(marks), [1 / 3, 1 / 3, *[2 / 3] * 5])
    assert competition_metric(marks) == pytest.approx(4 / 7)


@pytest.mark.parametrize("seed", range(12))
def test_any_scans_are_scored_as_by_the_rules_one_after_the_other(seed: int) -> None:
    scans = random_scans(seed)

    marks = marks_of_scans(scans)

    expected = literal_froc(scans)
    np.testing.assert_allclose(froc(marks), expected, atol=1e-12)
    assert competition_metric(marks) == pytest.approx(np.mean(expected), abs=1e-12)


def test_only_the_hundred_best_marks_of_a_scan_count() -> None:
    false = [((90.0, 0.0, float(n)), 0.9) for n in range(100)]
    scan = Scan([*false, ((0, 0, 0), 0.1)], [((0, 0, 0), 10)])

    assert len(marks_of_scans([scan]).scores) == 100
    assert competition_metric(marks_of_scans([scan])) == 0


def test_a_scan_of_weight_two_counts_twice_and_without_nodules_nothing_is_known() -> None:
    scans = random_scans(3)
    counts = np.array([2.0, *[1.0] * (len(scans) - 1)])

    weighed = froc(marks_of_scans(scans), np.stack([counts, np.zeros(len(scans))]))

    np.testing.assert_allclose(weighed[0], froc(marks_of_scans([scans[0], *scans])), atol=1e-12)
    assert np.isnan(weighed[1]).all()
    assert math.isnan(competition_metric(marks_of_scans([Scan([((0, 0, 0), 0.5)])])))
    assert competition_metric(marks_of_scans([Scan([], [((0, 0, 0), 5.0)])])) == 0


def test_intervals_draw_patients() -> None:
    scans = list(itertools.chain.from_iterable(random_scans(seed) for seed in range(4)))
    marks = marks_of_scans(scans)

    found = bootstrap_figure(
        lambda weights: competition_metric(marks, weights),
        [str(number // 2) for number in range(len(scans))],
        rng=np.random.default_rng(0),
        num_resamples=200,
    )

    assert found.mean == pytest.approx(float(competition_metric(marks)))
    assert 0 <= found.low < found.mean < found.high <= 1


def test_overlap_of_volumes_counts_voxels() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 5, (12, 3))
    boxes = np.concatenate([low, low + rng.integers(1, 6, (12, 3))], axis=1).astype(np.float64)
    sets = [set(itertools.product(*(range(int(a), int(b)) for a, b in zip(box[:3], box[3:], strict=True))))
            for box in boxes]  # fmt: skip

    expected = [[len(one & other) / len(one | other) for other in sets] for one in sets]

    np.testing.assert_allclose(overlaps(boxes, boxes), expected)
    in_mm = boxes * np.tile([0.7, 0.7, 2.5], 2)
    np.testing.assert_allclose(overlaps(in_mm, in_mm), expected)
