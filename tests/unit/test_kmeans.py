"""Spherical k-means on angles that can be drawn on paper."""

import math

import pytest
import torch
from torch import Tensor

from medssl_cli.nn.clusters import kmeans
from medssl_cli.nn.clusters.kmeans import draw_start, spherical_kmeans


def at(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


POINTS = at(0, 10, 20, 90, 100, 110, 200, 210)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_points(count: int = 200, size: int = 6) -> Tensor:
    return torch.randn(count, size, generator=generator(), dtype=torch.float64)


def test_three_groups_on_a_circle() -> None:
    clusters = spherical_kmeans(POINTS, POINTS[[0, 3, 6]])

    torch.testing.assert_close(clusters.prototypes, at(10, 100, 205))
    assert clusters.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    # two groups of cosines (cos 10, 1, cos 10) and one of (cos 5, cos 5)
    ten, five = math.cos(math.radians(10)), math.cos(math.radians(5))
    assert clusters.mean_cosines[-1].item() == pytest.approx((2 * (2 * ten + 1) + 2 * five) / 8)
    assert clusters.mean_cosines[-1].item() == pytest.approx(0.991453, abs=5e-7)


def test_a_cluster_without_points_stays() -> None:
    clusters = spherical_kmeans(POINTS, torch.cat([POINTS[[0, 3, 6]], at(270)]))

    torch.testing.assert_close(clusters.prototypes, at(10, 100, 205, 270))
    assert 3 not in clusters.labels


def test_the_mean_cosine_never_falls() -> None:
    points = random_points()

    mean_cosines = spherical_kmeans(points, draw_start(points, 9, generator()), num_rounds=15).mean_cosines

    assert len(mean_cosines) == 16
    assert (mean_cosines.diff() >= -1e-12).all()
    assert mean_cosines[-1] > mean_cosines[0]


def test_prototypes_are_unit_and_labels_are_the_nearest() -> None:
    points = random_points()

    clusters = spherical_kmeans(points, draw_start(points, 9, generator()))

    torch.testing.assert_close(clusters.prototypes.norm(dim=1), torch.ones(9, dtype=torch.float64))
    assert torch.equal(clusters.labels, (points @ clusters.prototypes.T).argmax(dim=1))


def test_lengths_of_embeddings_do_not_matter() -> None:
    points = random_points()
    start = draw_start(points, 9, generator())
    lengths = torch.rand(200, 1, generator=generator(1), dtype=torch.float64) + 0.1

    scaled = spherical_kmeans(points * lengths, start * 7)

    assert torch.equal(scaled.labels, spherical_kmeans(points, start).labels)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    points = random_points()
    start = draw_start(points, 9, generator())
    whole = spherical_kmeans(points, start)

    monkeypatch.setattr(kmeans, "ROWS_AT_ONCE", 7)
    chunked = spherical_kmeans(points, start)

    assert torch.equal(chunked.labels, whole.labels)
    torch.testing.assert_close(chunked.prototypes, whole.prototypes)


def test_first_prototypes_are_different_embeddings_and_follow_the_generator() -> None:
    points = random_points(20)

    drawn = draw_start(points, 20, generator())

    assert sorted(map(tuple, drawn.tolist())) == sorted(map(tuple, points.tolist()))
    assert torch.equal(draw_start(points, 5, generator()), drawn[:5])
    assert not torch.equal(draw_start(points, 5, generator(1)), drawn[:5])


def test_more_prototypes_than_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="21 prototypes need as many embeddings; there are 20"):
        draw_start(random_points(20), 21, generator())
