"""Every published data set goes all the way from its folder as distributed, with the recipe of its authors' numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from medssl_cli.recipe import find_recipe, recipe_names
from tests.published import abdomen, brain, chest, heart
from tests.published.files import Published
from tests.published.road import Road

SETS: tuple[Callable[[Path], Published], ...] = (
    abdomen.btcv, abdomen.btcv_list, abdomen.lits, abdomen.msd_liver, abdomen.msd_spleen, abdomen.amos22,
    abdomen.flare22, abdomen.word, abdomen.totalsegmentator, brain.msd_brain, brain.brats21, brain.brats18,
    brain.nnunet_brats, heart.mmwhs_ct, heart.mmwhs_mr, heart.mmwhs_ct_slices, heart.mmwhs_mr_slices, heart.acdc,
    heart.msd_heart, heart.hippocampus, chest.cc_ccii, chest.nih, chest.vindr, chest.luna16,
)  # fmt: skip
COMES_IN = (abdomen.btcv_list, abdomen.msd_liver, brain.nnunet_brats)
"""Another layout of a set whose recipe goes all the way from the first one."""
each_set = pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)


def test_every_recipe_that_names_a_folder_has_a_fake_of_it(tmp_path: Path) -> None:
    walked = {make(tmp_path / make.__name__).recipe for make in SETS}
    of_a_folder = {
        name for name in recipe_names("tasks") if "\n# Folder: " in find_recipe(name, ("tasks",)).read_text()
    }

    assert len(of_a_folder) > 15
    assert of_a_folder <= walked


@each_set
def test_a_published_data_set_goes_all_the_way(
    make: Callable[[Path], Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    road = Road(make(tmp_path), tmp_path, monkeypatch)

    road.check(road.ingest())
    if make in COMES_IN:
        return
    road.plan()
    road.finetune()
    road.evaluate()
    if make is chest.luna16:
        return  # exported and asked in tests/e2e/test_nodules.py
    road.export()
    assert road.infer()["done"] > 0
