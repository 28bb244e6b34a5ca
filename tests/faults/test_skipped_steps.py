"""Batches that make a loss that is not finite: the step is left out, nothing of it stays, and the run goes on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from medssl_cli.base.errors import GateError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.methods import Losses, Views, joint
from tests.e2e.test_slice_methods import recipe
from tests.listener import Listener
from tests.slice_cache import slice_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return slice_cache(tmp_path_factory.mktemp("slices") / "cache")


def break_steps(monkeypatch: pytest.MonkeyPatch, *broken: int, of: int = 6) -> None:
    plain = joint.Method.loss

    def loss(self: joint.Method, views: Views, progress: float) -> Losses:
        if round(progress * of) in broken:
            assert views.slices is not None
            images = tuple(group.clone() for group in views.images)
            for group in images:
                group[:: len(views.slices.ids)] = torch.nan  # all views of the first image
            views = replace(views, images=images)
        return plain(self, views, progress)

    monkeypatch.setattr(joint.Method, "loss", loss)


def last_state(root: Path) -> dict[str, np.ndarray[Any, Any]]:
    path = max((root / "checkpoints").glob("step-*"))
    return safetensors.numpy.load_file(next(path.glob("*.safetensors")) if path.is_dir() else path)


@pytest.mark.parametrize("name", ["joint", "joint clusters"])
def test_a_broken_batch_is_left_out_and_nothing_of_it_stays(
    name: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    break_steps(monkeypatch, 3)

    summary = pretrain(recipe(name), cache, tmp_path / "run", device="cpu", talk=listener)

    assert summary.steps == 6
    assert [entry["loss"] is None for entry in read_metrics(tmp_path / "run")] == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert [note for note in listener.notes if note.startswith("W_STEP_SKIPPED: the loss of step 4 is not finite")]
    for key, values in last_state(tmp_path / "run").items():
        assert np.isfinite(values).all(), key
    facts = json.loads((tmp_path / "run" / "skipped" / "step-00000004.json").read_text())
    assert facts["loss"] == "nan"
    known = {entry["item"] for entry in json.loads((tmp_path / "run" / "manifest.json").read_text())["splits"]["train"]}
    assert set(facts["items"]) <= known
    evidence = safetensors.numpy.load_file(tmp_path / "run" / "skipped" / "step-00000004.safetensors")
    assert np.isnan(evidence["image_head.scores"]).any()
    assert set(evidence) == {f"{kind}_head.{what}" for kind in ("image", "volume") for what in ("scores", "codes")}


def test_the_network_is_that_of_the_step_before(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"checkpoint_every": 1, "steps": 6}
    break_steps(monkeypatch, 5)

    pretrain(recipe("joint", **settings), cache, tmp_path / "run", device="cpu", talk=Silence())

    states = [
        safetensors.numpy.load_file(path) for path in sorted((tmp_path / "run" / "checkpoints").rglob("*.safetensors"))
    ]
    assert len(states) >= 2
    network = {key: values for key, values in states[-1].items() if key.startswith("method.backbone.")}
    assert any("running_mean" in key for key in network)
    for key, values in network.items():
        np.testing.assert_array_equal(values, states[-2][key], err_msg=key)


def test_too_many_in_a_row_end_the_run(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    break_steps(monkeypatch, 1, 3, 4, 5)

    with pytest.raises(GateError, match="E_DIVERGED: the loss of step 6 is not finite"):
        pretrain(recipe("joint", max_skipped=2), cache, tmp_path / "run", device="cpu", talk=listener)

    skipped = [note for note in listener.notes if note.startswith("W_STEP_SKIPPED")]
    assert len(skipped) == 3
