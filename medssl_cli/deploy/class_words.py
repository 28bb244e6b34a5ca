"""What the classes of a model are called in DICOM objects, and their colours: by its recipe, else by their names."""

from dataclasses import replace

from medssl_cli.deploy.bundle import Bundle
from medssl_cli.formats.anatomy_codes import ANATOMICAL_STRUCTURE, StructureCode, structure_code
from medssl_cli.heads import EmbeddingsHead, MasksHead
from medssl_cli.report import Colour, structure_colours


def shown_classes(bundle: Bundle) -> dict[int, str]:
    """Names of classes by the numbers that choose their colours: label values, of others their places from 1 on."""
    head = bundle.head
    if isinstance(head, EmbeddingsHead):
        return {}
    return head.classes if isinstance(head, MasksHead) else {place + 1: name for place, name in head.classes.items()}


def class_code(bundle: Bundle, name: str) -> StructureCode:
    """What a class is; its side and part are in the code where the recipe gives one.

    Args:
        bundle: Bundle of the model.
        name: Name of the class.
    """
    details = bundle.class_details.get(name)
    if details is None or details.code is None:
        return structure_code(name, task=bundle.task)
    category = ANATOMICAL_STRUCTURE if details.category is None else details.category.triple
    return StructureCode(category, details.code.triple)


def class_codes(bundle: Bundle, classes: dict[int, str]) -> dict[str, StructureCode]:
    """What all classes are by their names, each with its colour.

    Args:
        bundle: Bundle of the model.
        classes: Names by label value.
    """
    colours = class_colours(bundle, classes)
    return {name: replace(class_code(bundle, name), colour=colours[value]) for value, name in classes.items()}


def class_colours(bundle: Bundle, classes: dict[int, str]) -> dict[int, Colour]:
    """Colour of every class in objects and previews, by label value; the recipe's, else one of the palette."""
    chosen = {
        value: details.rgb
        for value, name in classes.items()
        if (details := bundle.class_details.get(name)) is not None and details.rgb is not None
    }
    return {**structure_colours(classes), **chosen}


def algorithm_name(bundle: Bundle) -> str:
    """What DICOM objects name as their maker."""
    return f"medssl {bundle.task}" if bundle.algorithm is None else bundle.algorithm.name
