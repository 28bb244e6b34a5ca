"""VoCo on slices of toy volumes and on pictures beside them, end to end."""

from pathlib import Path

import pytest
import safetensors.numpy

from medssl_cli.base.talk import Silence
from medssl_cli.engine.metrics_log import read_health
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.recipe import PretrainRecipe
from tests.interrupted import interrupted_copy, require_the_same_bits
from tests.slice_cache import slice_cache
from tests.toy_recipes import pretrain_recipe

pytestmark = pytest.mark.slow


def recipe() -> PretrainRecipe:
    return pretrain_recipe(
        {
            "backbone": {"name": "unet", "spatial_dims": 2, "channels": [4, 8], "strides": [2, 2], "num_res_units": 0},
            "method": {"name": "voco", "objective": "fixed", "projector_dim": 8},
            "data": {"zscore": True, "fit": [24, 24], "crop_size": [8, 8, 1], "batch_size": 4},
            "steps": 4,
            "checkpoint_every": 2,
            "log_every": 1,
            "health_every": 2,
        }
    )


def test_slices_and_pictures_train_an_encoder_of_two_dimensions_and_resume_exactly(tmp_path: Path) -> None:
    cache = slice_cache(tmp_path / "cache", num_volumes=6, num_pictures=6)
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    pretrain(recipe(), cache, whole, device="cpu", talk=Silence())
    interrupted_copy(whole, broken, step=2)
    pretrain(recipe(), cache, broken, device="cpu", talk=Silence())

    require_the_same_bits(broken, whole)
    assert safetensors.numpy.load_file(whole / "encoder.safetensors")["levels.0.conv.weight"].ndim == 4
    assert read_health(whole)[-1]["health/rank"] >= 1
    assert {path.stem for path in (whole / "plots").glob("*.png")} >= {"base_cosines", "logits", "overlaps"}
