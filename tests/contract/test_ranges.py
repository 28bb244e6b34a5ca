"""Every option that is a range begins with its least value, in all sections of recipes and in all plugins."""

import inspect
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from medssl_cli.base import plugins
from medssl_cli.recipe import PretrainRecipe, TaskRecipe
from medssl_cli.tasks import load_part
from medssl_cli.unlabelled import KIND


def option_models() -> list[type[BaseModel]]:
    """Everything that a recipe may say, with the sections inside."""
    roots: list[type[BaseModel]] = [PretrainRecipe, TaskRecipe]
    roots += [plugins.load("method", name).Options for name in plugins.names("method")]
    roots += [load_part(name, "network").OPTIONS for name in plugins.names("task")]
    roots += [plugins.load(KIND, name).OPTIONS for name in plugins.names(KIND)]
    found: dict[type[BaseModel], None] = {}
    while roots:
        model = roots.pop()
        if model not in found:
            found[model] = None
            roots += [part for field in model.model_fields.values() for part in _sections(field.annotation)]
    return list(found)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _sections(part)


RANGES = {
    f"{model.__name__}.{name}": (Annotated[field.annotation, *field.metadata], field.default)
    for model in option_models()
    for name, field in model.model_fields.items()
    if isinstance(field.default, tuple) and len(field.default) == 2
    if all(isinstance(end, float) for end in field.default)
}


@pytest.mark.parametrize("name", RANGES)
def test_a_range_that_begins_with_its_largest_value_is_refused(name: str) -> None:
    kind, (low, high) = RANGES[name]
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    assert adapter.validate_python([low, low]) == (low, low)
    with pytest.raises(ValidationError, match="least, largest"):
        adapter.validate_python([high, low / 2])


def test_there_are_ranges_to_look_at() -> None:
    assert len(RANGES) > 10
    assert {"Augmentation.scale_range", "Stacks.scale", "Options.box_sides"} <= set(RANGES)
