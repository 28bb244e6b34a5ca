"""What a recipe says of its classes and of itself is what DICOM objects and previews show."""

from typing import Any

import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.deploy.class_words import algorithm_name, class_codes, class_colours
from medssl_cli.engine.build import require_known_classes
from medssl_cli.formats.anatomy_codes import ANATOMICAL_STRUCTURE, StructureCode, structure_code
from medssl_cli.recipe import TaskRecipe, dump_recipe, find_recipe, raw_recipe, recipe_hash, sketched, validate_recipe
from medssl_cli.recipe_sections import Algorithm, ClassDetails
from medssl_cli.report import structure_colours
from tests.toy_model import toy_bundle

HEART = {"code": {"scheme": "SCT", "value": "80891009", "meaning": "Heart"}, "colour": "#C05a2e"}
CLASSES = {1: "liver", 2: "a made-up part"}


def recipe(**sections: Any) -> TaskRecipe:
    document = sketched(raw_recipe(find_recipe("msd-spleen"))) | sections
    found = validate_recipe(document, source="test")
    assert isinstance(found, TaskRecipe)
    return found


def test_a_recipe_without_details_is_written_as_before_and_one_with_them_comes_back() -> None:
    plain, full = recipe(), recipe(class_details={"spleen": HEART}, algorithm={"name": "Spleen finder", "version": "2"})

    assert not {"class_details", "algorithm"} & set(dump_recipe(plain))
    assert validate_recipe(dump_recipe(full), source="test") == full
    assert recipe_hash(full) != recipe_hash(plain)


@pytest.mark.parametrize(
    "details",
    [
        {"colour": "red"},
        {"colour": "#12345"},
        {"category": HEART["code"]},
        {"code": {"scheme": "SCT", "value": "8\\9", "meaning": "Heart"}},
        {"code": {"scheme": "SCT", "value": "80891009"}},
        {"code": {"scheme": "SCT", "value": "1" * 17, "meaning": "Heart"}},
        {"color": "#123456"},
    ],
)
def test_what_dicom_cannot_hold_is_refused(details: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="E_RECIPE"):
        recipe(class_details={"spleen": details})


def test_details_of_a_class_that_there_is_not_are_refused_with_the_nearest_name() -> None:
    require_known_classes(recipe(class_details={"spleen": HEART}))

    with pytest.raises(UsageError, match="no class is called 'spleeen'") as caught:
        require_known_classes(recipe(class_details={"spleeen": HEART}))
    assert "spleen" in caught.value.hint


def test_codes_and_colours_are_the_recipes_where_it_has_them_and_else_by_name_and_palette() -> None:
    bundle = toy_bundle(classes=CLASSES, class_details={"a made-up part": ClassDetails.model_validate(HEART)})

    colours = class_colours(bundle, CLASSES)
    assert colours == {1: structure_colours(CLASSES)[1], 2: (0xC0, 0x5A, 0x2E)}
    assert class_codes(bundle, CLASSES) == {
        "liver": StructureCode(structure_code("liver").category, structure_code("liver").type, colour=colours[1]),
        "a made-up part": StructureCode(ANATOMICAL_STRUCTURE, ("80891009", "SCT", "Heart"), colour=colours[2]),
    }


def test_a_category_of_the_recipe_is_kept() -> None:
    tissue = {"scheme": "SCT", "value": "85756007", "meaning": "Tissue"}
    bundle = toy_bundle(class_details={"bright": ClassDetails.model_validate({**HEART, "category": tissue})})

    assert class_codes(bundle, {1: "bright"})["bright"].category == ("85756007", "SCT", "Tissue")


def test_the_maker_is_the_task_unless_the_recipe_names_another() -> None:
    assert algorithm_name(toy_bundle()) == "medssl toy-seg"
    assert algorithm_name(toy_bundle(algorithm=Algorithm(name="Bright finder"))) == "Bright finder"


def test_a_bundle_whose_details_are_of_no_class_is_none() -> None:
    with pytest.raises(ValueError, match="class_details are of the classes"):
        toy_bundle(class_details={"dark": ClassDetails(colour="#000000")})
