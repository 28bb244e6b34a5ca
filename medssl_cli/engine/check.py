"""A recipe before it costs anything: every fault at once, and whether a cache has what it needs."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel

from medssl_cli.base import plugins
from medssl_cli.base.errors import UsageError
from medssl_cli.base.faults import model_faults, refuse_faults
from medssl_cli.base.talk import Talk
from medssl_cli.cache.named_splits import GivenSplit
from medssl_cli.cache.store import Cache
from medssl_cli.data.selection import say_misfits
from medssl_cli.engine.build import build_method, check_canvas, check_recipe
from medssl_cli.engine.choices import Choices, split_of
from medssl_cli.engine.training_parts import training_parts
from medssl_cli.nn.build import build_backbone
from medssl_cli.plan.common import FIXED_SIZES
from medssl_cli.recipe import Named, Recipe, TaskRecipe, automatic_keys, raw_recipe, recipe_kind, sketched
from medssl_cli.recipe_sections import UnlabelledImages
from medssl_cli.tasks import load_part, supervision_of
from medssl_cli.unlabelled import KIND

T = TypeVar("T")


def checked_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe that can be built: its keys and values, its task or method, its backbone, and their sizes.

    What it leaves to a plan has stand-ins.

    Raises:
        UsageError: `E_RECIPE` with one line per fault; a single fault under its own code.
    """
    raw = raw_recipe(path, overrides)
    kind = recipe_kind(raw)
    document = sketched(raw) if kind is TaskRecipe else raw
    is_network_planned = kind is TaskRecipe and any(map(_shapes_network, automatic_keys(raw)))
    faults = _Faults(path.name)
    recipe = faults.validated(kind, document)
    part = "task" if kind is TaskRecipe else "method"
    module = faults.attempt(lambda: _plugin(part, document[part]["name"])) if _is_named(document, part) else None
    if module is not None:
        options = {key: value for key, value in document[part].items() if key != "name"}
        faults.validated(module.OPTIONS if part == "task" else module.Options, options, prefix=f"{part}.")
    if isinstance(section := document.get("unlabelled"), dict) and isinstance(section.get("method"), str):
        _check_unlabelled(faults, section)
    backbone = None
    if _is_named(document, "backbone"):
        backbone = faults.attempt(lambda: build_backbone(Named.model_validate(document["backbone"])))
    if recipe is not None and module is not None and backbone is not None and not is_network_planned:
        faults.attempt(lambda: check_canvas(recipe, backbone, module))
    faults.refuse()
    assert recipe is not None
    check_recipe(recipe, is_network_planned=is_network_planned)
    return recipe


def _shapes_network(key: str) -> bool:
    """Whether a dotted key says what a network is or sees: while a plan is to give it, nobody knows what fits."""
    return key in (*FIXED_SIZES, "backbone") or key.startswith("backbone.")


def _check_unlabelled(faults: "_Faults", section: dict[str, Any]) -> None:
    """Note what is wrong with the options of a method that learns from unlabelled images."""
    module = faults.attempt(lambda: plugins.load(KIND, section["method"]))
    if module is not None:
        options = {key: value for key, value in section.items() if key not in UnlabelledImages.model_fields}
        faults.validated(module.OPTIONS, options, prefix="unlabelled.")


def check_with_cache(recipe: Recipe, cache: Cache, talk: Talk, split_file: GivenSplit | None = None) -> str:
    """Whether a cache has images and labels that a training by the recipe could begin with; what it has, in one line.

    Args:
        recipe: Recipe of a task or a pre-training.
        cache: Holds the images.
        talk: Told what is odd.
        split_file: Who trains, validates and tests, of a task.

    Raises:
        MedsslError: What the training itself would be refused with.
        UsageError: `E_USAGE`, a split file for a pre-training.
    """
    if isinstance(recipe, TaskRecipe):
        supervision = supervision_of(recipe)
        usable = supervision.usable(cache, talk)
        split = split_of(recipe, cache, usable, Choices(split=split_file), talk)
        say_misfits(split.train, recipe.data, talk)
        supervision.check(cache, usable, split, talk)
        return f"{len(usable)} images: {len(split.train)} train, {len(split.val)} validation, {len(split.test)} test"
    if split_file is not None:
        raise UsageError("E_USAGE", "a pre-training has no split file", hint="leave --split-file out")
    found = training_parts(recipe, cache, {}, build_method(recipe).views(), talk)
    return f"{len(found)} images" if recipe.data.channels is None else f"{len(found)} examples"


def _plugin(part: str, name: str) -> ModuleType:
    """The module that holds the options of a task or a method."""
    return load_part(name, "network") if part == "task" else plugins.load(part, name)


def _is_named(document: dict[str, Any], part: str) -> bool:
    section = document.get(part)
    return isinstance(section, dict) and isinstance(section.get("name"), str)


class _Faults:
    """Faults of a recipe, collected.

    Args:
        source: Name of the file.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._lines: list[str] = []
        self._errors: list[UsageError] = []

    def validated(self, model: type[Any], document: Any, *, prefix: str = "") -> Any:
        """The document as a model, or None."""
        assert issubclass(model, BaseModel)
        found = model_faults(model, document)
        self._lines += [prefix + line for line in found]
        return None if found else model.model_validate(document)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What a call returns, or None if it is refused."""
        try:
            return work()
        except UsageError as error:
            self._errors.append(error)
            return None

    def refuse(self) -> None:
        """Raise what was found, if anything."""
        if len(self._errors) == 1 and not self._lines:
            raise self._errors[0]
        lines = self._lines + [f"{error.message} ({error.hint})" for error in self._errors]
        if lines:
            refuse_faults(lines, source=self._source)
