"""Plans for the labelled images of a cache, with a device that costs what the test says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.errors import GateError, NothingUsableError, UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.named_splits import GivenSplit
from medssl_cli.cache.split_files import NamedParts, SplitFile
from medssl_cli.cache.splits import held_out_patients
from medssl_cli.cache.store import Cache
from medssl_cli.engine import planning
from medssl_cli.engine.build import check_recipe
from medssl_cli.engine.planning import TaskPlan, own_task, plan_task, science_of
from medssl_cli.engine.step_cost import StepCost, try_steps
from medssl_cli.engine.unlabelled_finetuning import UnlabelledFinetuning
from medssl_cli.plan.draft import recipe_text
from medssl_cli.recipe import TaskRecipe, find_recipe, raw_recipe
from tests.toy_cache import Marked, toy_cache

SLOW = StepCost(step_s=10.0, memory_bytes=10**9)


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """CT of 32 voxels at 2 mm with two balls."""
    return toy_cache(tmp_path_factory.mktemp("balls") / "cache", num_patients=15)


def planned(cache: Cache, document: dict[str, Any] | None = None, **options: Any) -> TaskPlan:
    options = {"device": "cpu", "talk": Silence(), "measure": lambda recipe: SLOW, **options}
    return plan_task(document or own_task(cache, "seg", "mine"), cache, **options)


def test_the_classes_are_what_the_labels_are_called(balls: Cache) -> None:
    document = own_task(balls, "seg", "mine")

    assert document["task"] == {
        "name": "segmentation",
        "label_set": "seg",
        "classes": {"ball_1": ["ball_1"], "ball_2": ["ball_2"]},
    }
    assert document["data"] == {"modality": "CT"}


def test_a_plan_follows_the_images(balls: Cache) -> None:
    data = planned(balls).recipe.data

    assert data.spacing_mm == (2.0, 2.0, 2.0)
    assert data.crop_size == (32, 32, 32)  # all of an image
    assert data.window_hu is not None
    assert data.window_hu[0] < data.window_hu[1]
    assert data.modality == "CT"


def test_images_that_a_crop_shows_whole_need_no_search_for_their_classes(balls: Cache) -> None:
    assert planned(balls).recipe.foreground_prob == 0
    assert (
        planned(balls, {**own_task(balls, "seg", "mine"), "data": {"crop_size": [16, 16, 16]}}).recipe.foreground_prob
        > 0
    )


def test_parts_apart_are_dropped_where_it_pays_and_deep_supervision_is_for_deep_networks_on_a_gpu(balls: Cache) -> None:
    recipe = planned(balls).recipe
    given = own_task(balls, "seg", "mine")
    given["task"] |= {"keep_largest": "never", "decoder": {"widths": None}, "deep_supervision": False}

    assert recipe.task.options["keep_largest"] == "where_it_pays"
    assert "deep_supervision" not in recipe.task.options
    assert "kernel_sizes" not in recipe.task.options["decoder"]
    kept = planned(balls, given).recipe.task.options
    assert (kept["keep_largest"], kept["deep_supervision"]) == ("never", False)


def test_the_same_cache_and_costs_give_the_same_plan(balls: Cache) -> None:
    first, second = planned(balls), planned(Cache.open(balls.root))

    assert recipe_text([], first.draft) == recipe_text([], second.draft)
    assert first.document() == second.document()


FOLDS = SplitFile(
    (NamedParts(val=("0", "1"), test=("2", "3", "4", "5")), NamedParts(val=("0", "5"), test=("2", "3", "4", "6"))), b""
)


@pytest.mark.parametrize("is_given", [False, True])
def test_test_patients_are_not_looked_at(balls: Cache, monkeypatch: pytest.MonkeyPatch, is_given: bool) -> None:
    """By the rule, or those whom a split file names in any fold."""
    given = GivenSplit(FOLDS) if is_given else None
    named = {balls.pseudonyms.of("patient", str(number)) for number in range(2, 7)}
    held_out = named if is_given else held_out_patients(balls.records(), 0)
    seen: set[str] = set()
    read = Cache.read_image

    def watched(cache: Cache, record: Any) -> Any:
        seen.add(record.patient_key)
        return read(cache, record)

    monkeypatch.setattr(Cache, "read_image", watched)
    fingerprint = planned(balls, given=given).fingerprint

    assert len(held_out) == (5 if is_given else 3)
    assert seen
    assert not seen & held_out
    assert fingerprint.num_patients == 15 - len(held_out)


def test_the_largest_network_is_taken_that_time_allows(balls: Cache) -> None:
    def cost(recipe: TaskRecipe) -> StepCost:
        return StepCost(0.01 * recipe.backbone.options["channels"][-1] / 100, 10**9)

    few, many = planned(balls, measure=cost, minutes=1), planned(balls, measure=cost, minutes=600)

    assert few.recipe.backbone.options["channels"][0] < many.recipe.backbone.options["channels"][-1]
    assert few.num_considered < many.num_considered
    assert few.recipe.steps * few.cost.step_s == pytest.approx(0.85 * 60, rel=0.1)


def test_where_memory_is_short_steps_become_smaller(balls: Cache) -> None:
    def cost(recipe: TaskRecipe) -> StepCost:
        return StepCost(1.0, 10**4 * recipe.data.batch_size * int(np.prod(recipe.data.crop_size)))

    plenty, short = planned(balls, measure=cost, memory_bytes=1e12), planned(balls, measure=cost, memory_bytes=2e9)

    assert short.recipe.data.batch_size < plenty.recipe.data.batch_size
    assert short.cost.memory_bytes <= 2e9


def test_a_plan_that_no_memory_holds_is_refused(balls: Cache) -> None:
    with pytest.raises(GateError, match=r"E_PLAN_MEMORY: .* takes 1 GB, and 0.5 GB may be taken"):
        planned(balls, memory_bytes=5e8)
    with pytest.raises(GateError, match=r"E_PLAN_MEMORY: .* takes more than there is"):
        planned(balls, measure=lambda recipe: None)


def test_what_is_given_stays(balls: Cache) -> None:
    document = {**own_task(balls, "seg", "mine"), "steps": 7, "data": {"spacing_mm": [4.0, 4.0, 4.0], "zscore": True}}
    recipe = planned(balls, document).recipe

    assert (recipe.steps, recipe.data.spacing_mm, recipe.data.zscore) == (7, (4.0, 4.0, 4.0), True)
    assert recipe.data.window_hu is None
    assert recipe.data.crop_size == (16, 16, 16)


def test_a_shipped_recipe_keeps_its_classes_and_images_and_is_planned_anew() -> None:
    document = science_of(raw_recipe(find_recipe("brats-regions")))

    assert list(document["task"]["classes"]) == ["whole_tumour", "tumour_core", "enhancing_tumour"]
    assert [channel["name"] for channel in document["data"]["channels"]] == ["flair", "t1", "t1ce", "t2"]
    assert set(document) == {"schema", "name", "seed", "task", "data", "evaluation"}


def test_a_recipe_of_a_pretraining_has_nothing_to_plan_for() -> None:
    with pytest.raises(UsageError, match="E_RECIPE: a plan is for a task"):
        science_of(raw_recipe(find_recipe("voco-tiny")))


def test_sides_are_not_mirrored(tmp_path: Path) -> None:
    def mark(_: int, label: np.ndarray) -> Marked:
        return Marked(label, {1: "left_ball", 2: "right_ball"})

    cache = toy_cache(tmp_path / "cache", num_patients=6, mark=mark)
    recipe = planned(cache, own_task(cache, "seg", "mine")).recipe

    assert recipe.augmentation.flip_prob == 0
    assert recipe.inference.mirror_axes == ()


def test_thick_slices_are_halved_less_and_turn_in_their_planes(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=6, size=48, thickness=4, modality="MR")  # 2, 2, 8 mm
    recipe = planned(cache, own_task(cache, "seg", "mine")).recipe

    assert recipe.data.spacing_mm == (2.0, 2.0, 8.0)
    assert recipe.data.zscore
    assert recipe.augmentation.affine_axes == (0, 1)
    assert recipe.backbone.options["strides"][0] == [2, 2, 1]
    assert recipe.backbone.options["kernel_sizes"][0] == 3  # 4 and 8 mm

    fast = {"measure": lambda _: StepCost(1e-3, 10**6), "minutes": 600}
    wide = planned(cache, own_task(cache, "seg", "mine"), **fast).recipe
    assert wide.backbone.options["kernel_sizes"][:2] == [[3, 3, 1], 3]  # 2 and 8 mm at full resolution
    assert wide.task.options["decoder"]["kernel_sizes"] == wide.backbone.options["kernel_sizes"][:-1]


def test_very_few_slices_are_seen_one_by_one(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=6, size=32, thickness=8, modality="MR")  # 4 slices
    recipe = planned(cache, own_task(cache, "seg", "mine")).recipe

    assert recipe.backbone.options["spatial_dims"] == 2
    assert recipe.data.crop_size == (32, 32, 4)


def test_a_set_that_is_not_there_is_refused(balls: Cache) -> None:
    with pytest.raises(NothingUsableError, match=r"E_NO_LABELS: .*'other'; the cache has seg"):
        own_task(balls, "other", "mine")


def test_a_task_without_a_planner_is_refused(balls: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, part: str) -> Any:
        raise ModuleNotFoundError(name=f"medssl_cli.tasks.{name}.{part}")

    monkeypatch.setattr(planning, "load_part", absent)

    with pytest.raises(UsageError, match=r"E_USAGE: the task segmentation has no plan\.py"):
        planned(balls, {"schema": 1, "name": "mine", "task": {"name": "segmentation"}})


def around(cache: Cache, pins: dict[str, Any], **options: Any) -> TaskRecipe:
    """A plan around what is given, which must be a recipe that can be trained."""
    document = own_task(cache, "seg", "mine")
    for key, value in pins.items():
        *parents, last = key.split(".")
        section = document
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    found = planned(cache, document, **options)
    written = found.draft.document()
    for key, value in pins.items():
        at: Any = written
        for part in key.split("."):
            at = at[part]
        assert at == value
    check_recipe(found.recipe)
    return found.recipe


@pytest.mark.parametrize(
    ("pins", "flipped", "mirrored"),
    [
        ({"augmentation.flip_prob": 0}, [0], []),
        ({"augmentation.flip_axes": []}, [], []),
        ({"augmentation.flip_axes": [1, 2]}, [1, 2], []),
        ({"augmentation.flip_axes": [0, 1]}, [0, 1], [0]),
        ({"inference.mirror_axes": [1]}, [0, 1], [1]),
        ({"inference.mirror_axes": []}, [0], []),
    ],
)
def test_mirroring_follows_what_is_given_of_flips_and_flips_what_is_given_of_mirroring(
    balls: Cache, pins: dict[str, Any], flipped: list[int], mirrored: list[int]
) -> None:
    recipe = around(balls, pins)

    assert recipe.augmentation.flip_axes == tuple(flipped)
    assert recipe.inference.mirror_axes == tuple(mirrored)


@pytest.mark.parametrize(
    ("pins", "strides"),
    [
        ({"data.crop_size": [24, 20, 12]}, [2, 2, [2, 1, 1]]),  # 12 and 20 are odd after two halvings, 24 after three
        ({"data.crop_size": [16, 16, 1]}, [2, 2, 2]),
        ({"inference.tile_size": [20, 20, 20]}, [2, 2]),
        ({"backbone.spatial_dims": 2}, [2, 2, 2, 2]),
        ({"backbone.channels": [8, 16]}, [2, 2]),
        ({"backbone.strides": [1, 2, [2, 2, 1]]}, [1, 2, [2, 2, 1]]),
        ({"backbone.norm": "group"}, [2, 2, 2, 2]),
        ({"task.deep_supervision": True, "data.crop_size": [16, 16, 16]}, [1, 2, 2, 2]),
        ({"task.relation": {"slice_spacing_mm": 4.0}}, [2, 2, 2, 2]),
        ({"crops_per_image": 3}, [2, 2, 2, 2]),
        ({"schedule.warmup_steps": 5000}, [2, 2, 2, 2]),
        ({"unlabelled": {"method": "bcp", "batch_size": 3}}, [2, 2, 2, 2]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_what_is_planned_goes_with_what_is_given(balls: Cache, pins: dict[str, Any], strides: list[Any]) -> None:
    """The balls are 32 voxels along each axis; ten seconds a step make the cheapest network."""
    recipe = around(balls, pins)

    assert recipe.backbone.options["strides"] == strides


def test_a_slice_at_a_time_where_volumes_are_given_a_flat_network(balls: Cache) -> None:
    given, flat = around(balls, {"backbone.spatial_dims": 2}), around(balls, {"data.crop_size": [16, 16, 1]})

    assert given.data.crop_size == (32, 32, 1)
    assert flat.backbone.options["spatial_dims"] == 2
    assert flat.augmentation.affine_axes == (0, 1)
    assert flat.foreground_prob > 0


def test_crops_are_smaller_where_more_of_them_are_given(balls: Cache) -> None:
    many = around(balls, {"data.batch_size": 100})

    assert many.data.crop_size == (16, 16, 16)  # about 400,000 voxels in a step; whole images would be 3 million


def test_a_network_that_a_recipe_gives_is_planned_around(balls: Cache) -> None:
    """Its crops would leave one cell at the coarsest level, of which a norm of instances has no variance."""
    deep = {"name": "unet", "channels": [4] * 6, "strides": [1, 2, 2, 2, 2, 2], "num_res_units": 0}
    flat = {**deep, "spatial_dims": 2, "channels": [4, 4], "strides": [1, 2]}

    assert sorted(around(balls, {"backbone": deep}).data.crop_size) == [32, 32, 64]
    assert around(balls, {"backbone": flat}).data.crop_size == (32, 32, 1)


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        ({"data": {"crop_size": 5}}, r"data\.crop_size"),
        ({"data": 5}, "data"),
        ({"augmentation": {"flip_prob": "often"}}, r"augmentation\.flip_prob"),
        ({"augmentation": {"flip_prob": 0}, "inference": {"mirror_axes": [0]}}, "never flipped in training"),
        ({"backbone": {"spatial_dims": "flat"}}, "neither 2 nor 3"),
        ({"backbone": {"channels": "many"}}, "no list of whole numbers"),
        ({"backbone": {"channels": [4, 8], "strides": [1]}}, "2 channels and 1 strides"),
        ({"backbone": {"channels": [4] * 9}}, "9 levels"),
        ({"backbone": {"strides": ["x"]}}, "strides"),
        ({"backbone": {"name": "resenc", "channels": "auto"}}, "cannot be planned in parts"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(balls: Cache, pins: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"E_RECIPE: [\\s\\S]*{said}"):
        planned(balls, {**own_task(balls, "seg", "mine"), **pins})


def test_what_is_given_and_does_not_fit_is_named(balls: Cache) -> None:
    pins = {"data": {"crop_size": [32, 32, 32], "batch_size": 16}}

    with pytest.raises(GateError, match=r"around data\.crop_size and data\.batch_size as given takes 1 GB"):
        planned(balls, {**own_task(balls, "seg", "mine"), **pins}, memory_bytes=5e8)


@pytest.mark.parametrize("method", [None, "bcp"])
def test_a_trial_has_the_teacher_and_the_unlabelled_images_that_the_training_has(
    balls: Cache, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    begun = UnlabelledFinetuning.loss

    def counted(goal: UnlabelledFinetuning, state: Any, inputs: Any, progress: float) -> Any:
        shown.append(len(inputs.unlabelled[0]))
        return begun(goal, state, inputs, progress)

    monkeypatch.setattr(UnlabelledFinetuning, "loss", counted)
    backbone = {"name": "unet", "channels": [4, 8], "strides": [2, 2], "num_res_units": 0}
    document = {**own_task(balls, "seg", "mine"), "backbone": backbone, "steps": 9}
    document["data"] = {**document["data"], "crop_size": [8, 8, 8], "batch_size": 2}
    document |= {} if method is None else {"unlabelled": {"method": method}}
    recipe = planned(balls, document).recipe

    try_steps(recipe, balls.root, [record.item_id for record in balls.records()[:3]], "cpu")

    assert shown == ([] if method is None else [2] * 4)
