"""Every published data set goes all the way from its folder as distributed, with the recipe of its authors' numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from medssl_cli.recipe import recipe_names
from tests.published import abdomen, brain, chest, heart
from tests.published.files import Published
from tests.published.road import Road

SETS: tuple[Callable[[Path], Published], ...] = (
    abdomen.btcv, abdomen.btcv_list, abdomen.lits, abdomen.msd_liver, abdomen.msd_spleen, abdomen.amos22,
    abdomen.flare22, abdomen.word, abdomen.totalsegmentator, brain.msd_brain, brain.brats21, brain.brats18,
    brain.nnunet_brats, heart.mmwhs_ct, heart.mmwhs_mr, heart.acdc, heart.msd_heart, heart.hippocampus, chest.cc_ccii,
    chest.nih, chest.vindr, chest.luna16,
)  # fmt: skip
IN_ANOTHER_LAYOUT = (abdomen.btcv_list, abdomen.msd_liver, brain.nnunet_brats)
"""Sets of which the same recipe goes all the way from another layout."""
each_set = pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)


@each_set
def test_a_published_data_set_goes_all_the_way(
    make: Callable[[Path], Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    road = Road(make(tmp_path), tmp_path, monkeypatch)

    road.check(road.ingest())
    if make in IN_ANOTHER_LAYOUT or road.made.recipe not in recipe_names("tasks"):
        return
    road.plan()
    road.finetune()
    road.evaluate()
    road.export()
    assert road.infer()["done"] > 0
