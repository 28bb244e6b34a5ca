"""Benchmarks of 2D methods measure what they say: opponents learn too, probes are answered once, tables add up."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from medssl_cli.bench.probes import Asked, compare_probes, parse_asked, probes_csv
from medssl_cli.bench.published_swav import Crops, PublishedStep, larc, plain_sinkhorn
from medssl_cli.bench.slices import RELEASED, RELEASED_STEP, TRUNK, Setting, bench_slices
from medssl_cli.cache.store import Cache
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.errors import UsageError
from medssl_cli.nn.backbones import resnet
from medssl_cli.nn.clusters.sinkhorn import sinkhorn_codes
from medssl_cli.nn.lars import Lars
from medssl_cli.report.probes import probes_plot
from medssl_cli.talk import Silence
from tests.e2e.test_slice_methods import recipe
from tests.slice_cache import slice_cache

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


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return slice_cache(tmp_path_factory.mktemp("probes") / "cache")


def test_arms_are_probed_once_and_compared_with_the_untrained_network(cache: Cache, tmp_path: Path) -> None:
    for arm in ("swav", "joint"):
        pretrain(recipe(arm, steps=1), cache, tmp_path / f"{arm}-0", device="cpu", talk=Silence())
    inits = {arm: str(tmp_path / f"{arm}-{{seed}}") for arm in ("swav", "joint")}
    asked = [Asked("modality", None)]

    def compare() -> dict[str, object]:
        return compare_probes(inits, asked, cache, tmp_path / "out", num_seeds=1, device="cpu", talk=Silence())

    first = compare()
    answers = sorted((tmp_path / "out").glob("*.json"))
    assert len(answers) == 4
    changed = json.loads(answers[0].read_bytes())
    changed["num_patients"] = 12345
    answers[0].write_text(json.dumps(changed))
    again = compare()

    levels = {(level["arm"], level["probe"]): level for level in first["levels"]}
    assert set(levels) == {(arm, probe) for arm in ("untrained", "swav", "joint") for probe in ("linear", "knn")}
    row = next(row for row in first["rows"] if (row["arm"], row["probe"]) == ("swav", "knn"))
    assert levels["swav", "knn"]["gained"] == pytest.approx(row["auroc"] - row["untrained_auroc"])
    assert [row["num_patients"] for row in again["rows"]].count(12345) == 1  # it was read, not asked again
    assert probes_csv(first).count("\n") == 5
    assert b"<svg" in probes_plot(first)


def test_questions_are_sets_and_findings() -> None:
    assert parse_asked("nih:any") == Asked("nih", "any")
    assert parse_asked("level").name == "level"
    for text in ("", ":any", "nih:"):
        with pytest.raises(UsageError, match="E_USAGE"):
            parse_asked(text)
