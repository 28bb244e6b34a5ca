"""Benchmarks of 2D methods measure what they say: opponents learn too, tables add up."""

from typing import Literal

import numpy as np
import pytest
import torch

from medssl_cli.nn.backbones import resnet
from medssl_cli.nn.clusters.sinkhorn import sinkhorn_codes
from medssl_cli.nn.lars import Lars
from tests.bench.published_swav import Crops, PublishedStep, larc, plain_sinkhorn
from tests.bench.slices import RELEASED, RELEASED_STEP, TRUNK, Setting, bench_slices

TINY = Setting(depth=18, width=8, size=32, local_size=16, num_local=1, batch_size=4, volumes=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_line_is_compared_with_its_own_reference(precision: Literal["fp32", "bf16"]) -> None:
    found = bench_slices(TINY, rounds=1, precision=precision)

    assert found.to_json()["precision"] == precision
    references = {step.name: step.reference for step in found.steps}
    assert references[RELEASED] == RELEASED
    assert references["SwAV here, loading and step"] == RELEASED
    assert references["SwAV here, step alone"] == RELEASED_STEP
    assert references["joint step with volumes, loading and step"] == TRUNK
    assert references["joint step with volumes, step alone"] == TRUNK
    assert all(step.wall_s > 0 for step in found.steps)
    assert [row[3] for row in found.rows() if row[0] in (RELEASED, RELEASED_STEP, TRUNK)] == ["1.00"] * 3


def test_the_opponent_has_our_codes_and_our_optimiser() -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, 4).clamp(-1, 1)
    torch.testing.assert_close(plain_sinkhorn(scores.clone()), sinkhorn_codes(scores), rtol=1e-4, atol=1e-6)

    one, other = (torch.nn.Linear(3, 2) for _ in range(2))
    other.load_state_dict(one.state_dict())
    theirs = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9)
    ours = Lars(other.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-6)
    for _ in range(3):
        for network, optimizer in ((one, theirs), (other, ours)):
            optimizer.zero_grad()
            network(torch.ones(1, 3)).square().sum().backward()
            if optimizer is theirs:
                larc(theirs)
            optimizer.step()
    torch.testing.assert_close(one.weight, other.weight)


def test_the_opponent_learns() -> None:
    torch.manual_seed(0)
    step = PublishedStep(
        resnet.build(1, depth=18, width=8), hidden_dim=16, num_prototypes=4, crops=Crops(2, 1, 32, 16), device="cpu"
    )
    step.optimizer = torch.optim.Adam(step.optimizer.param_groups[0]["params"], lr=1e-3)
    rng = np.random.default_rng(0)
    crops = step.load([rng.integers(0, 255, (40, 40)).astype(np.uint8) for _ in range(8)])

    losses = [step.step(crops) for _ in range(15)]

    assert [tuple(crop.shape) for crop in crops] == [(8, 1, 32, 32), (8, 1, 32, 32), (8, 1, 16, 16)]
    assert losses[-1] < losses[0]
