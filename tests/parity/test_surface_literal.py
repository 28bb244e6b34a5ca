"""HD95, NSD and ASSD against a restatement of their definitions by loops over all voxels and all pairs."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medssl_cli.metrics.surface import assd_mm, hd95_mm, nsd, structure_scores, surface_distances

Voxel = tuple[int, int, int]

SPACINGS = st.tuples(*[st.sampled_from([0.4, 0.72, 1.0, 1.5, 10.0])] * 3)
SHAPES = st.tuples(*[st.integers(1, 5)] * 3)


@st.composite
def pairs_of_masks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    masks = arrays.arrays(bool, draw(SHAPES))
    return draw(masks), draw(masks)


def is_marked(mask: np.ndarray, voxel: Voxel) -> bool:
    within = all(0 <= index < size for index, size in zip(voxel, mask.shape, strict=True))
    return within and bool(mask[voxel])


def literal_surface(mask: np.ndarray) -> list[Voxel]:
    """Marked voxels with an unmarked 6-neighbour; an axis along which the image is one voxel deep has no neighbours."""
    found = []
    for voxel in itertools.product(*map(range, mask.shape)):
        neighbours = [
            tuple(index + step * (axis == other) for other, index in enumerate(voxel))
            for axis in range(3)
            if mask.shape[axis] > 1
            for step in (-1, 1)
        ]
        if mask[voxel] and not all(is_marked(mask, neighbour) for neighbour in neighbours):
            found.append(voxel)
    return found


def literal_distances(points: list[Voxel], others: list[Voxel], spacing: tuple[float, ...]) -> list[float]:
    return [
        min(
            math.sqrt(sum(((a - b) * s) ** 2 for a, b, s in zip(point, other, spacing, strict=True)))
            for other in others
        )
        for point in points
    ]


def literal_percentile95(values: list[float]) -> float:
    """The value at rank 0.95 (n - 1), interpolated linearly between its neighbours."""
    ordered = sorted(values)
    rank = 0.95 * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


@settings(max_examples=100, deadline=None)
@given(masks=pairs_of_masks(), spacing=SPACINGS, tolerance=st.sampled_from([0.0, 0.8, 1.0, 3.0]))
def test_surface_metrics_equal_their_definitions(masks, spacing, tolerance):
    surfaces = [literal_surface(mask) for mask in masks]
    assume(all(surfaces))
    there, back = (
        literal_distances(surfaces[0], surfaces[1], spacing),
        literal_distances(surfaces[1], surfaces[0], spacing),
    )
    close = sum(distance <= tolerance + 1e-4 for distance in there + back)

    distances = surface_distances(*masks, spacing)

    assert np.allclose(distances.to_reference, there, rtol=1e-12)
    assert np.allclose(distances.to_prediction, back, rtol=1e-12)
    assert hd95_mm(distances) == pytest.approx(max(literal_percentile95(there), literal_percentile95(back)))
    assert assd_mm(distances) == pytest.approx(sum(there + back) / len(there + back))
    assert nsd(distances, tolerance) == close / len(there + back)


@settings(max_examples=50, deadline=None)
@given(masks=pairs_of_masks(), spacing=SPACINGS, margin=st.integers(1, 3))
def test_background_around_the_image_changes_nothing(masks, spacing, margin):
    assume(all(mask.any() for mask in masks) and min(masks[0].shape) > 1)
    near, far = (structure_scores(*(np.pad(mask, pad) for mask in masks), spacing, 1.0) for pad in (0, margin))

    assert near.outcome == far.outcome
    assert dataclasses.astuple(near)[:-1] == pytest.approx(dataclasses.astuple(far)[:-1])
