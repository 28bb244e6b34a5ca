"""Pre-training and fine-tuning end to end on toy images: they learn, resume exactly, and refuse what they should."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from medssl_cli.base.classes import WantedClasses
from medssl_cli.base.errors import UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.evaluate import split_of_manifest
from medssl_cli.engine.finetune import Choices, finetune
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.engine.predict import torch_predict
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.engine.weights import load_encoder
from medssl_cli.imaging.segment import segment_volume
from medssl_cli.recipe import PretrainRecipe, TaskRecipe, find_recipe, load_recipe
from medssl_cli.tasks import task_options
from medssl_cli.tasks.segmentation.scores import evaluate
from tests import toy_recipes
from tests.toy_cache import toy_cache
from tests.toy_recipes import BALLS, CT

TINY_UNET = {"name": "unet", "channels": [8, 16, 16], "strides": [1, 2, 2], "num_res_units": 1}


def pretrain_recipe(steps: int, **changes: object) -> PretrainRecipe:
    overrides = [
        "backbone={name: unet, channels: [4, 8, 16], strides: [2, 2, 2], num_res_units: 1}",
        "data.spacing_mm=[2.0, 2.0, 2.0]",
        "data.crop_size=[8, 8, 32]",
        "data.batch_size=2",
        "method.projector_dim=32",
        "checkpoint_every=2",
        "log_every=1",
        f"steps={steps}",
        *(f"{key}={value}" for key, value in changes.items()),
    ]
    recipe = load_recipe(find_recipe("voco-tiny"), overrides)
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def task_recipe(steps: int) -> TaskRecipe:
    return toy_recipes.task_recipe(
        {
            "name": "balls",
            "backbone": TINY_UNET,
            "task": BALLS,
            "data": {**CT, "crop_size": [32, 32, 32], "batch_size": 2},
            "augmentation": {"flip_prob": 0.0},
            "optimizer": {"learning_rate": 1e-2},
            "steps": steps,
            "validate_every": 20,
            "checkpoint_every": 10,
            "ema_decay": 0.9,
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return toy_cache(tmp_path_factory.mktemp("toy") / "cache", num_patients=12)


def weights(run: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run / "encoder.safetensors")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(cache: Cache, tmp_path: Path) -> None:
    recipe = pretrain_recipe(6)
    pretrain(recipe, cache, tmp_path / "run", device="cpu", talk=Silence())
    expected = weights(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    last = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)

    pretrain(recipe, cache, tmp_path / "run", device="cpu", talk=Silence())

    assert all(np.array_equal(expected[name], value) for name, value in weights(tmp_path / "run").items())


def test_a_run_folder_refuses_another_recipe(cache: Cache, tmp_path: Path) -> None:
    pretrain(pretrain_recipe(1), cache, tmp_path / "run", device="cpu", talk=Silence())

    with pytest.raises(UsageError, match="E_RECIPE_CHANGED"):
        pretrain(pretrain_recipe(1, seed=1), cache, tmp_path / "run", device="cpu", talk=Silence())


def test_worker_processes_change_nothing(cache: Cache, tmp_path: Path) -> None:
    pretrain(pretrain_recipe(2), cache, tmp_path / "inline", device="cpu", talk=Silence())
    pretrain(pretrain_recipe(2, **{"data.num_workers": 1}), cache, tmp_path / "worker", device="cpu", talk=Silence())

    inline, worker = weights(tmp_path / "inline"), weights(tmp_path / "worker")
    assert all(np.array_equal(inline[name], worker[name]) for name in inline)


@pytest.fixture(scope="module")
def finetuned(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finetune") / "run"
    finetune(task_recipe(80), cache, root, Choices(), device="cpu", talk=Silence())
    return root


def test_fine_tuning_learns_the_large_ball(cache: Cache, finetuned: Path) -> None:
    run = load_finetuned(finetuned)
    recipe = run.recipe
    predict = torch_predict(run.network, "cpu")
    records = split_of_manifest(cache, run.manifest, "test")

    scores = evaluate(
        lambda volume: segment_volume(
            predict, volume, preprocessing=recipe.data.preprocessing, tile=recipe.tile_size, overlap=0.5
        ),
        cache,
        records,
        label_set="seg",
        wanted=WantedClasses.of(task_options(run.recipe)),
        nsd_tolerance_mm=2.0,
        talk=Silence(),
    )

    # The small ball of a few voxels is learnt from some beginnings only.
    assert scores.estimates["ball_1"]["dice"].mean > 0.5
    assert max(scores.constant_dice.values()) < 0.1


def test_no_patient_is_in_two_splits(finetuned: Path) -> None:
    manifest = load_finetuned(finetuned).manifest
    patients = {name: {entry["patient"] for entry in entries} for name, entries in manifest["splits"].items()}

    assert {name: len(members) for name, members in patients.items()} == {"train": 7, "val": 2, "test": 3}
    assert not patients["train"] & patients["val"]
    assert not (patients["train"] | patients["val"]) & patients["test"]


def test_pretraining_leaves_the_test_patients_out(cache: Cache, finetuned: Path, tmp_path: Path) -> None:
    pretrain(pretrain_recipe(1), cache, tmp_path / "run", device="cpu", talk=Silence())

    seen = {entry["patient"] for entry in json.loads((tmp_path / "run/manifest.json").read_text())["splits"]["train"]}
    test = {entry["patient"] for entry in load_finetuned(finetuned).manifest["splits"]["test"]}
    assert len(seen) == 9
    assert not seen & test


def test_the_pretrained_encoder_arrives_whole(cache: Cache, tmp_path: Path) -> None:
    same = {"backbone": "{name: unet, channels: [8, 16, 16], strides: [1, 2, 2], num_res_units: 1}"}
    pretrain(pretrain_recipe(2, **same), cache, tmp_path / "ssl", device="cpu", talk=Silence())
    encoder = load_encoder(tmp_path / "ssl")

    finetune(task_recipe(1), cache, tmp_path / "run", Choices(encoder=encoder), device="cpu", talk=Silence())

    trained = load_finetuned(tmp_path / "run").network.get_submodule("backbone").state_dict()
    assert trained.keys() == encoder.weights.keys()
    difference = max(float((trained[name] - encoder.weights[name]).abs().max()) for name in trained)
    assert difference < 0.05  # one warm-up step away from where it came


def test_a_time_budget_ends_the_training(cache: Cache, tmp_path: Path) -> None:
    summary = finetune(
        task_recipe(10**6), cache, tmp_path / "run", Choices(max_minutes=0.05), device="cpu", talk=Silence()
    )

    assert 0 < summary.steps < 10**6
    scores = [row["val_dice"] for row in read_metrics(tmp_path / "run") if "val_dice" in row]
    assert max(scores) == pytest.approx(summary.best_score)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_profile_says_where_the_time_of_a_step_goes(cache: Cache, tmp_path: Path, kind: str) -> None:
    if kind == "pretrain":
        pretrain(pretrain_recipe(3), cache, tmp_path / "run", device="cpu", talk=Silence(), profile_steps=10)
    else:
        finetune(task_recipe(3), cache, tmp_path / "run", Choices(), device="cpu", talk=Silence(), profile_steps=10)

    found = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert found["steps"] == 2  # all but the first
    assert set(found["parts"]) == {"data", "to_device", "forward", "backward", "optimiser", "log", "rest"}
    assert found["bottleneck"] in found["parts"]
