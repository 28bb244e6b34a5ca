"""Precision, averaged weights, compilation and the like: each does what it says, and resuming stays exact."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

from medssl_cli import methods
from medssl_cli.base.errors import UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.checkpoints import CheckpointFolder
from medssl_cli.engine.devices import make_fabric
from medssl_cli.engine.live_page import Outlets
from medssl_cli.engine.metrics_log import read_health, read_metrics
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.engine.processes import Spread
from medssl_cli.engine.weights import load_encoder
from medssl_cli.report.run import run_page
from tests.e2e.test_training import pretrain_recipe
from tests.environment import give_known_key
from tests.toy_cache import toy_cache

pytestmark = pytest.mark.slow

STEPS = 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    root = tmp_path_factory.mktemp("toy") / "cache"
    give_known_key(root)
    return toy_cache(root, num_patients=6)


def run(cache: Cache, root: Path, steps: int = STEPS, **changes: object) -> Path:
    pretrain(pretrain_recipe(steps, **changes), cache, root, device="cpu", talk=Silence())
    return root


def weights(root: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(root / "encoder.safetensors")


def losses(root: Path) -> list[float]:
    return [entry["loss"] for entry in read_metrics(root)]


@pytest.fixture(scope="module")
def plain(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(cache, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp16", "ema_decay": 0.9},
        {"precision": "bf16", "accumulate": 2, "optimizer.amsgrad": True},
        {"optimizer.name": "sgd", "channels_last": True, "data.num_workers": 1},
    ],
    ids=["fp16 averaged", "bf16 accumulated amsgrad", "sgd channels last"],
)
def test_a_run_taken_up_again_ends_with_the_same_bits(cache: Cache, tmp_path: Path, changes: dict[str, object]) -> None:
    whole = run(cache, tmp_path / "whole", **changes)
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    (again / "summary.json").unlink()
    last = sorted((again / "checkpoints").iterdir())
    for path in last[1:]:
        path.unlink()
    assert last[0].name.startswith("step-00000002-")

    run(cache, again, **changes)

    expected = weights(whole)
    assert all(np.array_equal(value, expected[name]) for name, value in weights(again).items())
    assert losses(again) == losses(whole)
    assert len(losses(whole)) == STEPS
    assert read_health(again) == read_health(whole)


def test_the_gradient_scaler_of_fp16_is_in_the_checkpoint(cache: Cache, tmp_path: Path) -> None:
    root = run(cache, tmp_path / "run", steps=4, precision="fp16")

    checkpoint = CheckpointFolder(root / "checkpoints").load_last(pytest.fail)

    assert checkpoint is not None
    assert checkpoint.values["scaler"]["_growth_tracker"] + checkpoint.values["scaler"]["scale"] > 4
    assert all(value.isfinite().all() for value in checkpoint.tensors.values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_near_full_precision_and_not_the_same(
    cache: Cache, plain: Path, tmp_path: Path, precision: str
) -> None:
    mixed = run(cache, tmp_path / "run", precision=precision)

    assert losses(mixed)[0] != losses(plain)[0]
    assert losses(mixed)[0] == pytest.approx(losses(plain)[0], abs=0.05)
    assert all(value.dtype == np.float32 for value in weights(mixed).values())


def test_the_encoder_of_averaged_weights_is_their_average_and_says_so(
    cache: Cache, plain: Path, tmp_path: Path
) -> None:
    averaged = run(cache, tmp_path / "run", ema_decay=0.9)

    checkpoint = CheckpointFolder(averaged / "checkpoints").load_last(pytest.fail)
    assert checkpoint is not None
    assert losses(averaged) == losses(plain)
    trained = weights(plain)
    for name, value in weights(averaged).items():
        assert np.array_equal(value, checkpoint.tensors[f"average.{name}"].numpy()), name
        assert np.array_equal(trained[name], checkpoint.tensors[f"method.backbone.{name}"].numpy()), name
    assert any(not np.array_equal(value, trained[name]) for name, value in weights(averaged).items())
    with safetensors.safe_open(averaged / "encoder.safetensors", framework="np") as file:
        assert file.metadata()["ema_decay"] == "0.9"
    assert load_encoder(averaged).backbone.name == "unet"


def test_two_accumulated_batches_are_one_batch_of_twice_the_size(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise and without what looks across the batch, a mean of two halves is the mean of the whole."""
    folder = Path(__file__).parents[1] / "sharded" / "methods"
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    halves, whole = (
        run(
            cache,
            tmp_path / f"{accumulate}",
            method="{name: sharded, noise_std: 0.0, contrast: 0.0}",
            accumulate=accumulate,
            **{"data.batch_size": 4 // accumulate, "data.crop_size": [32, 32, 32]},
        )
        for accumulate in (2, 1)
    )

    # The crops are whole images, so both orders of crops show the same images in the same steps.
    np.testing.assert_allclose(losses(halves), losses(whole), rtol=1e-4)


def test_channels_last_changes_nothing_but_rounding(cache: Cache, plain: Path, tmp_path: Path) -> None:
    np.testing.assert_allclose(losses(run(cache, tmp_path / "run", channels_last=True)), losses(plain), atol=1e-3)


def test_a_compiled_backbone_gives_the_same_numbers(cache: Cache, tmp_path: Path) -> None:
    small = {"backbone": "{name: unet, channels: [4, 8], strides: [2, 4], num_res_units: 0}"}
    eager = run(cache, tmp_path / "eager", steps=2, **small)

    compiled = run(cache, tmp_path / "compiled", steps=2, compile=True, **small)

    np.testing.assert_allclose(losses(compiled), losses(eager), atol=1e-4)
    assert weights(compiled).keys() == weights(eager).keys()


def test_without_a_compiler_the_recipe_is_refused_with_what_to_do(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config

    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nonexistent/g++",))
    monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)

    with pytest.raises(UsageError, match="E_COMPILE") as caught:
        run(cache, tmp_path / "run", steps=2, compile=True, backbone="{name: unet, channels: [4], strides: [8]}")

    assert "compile=false" in caught.value.hint


def test_the_embeddings_are_looked_at_at_the_start_now_and_then_and_at_the_end(cache: Cache, tmp_path: Path) -> None:
    root = tmp_path / "run"
    recipe = pretrain_recipe(5, health_every=2)

    summary = pretrain(recipe, cache, root, device="cpu", talk=Silence(), outlets=Outlets(page=run_page))

    looks = read_health(root)
    assert [entry["step"] for entry in looks] == [0, 2, 4, 5]
    assert 1 <= looks[0]["health/rank"] <= 16
    assert looks[0]["probe/centre of seg/chance"] == pytest.approx(1 / 3)
    page = (root / "page.html").read_text()
    assert "centre of seg, linear probe" in page
    assert all(code in page for code in summary.alarms)
    assert json.loads((root / "summary.json").read_text())["alarms"] == summary.alarms


def test_looking_does_not_change_the_training(cache: Cache, plain: Path, tmp_path: Path) -> None:
    often = run(cache, tmp_path / "run", health_every=1)

    assert losses(often) == losses(plain)
    assert all(np.array_equal(value, weights(plain)[name]) for name, value in weights(often).items())


@pytest.mark.parametrize(
    ("device", "precision", "spread"),
    [
        ("cuda:1", "fp32", Spread(num_devices=2)),
        ("cpu", "fp16", Spread(num_devices=2, strategy="fsdp")),
        ("cpu", "fp32", Spread(strategy="fsdp")),
        ("cuda", "fp32", Spread(num_devices=64)),
    ],
)
def test_hardware_that_does_not_go_together_is_refused(
    device: str, precision: str, spread: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(UsageError, match="E_DEVICE"):
        make_fabric(device, precision, spread)
