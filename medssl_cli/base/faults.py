"""Faults of what people wrote, in their words: all at once, with the nearest valid name."""

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from medssl_cli.base.errors import UsageError
from medssl_cli.base.plugins import suggest

Model = TypeVar("Model", bound=BaseModel)
MAX_QUOTED: Final = 80


def validate_model(model: type[Model], document: dict[str, Any], *, source: str) -> Model:
    """Validate data against a pydantic model with faults rewritten for people.

    Raises:
        UsageError: `E_RECIPE`, all faults in one message.
    """
    faults = model_faults(model, document)
    if faults:
        refuse_faults(faults, source=source)
    return model.model_validate(document)


def model_faults(model: type[BaseModel], document: dict[str, Any]) -> list[str]:
    """Faults of data, rewritten for people; none if it is sound."""
    try:
        found = model.model_validate(document)
    except ValidationError as error:
        return [_fault(model, fault) for fault in error.errors()]
    return [*_booleans_as_numbers(document, found)]


def refuse_faults(faults: Sequence[str], *, source: str) -> NoReturn:
    """Refuse a recipe with all of its faults.

    Raises:
        UsageError: `E_RECIPE`.
    """
    lines = "\n  ".join(faults)
    raise UsageError("E_RECIPE", f"{source} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n  {lines}")


def _booleans_as_numbers(written: Any, found: Any, where: str = "") -> Iterator[str]:
    """Faults where `true` or `false` was taken for 1 or 0, as pydantic does."""
    if isinstance(written, bool):
        if isinstance(found, int | float) and not isinstance(found, bool):
            yield f"{where}: needs a number (got {written})"
    elif isinstance(written, Mapping) and isinstance(found, BaseModel):
        names = {field.alias or name: name for name, field in type(found).model_fields.items()}
        for key, value in written.items():
            inner = getattr(found, str(names.get(key, key)), None)
            yield from _booleans_as_numbers(value, inner, f"{where}.{key}".lstrip("."))
    elif isinstance(written, Mapping) and isinstance(found, Mapping):
        for key, value in written.items():
            yield from _booleans_as_numbers(value, found.get(key), f"{where}.{key}".lstrip("."))
    elif isinstance(written, list | tuple) and isinstance(found, list | tuple):
        for place, (value, inner) in enumerate(zip(written, found, strict=False)):
            yield from _booleans_as_numbers(value, inner, f"{where}.{place}".lstrip("."))


def _fault(model: type[BaseModel], fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"]) or "recipe"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key; {suggest(str(fault['loc'][-1]), _valid_keys(model, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{where}: missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if isinstance(fault["input"], dict):
        return f"{where}: {message}"
    got = repr(fault["input"])
    return f"{where}: {message} (got {got[:MAX_QUOTED]}{' ...' * (len(got) > MAX_QUOTED)})"


def _valid_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys that the section at a location may have."""
    current: Any = model
    for part in location:
        field = (
            current.model_fields.get(str(part))
            if isinstance(current, type) and issubclass(current, BaseModel)
            else None
        )
        if field is None:
            return []
        current = next((option for option in _options(field.annotation) if isinstance(option, type)), None)
    if not (isinstance(current, type) and issubclass(current, BaseModel)):
        return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _options(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)
