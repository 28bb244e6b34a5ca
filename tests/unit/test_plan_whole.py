"""Plans for tasks that see images whole: findings and boxes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.planning import TaskPlan, own_task, plan_task
from medssl_cli.engine.step_cost import StepCost
from tests.finding_cache import finding_cache


def planned(cache: Cache, label_set: str, **given: dict[str, Any]) -> TaskPlan:
    document = own_task(cache, label_set, "mine")
    return plan_task(
        {**document, **{key: {**document.get(key, {}), **value} for key, value in given.items()}},
        cache,
        device="cpu",
        talk=Silence(),
        minutes=60,
        measure=lambda recipe: StepCost(0.1, 10**9),
    )


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Pictures of 24 pixels with findings `toy` and boxes `around` of half of them, 12 pixels wide."""
    folder = tmp_path_factory.mktemp("radiographs") / "cache"
    return finding_cache(folder, num_patients=15, box_set="around")


def test_findings_that_some_images_show_and_others_do_not_are_classes(radiographs: Cache) -> None:
    plan = planned(radiographs, "toy")

    assert plan.draft.document()["task"]["classes"] == {"Ball": ["Ball"], "Haze": ["Haze"]}
    assert "is_exclusive" not in plan.draft.document()["task"]
    assert plan.recipe.data.crop_size == (64, 64, 1)  # the least; the images have 24 pixels
    assert plan.recipe.data.zscore
    assert plan.fingerprint.unit == "images"


def test_a_small_set_is_not_gone_through_for_hours(radiographs: Cache) -> None:
    plan = planned(radiographs, "toy")

    assert plan.recipe.steps == 400
    assert "so few images" in plan.draft.values["steps"].reason


def test_boxes_decide_how_fine_an_image_is_seen(radiographs: Cache) -> None:
    plan = planned(radiographs, "around")

    assert plan.draft.document()["task"]["classes"] == {"ball": ["ball"]}
    assert plan.recipe.data.crop_size == (128, 128, 1)  # half of the image: 64 pixels, more than the 16 that they need
    assert plan.fingerprint.sizes.min() > 16 / 128  # so that they need no more than the least


def test_volumes_with_findings_are_seen_slice_by_slice(tmp_path: Path) -> None:
    cache = finding_cache(tmp_path / "cache", num_patients=15, shape=(24, 24, 6), modality="CT")
    recipe = planned(cache, "toy").recipe

    assert recipe.data.crop_size == (64, 64, 6)
    assert recipe.backbone.options["depth"] == 18

    volumes = {"name": "unet", "channels": [4, 8, 8], "strides": [1, 2, 2], "num_res_units": 0}
    around = planned(cache, "toy", backbone=volumes, data={"batch_size": 3}).recipe
    assert (around.data.crop_size, around.data.batch_size) == ((64, 64, 8), 3)  # multiples of 4


def test_boxes_in_volumes_decide_about_the_spacing(tmp_path: Path) -> None:
    cache = finding_cache(
        tmp_path / "cache", num_patients=10, shape=(40, 40, 40), modality="CT", label_set=None, box_set="around"
    )
    plan = planned(cache, "around")
    smallest_mm = float(plan.fingerprint.sizes.min())  # at 1 mm

    assert plan.recipe.backbone.options["spatial_dims"] == 3
    assert 1 < plan.recipe.data.spacing_mm[0] == pytest.approx(smallest_mm / 5, rel=0.2)
    assert plan.recipe.task.options["num_levels"] == 2

    given = {"data": {"crop_size": [36, 24, 20]}, "inference": {"mirror_axes": []}}
    around = planned(cache, "around", **given).recipe
    multiples = np.prod([np.broadcast_to(stride, 3) for stride in around.backbone.options["strides"]], axis=0)
    assert around.data.crop_size == (36, 24, 20)
    assert [size % multiple for size, multiple in zip((36, 24, 20), multiples, strict=True)] == [0, 0, 0]
    assert max(multiples) >= 2


def test_flips_that_are_given_stay(radiographs: Cache) -> None:
    recipe = planned(radiographs, "toy", augmentation={"flip_axes": [1]}).recipe

    assert (recipe.augmentation.flip_prob, recipe.augmentation.flip_axes) == (0.5, (1,))
