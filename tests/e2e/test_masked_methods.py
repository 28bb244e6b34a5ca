"""Methods that hide or damage, end to end on toy images: exact resume, pictures on the page, and what follows."""

from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.live_page import Outlets
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.recipe import PretrainRecipe
from medssl_cli.report.run import run_page
from tests.interrupted import interrupted_copy, require_the_same_bits
from tests.masked import NETWORKS
from tests.slice_cache import slice_cache
from tests.toy_recipes import pretrain_recipe

pytestmark = pytest.mark.slow

STEPS = 4
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "mae": ("unet", {"name": "mae", "variant": "sparse", "block": 4}),
    "simmim": ("vit", {"name": "simmim", "block": 8}),
    "swin_pretext": ("unet", {"name": "swin_pretext", "projection_dim": 8}),
}
each_method = pytest.mark.parametrize("name", METHODS)


def recipe(name: str, **changes: object) -> PretrainRecipe:
    network, method = METHODS[name]
    return pretrain_recipe(
        {
            "backbone": {"name": network, "spatial_dims": 2, **NETWORKS[network]},
            "method": method,
            "data": {"zscore": True, "crop_size": [16, 16, 1], "batch_size": 4},
            "steps": STEPS,
            "checkpoint_every": 2,
            "log_every": 1,
            "health_every": 2,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return slice_cache(tmp_path_factory.mktemp("slices") / "cache", num_volumes=6, num_pictures=6)


@each_method
def test_a_run_that_lost_its_later_checkpoints_ends_with_the_same_bits(name: str, cache: Cache, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    outlets = Outlets(page=run_page)
    pretrain(recipe(name), cache, whole, device="cpu", talk=Silence(), outlets=outlets)
    interrupted_copy(whole, broken, step=2)

    pretrain(recipe(name), cache, broken, device="cpu", talk=Silence(), outlets=outlets)

    assert read_metrics(broken) == read_metrics(whole)  # losses, and the baselines that are measured as it goes
    require_the_same_bits(broken, whole)
    assert any(key.startswith("baseline/") for key in read_metrics(whole)[-1])
    assert len(list((whole / "pictures").glob("*.png"))) == 1
    assert "Pictures" in (whole / "page.html").read_text(encoding="utf-8")
