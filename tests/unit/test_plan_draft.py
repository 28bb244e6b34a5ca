"""How a planned recipe is put together and written down."""

import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.base.plain_yaml import parse_yaml
from medssl_cli.plan.draft import Draft, Pins, PlannedValue, filled, recipe_text
from medssl_cli.recipe import automatic_keys, sketched, validate_recipe

DRAFT = Draft(
    {
        "schema": PlannedValue(1, "form"),
        "name": PlannedValue("no", "a word that YAML would read as false"),
        "backbone.name": PlannedValue("unet", "small"),
        "backbone.channels": PlannedValue([8, 16], "more take longer"),
        "task.classes": PlannedValue({"yes": ["yes", 1], "left: lung": ["left: lung"]}, "of all images"),
        "data.zscore": PlannedValue(True, "MR"),
        "data.channels": PlannedValue([{"name": "flair", "zscore": True}, {"name": "t1", "zscore": True}], "in order"),
        "data.spacing_mm": PlannedValue([1.0, 1e-05, 2.5], "median # of all"),
        "steps": PlannedValue(100, ""),
        "data.batch_size": PlannedValue(2, "of the same section, planned later"),
    }
)


def test_a_written_plan_is_read_back_as_it_was() -> None:
    text = recipe_text(["Planned.", "", "Command: medssl"], DRAFT)

    assert parse_yaml(text, source="plan") == DRAFT.document()


def test_every_value_has_its_reason_on_its_line() -> None:
    lines = recipe_text([], DRAFT).splitlines()
    commented = {line.split("#")[0].strip().partition(":")[0]: line.partition("# ")[2] for line in lines}

    assert commented["zscore"] == "MR"
    assert commented["channels"] == "in order"  # of the data; it comes later than that of the backbone
    assert commented["classes"] == "of all images"
    assert sum(line.startswith("data:") for line in lines) == 1


def test_what_is_given_replaces_what_is_planned() -> None:
    pins = Pins({"backbone": {"name": "resenc", "channels": [4]}, "data": {"spacing_mm": None, "zscore": "auto"}})
    found = DRAFT.pinned(pins).document()

    assert found["backbone"] == {"name": "resenc", "channels": [4]}
    assert found["data"]["spacing_mm"] is None
    assert found["data"]["zscore"] is True
    assert DRAFT.pinned(pins).values["data.spacing_mm"].reason == "as given"


def test_auto_is_not_given() -> None:
    pins = Pins({"data": {"spacing_mm": None, "crop_size": "auto"}, "steps": "auto"})

    assert pins.has("data.spacing_mm")
    assert not pins.has("data.crop_size")
    assert not pins.has("steps")
    assert not pins.has("data.batch_size")
    assert pins.get("data.crop_size", [1]) == [1]


def test_only_what_is_auto_is_filled_in() -> None:
    document = {"steps": "auto", "seed": 3, "data": {"window_hu": "auto", "crop_size": [8, 8, 8], "fit": "auto"}}
    planned = {"steps": 70, "seed": 0, "data": {"zscore": True, "crop_size": [4, 4, 4]}}

    assert automatic_keys(document) == ["steps", "data.window_hu", "data.fit"]
    assert filled(document, planned) == {"steps": 70, "seed": 3, "data": {"zscore": True, "crop_size": [8, 8, 8]}}


def test_a_recipe_that_leaves_something_to_a_plan_is_refused_where_there_is_none() -> None:
    document = {
        "schema": 1,
        "name": "mine",
        "backbone": "auto",
        "task": {"name": "segmentation", "classes": ["ball"]},
        "data": {"window_hu": "auto", "spacing_mm": "auto", "crop_size": "auto", "batch_size": "auto"},
        "optimizer": "auto",
        "augmentation": "auto",
        "steps": "auto",
    }

    with pytest.raises(UsageError, match=r"E_RECIPE: mine.yaml leaves backbone, data.window_hu, .* to a plan"):
        validate_recipe(document, source="mine.yaml")
    assert validate_recipe(sketched(document), source="mine.yaml").data.spacing_mm is None
