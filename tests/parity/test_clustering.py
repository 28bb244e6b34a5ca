"""Clustering by tensors against the equations written out number by number."""

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.nn.clusters.kmeans import draw_start, spherical_kmeans
from medssl_cli.nn.clusters.losses import UNLABELLED, cluster_prediction_loss, swapped_prediction_loss
from medssl_cli.nn.clusters.sinkhorn import sinkhorn_codes
from medssl_cli.nn.lars import Lars
from tests.parity import clustering_literal as literal

SEEDS = range(3)


def scores(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("epsilon", "num_iterations"), [(0.05, 3), (0.03, 1), (0.5, 7)])
def test_codes(seed: int, epsilon: float, num_iterations: int) -> None:
    settings = {"epsilon": epsilon, "num_iterations": num_iterations}
    given = scores(seed, 7, 4)

    expected = literal.plain_sinkhorn(given.tolist(), **settings)  # type: ignore[arg-type]

    found = sinkhorn_codes(given, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("num_views", "num_global"), [(2, 2), (2, 1), (5, 2)])
def test_swapped_prediction(seed: int, num_views: int, num_global: int) -> None:
    settings = {"num_global": num_global, "temperature": 0.2, "epsilon": 0.07, "num_iterations": 2}
    views = [scores(10 * seed + view, 6, 4) for view in range(num_views)]

    expected = literal.swapped_prediction([view.tolist() for view in views], **settings)  # type: ignore[arg-type]

    found = swapped_prediction_loss(views, **settings)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_cluster_prediction(seed: int) -> None:
    heads = [scores(seed, 3, 5, 4), scores(seed + 10, 3, 5, 2), scores(seed + 20, 3, 5, 3)]
    labels = [[0, 1, UNLABELLED, 3, 0], [1, 0, 0, UNLABELLED, UNLABELLED], [UNLABELLED] * 5]

    expected = literal.cluster_prediction([head.tolist() for head in heads], labels, temperature=0.2)

    found = cluster_prediction_loss(heads, torch.tensor(labels), temperature=0.2)
    assert found.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_kmeans(seed: int) -> None:
    points = scores(seed, 40, 3)
    start = draw_start(points, 6, torch.Generator().manual_seed(seed))
    start[5] = -points.sum(0)  # away from the crowd, and soon without members

    prototypes, labels = literal.spherical_kmeans(points.tolist(), start.tolist(), num_rounds=4)

    found = spherical_kmeans(points, start, num_rounds=4)
    assert found.labels.tolist() == labels
    torch.testing.assert_close(found.prototypes, torch.tensor(prototypes, dtype=torch.float64))


@pytest.mark.parametrize("seed", SEEDS)
def test_lars(seed: int) -> None:
    settings = {"lr": 0.7, "momentum": 0.9, "weight_decay": 0.03, "trust": 0.02}
    start, gradients = scores(seed, 2, 3), scores(seed + 1, 5, 2, 3)
    gradients[2] = 0
    parameter = nn.Parameter(start.clone())
    optimizer = Lars([parameter], **settings)
    expected, velocity = start.flatten().tolist(), [0.0] * 6

    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        expected, velocity = literal.larc_step(expected, gradient.flatten().tolist(), velocity, settings)

    torch.testing.assert_close(parameter.detach().flatten(), torch.tensor(expected, dtype=torch.float64))
