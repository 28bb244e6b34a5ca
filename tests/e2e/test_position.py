"""Dense position end to end on toy images: exact resume, its picture, and the encoder in a task of slices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.build import build_task
from medssl_cli.engine.live_page import Outlets
from medssl_cli.engine.metrics_log import read_health, read_metrics
from medssl_cli.engine.pretrain import PretrainSummary, pretrain
from medssl_cli.engine.runs import open_run
from medssl_cli.engine.weights import initialise_task, load_encoder
from medssl_cli.recipe import PretrainRecipe, TaskRecipe
from medssl_cli.report.run import run_page
from tests.interrupted import interrupted_copy, require_the_same_bits, whole_runs
from tests.slice_cache import slice_cache
from tests.toy_recipes import pretrain_recipe, task_recipe

pytestmark = pytest.mark.slow

STEPS = 4
SHAPE = {"channels": [4, 8], "strides": [2, 2], "num_res_units": 0, "norm": "batch"}
KINDS: dict[str, dict[str, Any]] = {
    "slices": {"crop_size": [16, 16, 1], "batch_size": 6},
    "volumes": {"crop_size": [16, 16, 16], "batch_size": 2, "modality": "CT"},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def recipe(kind: str, **changes: object) -> PretrainRecipe:
    return pretrain_recipe(
        {
            "backbone": {"name": "unet", "spatial_dims": 2 if kind == "slices" else 3, **SHAPE},
            "method": {"name": "position", "decoder": {"norm": "batch"}},
            "data": {"zscore": True, **KINDS[kind]},
            "steps": STEPS,
            "checkpoint_every": 2,
            "log_every": 1,
            "health_every": 2,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return slice_cache(tmp_path_factory.mktemp("position") / "cache", num_volumes=6, num_pictures=6)


@pytest.fixture(scope="module")
def whole_run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The undisturbed run of a kind; one for all tests that ask for it."""

    def train(kind: str, root: Path) -> PretrainSummary:
        return pretrain(recipe(kind), cache, root, device="cpu", talk=Silence(), outlets=Outlets(page=run_page))

    return whole_runs(tmp_path_factory.mktemp("whole"), train, steps=STEPS)


@each_kind
def test_a_run_that_lost_its_later_checkpoints_ends_with_the_same_bits(
    kind: str, cache: Cache, whole_run: Callable[[str], Path], tmp_path: Path
) -> None:
    whole, broken = whole_run(kind), tmp_path / "broken"
    interrupted_copy(whole, broken, step=2)

    pretrain(recipe(kind), cache, broken, device="cpu", talk=Silence())

    require_the_same_bits(broken, whole)


@each_kind
def test_a_run_shows_its_baselines_and_its_picture(kind: str, whole_run: Callable[[str], Path]) -> None:
    root = whole_run(kind)

    last = read_metrics(root)[-1]
    assert 0 < last["baseline/place_within_crop"] < last["baseline/best_constant"]
    assert last["of_place_within_crop"] > 0
    assert read_health(root)[-1]["health/rank"] >= 1
    [picture] = (root / "pictures").glob("*.png")
    with Image.open(picture) as shown:
        assert shown.mode == "RGB"
        assert shown.width == shown.height  # three pictures of three views
    assert "Pictures of the method" in (root / "page.html").read_text(encoding="utf-8")
    assert not (root / "decoder.safetensors").exists()


def test_the_number_of_workers_changes_nothing(cache: Cache, whole_run: Callable[[str], Path], tmp_path: Path) -> None:
    data = {"zscore": True, **KINDS["slices"], "num_workers": 1}
    pretrain(recipe("slices", data=data, steps=2), cache, tmp_path / "run", device="cpu", talk=Silence())

    first = read_metrics(whole_run("slices"))[0]
    assert read_metrics(tmp_path / "run")[0]["loss"] == first["loss"]


def toy_task(**decoder: object) -> TaskRecipe:
    return task_recipe(
        {
            "backbone": {"name": "unet", "spatial_dims": 2, **SHAPE},
            "task": {"name": "segmentation", "classes": {1: "ball"}, "decoder": decoder},
            "data": {"zscore": True, "crop_size": [16, 16, 1], "batch_size": 2},
        }
    )


def test_a_task_of_slices_takes_the_encoder_and_nothing_else(whole_run: Callable[[str], Path]) -> None:
    task, before = build_task(toy_task()), build_task(toy_task())

    said = initialise_task(task, load_encoder(whole_run("slices")), classes=("ball",))

    encoder = safetensors.numpy.load_file(open_run(whole_run("slices")).encoder_path)
    assert "the whole encoder" in said
    for name, tensor in task.get_submodule("backbone").state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), encoder[name])
    for name, tensor in task.get_submodule("decoder").state_dict().items():
        assert torch.equal(tensor, before.get_submodule("decoder").state_dict()[name]), name


def test_a_decoder_that_was_kept_starts_the_task_where_it_fits(cache: Cache, tmp_path: Path) -> None:
    method = {"name": "position", "keep_decoder": True}
    pretrain(recipe("slices", method=method, steps=1), cache, tmp_path / "run", device="cpu", talk=Silence())
    encoder = load_encoder(tmp_path / "run")
    task, other, before = build_task(toy_task()), build_task(toy_task(widths=[6])), build_task(toy_task())

    said = initialise_task(task, encoder, classes=("ball",))
    said_of_other = initialise_task(other, encoder, classes=("ball",))

    kept = safetensors.numpy.load_file(tmp_path / "run" / "decoder.safetensors")
    fresh = before.get_submodule("decoder").state_dict()
    for name, tensor in task.get_submodule("decoder").state_dict().items():
        expected = fresh[name].numpy() if name.startswith("scores.") else kept[name]
        np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)
    assert "of the decoder that it kept; the last layer starts anew" in said
    assert "another shape" in said_of_other
