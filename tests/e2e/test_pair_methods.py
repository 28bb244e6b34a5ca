"""Methods that compare views of images, or points of them, end to end on toy images: exact resume, and who is whose."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.build import build_method
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.engine.pretrain import PretrainSummary, pretrain
from medssl_cli.recipe import PretrainRecipe
from tests.interrupted import interrupted_copy, require_the_same_bits, whole_runs
from tests.slice_cache import slice_cache
from tests.toy_recipes import pretrain_recipe

pytestmark = pytest.mark.slow

STEPS = 4
SHORT = {"hidden_dim": 8, "projection_dim": 8}
SLICES = {"crop_size": [16, 16, 1], "batch_size": 6}
VOLUMES = {"crop_size": [16, 16, 16], "batch_size": 2, "modality": "CT"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "simclr": ({**SHORT, "name": "simclr"}, SLICES),
    "byol": ({**SHORT, "name": "byol"}, SLICES),
    "moco": ({**SHORT, "name": "moco"}, VOLUMES),
    "moco queue": ({**SHORT, "name": "moco", "variant": "v2", "queue_length": 12}, SLICES),
    "dino": ({**SHORT, "name": "dino", "num_outputs": 9, "num_small": 2, "freeze_last": 0.3}, SLICES),
    "local": ({**SHORT, "name": "local", "num_points": 20}, SLICES),
    "vox2vec": ({**SHORT, "name": "local", "variant": "vox2vec", "num_points": 20}, VOLUMES),
}
each_case = pytest.mark.parametrize("name", CASES)


def recipe(name: str, **changes: object) -> PretrainRecipe:
    method, data = CASES[name]
    dims = 2 if data is SLICES else 3
    return pretrain_recipe(
        {
            "backbone": {"name": "unet", "spatial_dims": dims, "channels": [4, 8], "strides": [2, 2], "norm": "batch"},
            "method": method,
            "data": {"zscore": True, **data},
            "steps": STEPS,
            "checkpoint_every": 2,
            "log_every": 1,
            "health_every": 4,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return slice_cache(tmp_path_factory.mktemp("pairs") / "cache", num_volumes=6, num_pictures=6)


@pytest.fixture(scope="module")
def whole_run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The undisturbed run of a case; one for all tests that ask for it."""

    def train(name: str, root: Path) -> PretrainSummary:
        return pretrain(recipe(name), cache, root, device="cpu", talk=Silence())

    return whole_runs(tmp_path_factory.mktemp("whole"), train, steps=STEPS)


@each_case
def test_a_run_that_lost_its_later_checkpoints_ends_with_the_same_bits(
    name: str, cache: Cache, whole_run: Callable[[str], Path], tmp_path: Path
) -> None:
    whole, broken = whole_run(name), tmp_path / "broken"
    interrupted_copy(whole, broken, step=2)

    pretrain(recipe(name), cache, broken, device="cpu", talk=Silence())

    require_the_same_bits(broken, whole)


@each_case
def test_a_run_shows_its_baseline_and_how_projections_spread(name: str, whole_run: Callable[[str], Path]) -> None:
    for entry in read_metrics(whole_run(name)):
        assert entry["baseline/no_information"] > 0
        assert entry["spread"] > 0
        assert entry["rank"] >= 1


def test_images_of_one_patient_are_known(whole_run: Callable[[str], Path]) -> None:
    """Of six images some are slices of one volume, so fewer than eleven views are compared with."""
    entries = read_metrics(whole_run("simclr"))

    assert all(entry["no_information"] <= math.log(11) + 1e-6 for entry in entries)
    assert min(entry["no_information"] for entry in entries) < math.log(11) - 0.1
    assert entries[0]["baseline/no_information"] < math.log(11)


def test_batches_of_one_image_are_refused() -> None:
    with pytest.raises(UsageError, match="E_RECIPE"):
        build_method(recipe("simclr", data={"zscore": True, **SLICES, "batch_size": 1}))
