"""The grammar of a recipe's classes: what may be written, what it means, and what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from medssl_cli.base.classes import ANY, MAX_CLASSES, WantedClasses, parse_classes, parse_ignored
from medssl_cli.methods.voco.options import OmniOptions
from medssl_cli.recipe import dump_recipe, load_recipe
from medssl_cli.tasks.classification.network import ClassificationOptions
from medssl_cli.tasks.detection.network import DetectionOptions
from medssl_cli.tasks.segmentation.network import SegmentationOptions as Options


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"liver": ["liver"]}, {"liver": ("liver",)}),
        ({"liver": "liver"}, {"liver": ("liver",)}),
        ({"left_ventricle": [500]}, {"left_ventricle": (500,)}),
        ({"left_ventricle": 500}, {"left_ventricle": (500,)}),
        ({"kidneys": ["left_kidney", "right_kidney"]}, {"kidneys": ("left_kidney", "right_kidney")}),
        ({"whole tumour": [1, 2, 4]}, {"whole tumour": (1, 2, 4)}),
        ({"liver": ["liver", 6]}, {"liver": ("liver", 6)}),
        (["liver", "spleen"], {"liver": ("liver",), "spleen": ("spleen",)}),
        ({1: "liver", 2: "spleen"}, {"liver": ("liver", 1), "spleen": ("spleen", 2)}),
        ({4: "b", 1: "a"}, {"a": ("a", 1), "b": ("b", 4)}),
        ({"1": "liver"}, {"liver": ("liver", 1)}),  # as stored recipes come back from JSON
        ({"1": ["liver"]}, {"1": ("liver",)}),
        ({"abnormal": "any"}, {"abnormal": ANY}),
        ({"右肺": ["右肺"], "左肺": [65_535]}, {"右肺": ("右肺",), "左肺": (65_535,)}),
        ({"e": ["e\u0301"]}, {"e": ("\u00e9",)}),
    ],
)
def test_every_form_means_members_by_name(written: Any, meant: dict[str, Any]) -> None:
    found = parse_classes(written)

    assert found == meant
    assert list(found) == list(meant)
    assert parse_classes(found) == found


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({}, "at least 1"),
        ([], "at least 1"),
        ("liver", "by name or by value"),
        ([1, 2], "a value needs one"),
        (["a", "a"], "names must differ"),
        ({1: "a", 2: "a"}, "names must differ"),
        ({0: "background", 1: "a"}, "0 is background"),
        ({"a": [0]}, "0 is background"),
        ({"a": [65_536]}, "65535"),
        ({"a": [True]}, "neither a name nor a value"),
        ({"a": [1.0]}, "neither a name nor a value"),
        ({"a": []}, "at least one"),
        ({1: ["a"]}, "a class needs a name"),
        ({"a|b": [1]}, "letters, digits"),
        ({"a": [1], "b": [1]}, "'a' and 'b' are the same"),
        ({"a": ["x", "y"], "c": [1], "b": ["y", "x"]}, "'a' and 'b' are the same"),
        ({"a": "any", "b": "any"}, "'a' and 'b' are the same"),
        ({f"c{value}": [value] for value in range(1, MAX_CLASSES + 2)}, f"at most {MAX_CLASSES}"),
    ],
)
def test_what_means_nothing_or_two_things_is_refused(written: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_classes(written)
    with pytest.raises(ValidationError, match=words):
        Options.model_validate({"classes": written})


@pytest.mark.parametrize(
    ("written", "are_regions"),
    [
        ({"whole": ["edema", "core"], "core": ["core"]}, True),
        ({"a": [1, 2], "b": [2, 3]}, True),
        ({"a": "any", "b": [1]}, True),
        ({"a": [1, 2], "b": [3]}, False),
        ({"a": "any"}, False),
        ({"liver": ["liver"], "second": [2]}, False),  # what label maps make of it is no matter of the recipe
    ],
)
def test_classes_that_share_a_member_are_regions(written: Any, are_regions: bool) -> None:
    options = Options.model_validate({"classes": written})

    assert options.wanted.are_regions == are_regions


def test_regions_are_refused_where_each_voxel_has_one_class() -> None:
    regions = {"whole": ["edema", "core"], "core": ["core"]}

    with pytest.raises(ValidationError, match="'whole' and 'core' overlap"):
        OmniOptions.model_validate({"classes": regions})
    with pytest.raises(ValidationError, match="no background"):
        Options.model_validate({"classes": regions, "include_background_in_dice": True})


def test_what_is_ignored_is_no_class() -> None:
    assert parse_ignored("artefact") == ("artefact",)
    assert parse_ignored([7, "artefact"]) == (7, "artefact")
    with pytest.raises(ValidationError, match="in a class and in ignore"):
        Options.model_validate({"classes": {"a": ["a", 1]}, "ignore": [1]})


def test_the_kth_class_of_a_recipe_is_output_k() -> None:
    options = Options.model_validate({"classes": {"spleen": [2], "liver": [1]}})

    assert WantedClasses.of(options).names == {1: "spleen", 2: "liver"}


def test_a_stored_recipe_means_what_the_written_one_meant(tmp_path: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "schema: 1\nname: toy\nbackbone: {name: unet}\ntask: {name: segmentation, classes: {2: b, 1: a}, ignore: [9]}\n"
        "data: {zscore: true, crop_size: [16, 16, 16], batch_size: 1}\noptimizer: {learning_rate: 0.1}\nsteps: 1\n"
    )
    recipe = load_recipe(path)

    stored = dump_recipe(recipe)["task"]

    assert parse_classes(stored["classes"]) == parse_classes(recipe.task.options["classes"])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "classes",
    [{"finding": "any", "nodule": ["nodule"]}, {"a": ["nodule"], "b": ["mass", "nodule"]}],
)
def test_boxes_of_one_name_are_of_one_class(classes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"of .a.|put a class of any last"):
        DetectionOptions.model_validate({"label_set": "x", "classes": classes})


def test_findings_and_boxes_take_a_name_without_a_list() -> None:
    findings = ClassificationOptions.model_validate({"label_set": "x", "classes": {"mass": "Mass", "sick": "any"}})
    boxes = DetectionOptions.model_validate({"label_set": "x", "classes": {"mass": "Mass", "rest": "any"}})

    assert findings.classes == {"mass": ("Mass",), "sick": "any"}
    assert boxes.classes == {"mass": ("Mass",), "rest": "any"}
