"""Signs of collapse, at the two ends that are known by hand and past the limits."""

import pytest
import torch

from medssl_cli.nn.clusters.health import alarms, cluster_health


def test_hard_codes_on_all_prototypes() -> None:
    # 4 images, one per prototype; unit embeddings +-e1, +-e2: per element the variance is 2/4, so the spread is
    # sqrt(1/2) sqrt(2) = 1
    embeddings = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]) * 7

    health = cluster_health(torch.eye(4), embeddings)

    assert health.usage == pytest.approx(1)
    assert health.used_share == 1
    assert health.entropy == 0
    assert health.spread == pytest.approx(1)
    assert alarms(health) == []


def test_all_images_on_one_prototype() -> None:
    codes = torch.zeros(6, 20)
    codes[:, 3] = 1

    health = cluster_health(codes, torch.ones(6, 8))

    assert health.usage == pytest.approx(1 / 20)
    assert health.used_share == 1 / 20
    assert health.spread == pytest.approx(0, abs=1e-6)
    assert [text.split(":")[0] for text in alarms(health)] == [
        "only 5.0% of the prototypes carry the codes",
        "embeddings are nearly equal",
    ]


def test_codes_that_say_nothing() -> None:
    embeddings = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))

    health = cluster_health(torch.full((64, 5), 0.2), embeddings)

    assert health.entropy == pytest.approx(1)
    # 64 directions drawn alike in 16 dimensions: the variance of an element is 1/16 but for chance
    assert health.spread == pytest.approx(1, abs=0.05)
    assert alarms(health) == ["codes are nearly uniform: 100.0% of the largest entropy"]


def test_half_of_the_prototypes_in_use() -> None:
    codes = torch.eye(4)[[0, 1, 0, 1]]

    health = cluster_health(codes, torch.eye(4))

    assert health.usage == pytest.approx(0.5)
    assert health.used_share == 0.5
