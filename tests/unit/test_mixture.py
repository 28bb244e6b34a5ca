"""Mixtures: how often each image comes, what a recipe may ask for, and who is left out."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.cache.splits import held_out_patients
from medssl_cli.cache.store import Cache
from medssl_cli.cli.mixture_caches import open_caches
from medssl_cli.data.crops import item_of
from medssl_cli.data.mixture import MixedItems, mixed
from medssl_cli.data.slices import ImageIndex
from medssl_cli.engine.build import build_method
from medssl_cli.engine.training_parts import TrainingParts, training_parts
from medssl_cli.imaging.preprocessing import Intensity
from medssl_cli.recipe import PretrainRecipe
from tests.environment import give_known_key
from tests.listener import Listener
from tests.toy_cache import toy_cache
from tests.toy_recipes import TINY_UNET, pretrain_recipe

WINDOW = {"window_hu": [-100, 200], "spacing_mm": [2, 2, 2]}


def item(name: str) -> PreparedItem:
    return PreparedItem(name, (4, 4, 4), np.eye(4), Intensity(0, 1, 0, 1), Path(name), None, {})


def recipe(mixture: Any, **data: Any) -> PretrainRecipe:
    return pretrain_recipe(
        {
            "backbone": TINY_UNET,
            "method": {"name": "voco", "base_grid": [2, 2, 1], "projector_dim": 8},
            "data": {"modality": "CT", **WINDOW, "crop_size": [8, 8, 16], "batch_size": 4, "mixture": mixture, **data},
            "steps": 2,
        }
    )


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, Cache]:
    """One of 10 patients at 16 voxels, and one of the first 5 of them at 24."""
    root = tmp_path_factory.mktemp("caches")
    for name in ("large", "small"):
        give_known_key(root / name)
    return toy_cache(root / "large", num_patients=10, size=16), toy_cache(root / "small", num_patients=5, size=24)


def parts_of(mixture: Any, caches: tuple[Cache, Cache], talk: Silence | None = None) -> TrainingParts:
    wanted = recipe(mixture)
    named = {"small": caches[1]} if any(part.get("cache") == "small" for part in mixture) else {}
    return training_parts(wanted, caches[0], named, build_method(wanted).views(), talk or Silence())


def test_items_come_as_often_as_their_part_counts() -> None:
    items = MixedItems([[item("a"), item("b")], [item("c")]], [2, 3])

    assert [each.item_id for each in items] == ["a", "b", "a", "b", "c", "c", "c"]
    assert [each.item_id for each in items[3:5]] == ["b", "c"]
    assert items[-1].item_id == "c"
    assert [each.item_id for each in pickle.loads(pickle.dumps(items))] == [each.item_id for each in items]
    with pytest.raises(IndexError):
        items[7]


def test_one_part_that_counts_once_is_its_items() -> None:
    items = [item("a")]

    assert mixed([items]) is items
    assert mixed([items], [1]) is items
    assert len(mixed([items], [2])) == 2


def test_an_epoch_of_boxes_shows_each_image_as_often_as_its_part_counts() -> None:
    """8 abdomens, 8 heads and 1 chest: the published list of images, shuffled."""
    items = MixedItems([[item("abdomen 0"), item("abdomen 1")], [item("head")], [item("chest")]], [8, 8, 1])
    places = range(len(items))

    drawn = [items[item_of(place, 0, batch_size=1, num_items=len(items), seed=3)].item_id for place in places]

    assert Counter(drawn) == {"abdomen 0": 8, "abdomen 1": 8, "head": 8, "chest": 1}
    assert drawn != sorted(drawn)


def test_an_epoch_of_slices_shows_each_image_and_volume_as_often_as_its_part_counts() -> None:
    index = ImageIndex([False, True, True], ["DX", "CT", "CT"], per_volume=3, balance=0.5, seed=1,
                       weights=np.array([4, 1, 2]))  # fmt: skip

    drawn = Counter(index.place_of(draw) for draw in range(index.epoch_length))

    assert index.epoch_length == 4 + 3 * 1 + 3 * 2
    assert drawn == {0: 4, 1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2}
    assert index.volume_order.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"weight": 1}, "give exactly one of window_hu"),
        ({**WINDOW, "weight": 0}, "weight"),
        ({**WINDOW, "weight": 1001}, "weight"),
        ({**WINDOW, "wieght": 2}, "wieght"),
        ({**WINDOW, "cache": "../x"}, "cache"),
        ({**WINDOW, "body_parts": ["chest"]}, "body_parts"),
        ({"channels": [{"name": "flair", "zscore": True}]}, "all parts of the mixture need the channels of data"),
    ],
)
def test_faults_of_parts_are_faults_of_the_recipe(part: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match="E_RECIPE") as caught:
        recipe([part])

    assert said in str(caught.value)


def test_a_recipe_without_a_mixture_is_one_part(caches: tuple[Cache, Cache]) -> None:
    wanted = recipe(None)

    [part] = wanted.data.parts

    assert part.preprocessing == wanted.data.preprocessing
    assert (part.weight, part.modality, part.cache) == (1, "CT", None)


def test_parts_take_images_from_the_caches_that_they_name_and_say_their_share(caches: tuple[Cache, Cache]) -> None:
    heard = Listener()

    parts = parts_of([{**WINDOW, "weight": 2}, {**WINDOW, "cache": "small"}], caches, heard)

    [large, small] = parts
    assert {each.item_id for each in large.examples} < {entry.item_id for entry in caches[0].entries()}
    assert {each.item_id for each in small.examples} < {entry.item_id for entry in caches[1].entries()}
    assert parts.find(len(large.examples)) == (small, small.examples[0])
    assert parts.item_weights.tolist() == [2] * len(large.examples) + [1] * len(small.examples)
    share = 2 * len(large.examples) / (2 * len(large.examples) + len(small.examples))
    assert heard.notes[0].startswith(f"part 1, {share:.0%} of an epoch: {len(large.examples)} images (")


def test_test_patients_of_either_cache_are_left_out_of_both(caches: tuple[Cache, Cache]) -> None:
    held_out = [held_out_patients(cache.entries(), 0) for cache in caches]
    assert held_out[0] != held_out[1]

    parts = parts_of([WINDOW, {**WINDOW, "cache": "small"}], caches)

    shown = {example.patient_key for example in parts.examples}
    assert shown == {entry.patient_key for entry in caches[0].entries()} - held_out[0] - held_out[1]


def test_an_image_may_be_in_several_parts_and_counts_once_in_the_manifest(caches: tuple[Cache, Cache]) -> None:
    parts = parts_of([WINDOW, {**WINDOW, "window_hu": [0, 100]}], caches)

    assert len(parts) == 2 * len(parts.splits()["train"])
    assert len(parts.arguments()["mixture_sha256"]) == 64


def test_parts_of_the_body_are_those_that_images_say(caches: tuple[Cache, Cache]) -> None:
    assert len(parts_of([{**WINDOW, "body_parts": ["CHEST", "unknown"]}], caches)) > 0
    with pytest.raises(NothingUsableError, match="E_CACHE_EMPTY: no image is of CHEST; there are unknown"):
        parts_of([{**WINDOW, "body_parts": ["CHEST"]}], caches)


def test_caches_that_are_missing_or_not_asked_for_are_named(caches: tuple[Cache, Cache]) -> None:
    wanted = recipe([{**WINDOW, "cache": "chest"}])
    views = build_method(wanted).views()

    with pytest.raises(UsageError, match="E_NO_CACHE: the mixture takes images from a cache called 'chest'"):
        training_parts(wanted, caches[0], {}, views, Silence())
    with pytest.raises(UsageError, match="E_USAGE: no part of the mixture names the cache 'chests'"):
        training_parts(wanted, caches[0], {"chest": caches[1], "chests": caches[1]}, views, Silence())


@pytest.mark.parametrize("text", ["chest", "=x", "chest=", ""])
def test_an_option_that_is_no_name_and_folder_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="E_USAGE: --cache-of"):
        open_caches([text])


def test_an_option_opens_a_cache_by_its_name(caches: tuple[Cache, Cache]) -> None:
    assert open_caches([f"small={caches[1].root}"])["small"].root == caches[1].root
    with pytest.raises(UsageError, match="E_NO_CACHE"):
        open_caches(["chest=nowhere"])
