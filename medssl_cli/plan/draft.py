"""A planned recipe: every value with its reason, as plain data and as YAML with one comment a line."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from medssl_cli.recipe import AUTO, flow_yaml

RULES: Final = ("window_hu", "zscore", "percentiles")
"""Keys of a recipe of which one is given: the rule of intensities."""
GIVEN: Final = "as given"
EXPANDED: Final = ("classes",)
"""Keys inside a section that take a line for each of their own."""
LISTED: Final = ("channels",)
"""Keys of the data section whose parts take a line each."""
PLANNED_WITH_PINS: Final = ("task", "data.channels")
"""What planners write themselves, with what is given of it."""
COLUMN: Final = 50


@dataclass(frozen=True)
class PlannedValue:
    """A value of a recipe, and what follows from it or why it is so."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Pins:
    """What of a recipe is given and stays; everything else is planned.

    Args:
        document: The recipe as it is written; values that are `auto` count as not given.
    """

    document: Mapping[str, Any] = field(default_factory=dict)

    def has(self, key: str) -> bool:
        """Whether a dotted key is given."""
        return self._found(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """The value at a dotted key, or another one where it is not given."""
        found = self._found(key)
        return default if found is None else found[0]

    def is_whole(self, key: str) -> bool:
        """Whether a section by name is given of which nothing is left to a plan."""
        section = self.get(key)
        return isinstance(section, Mapping) and is_plugin(section)

    def _found(self, key: str) -> tuple[Any] | None:
        current: Any = self.document
        for part in key.split("."):
            if not isinstance(current, Mapping) or part not in current:
                return None
            current = current[part]
        return None if current == AUTO else (current,)


@dataclass(frozen=True)
class Draft:
    """A recipe that could be trained: values by dotted key, in the order in which they are written.

    Args:
        values: Planned and given ones.
        cost: Nominal work of a step, to compare drafts by.
        most_steps: A longer training teaches nothing more.
    """

    values: dict[str, PlannedValue]
    cost: float = 1.0
    most_steps: int = 250_000

    def document(self) -> dict[str, Any]:
        """As the plain data of a recipe."""
        document: dict[str, Any] = {}
        for key, planned in self.values.items():
            *parents, last = key.split(".")
            section = document
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = copy.deepcopy(planned.value)
        return document

    def with_values(self, values: Mapping[str, PlannedValue]) -> "Draft":
        """The same with other values."""
        return replace(self, values={**self.values, **values})

    def pinned(self, pins: Pins) -> "Draft":
        """The same with everything that is given: a section or a value replaces what was planned of it."""
        values = dict(self.values)
        for key, value in _leaves(pins.document):
            if key in PLANNED_WITH_PINS or (key in values and values[key].value == value):
                continue
            for known in [known for known in values if known.startswith(f"{key}.")]:
                del values[known]
            values[key] = PlannedValue(value, GIVEN)
        return replace(self, values=values)


def filled(document: Mapping[str, Any], planned: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with what was planned in place of every `auto`.

    A rule of intensities that is `auto` may become another rule: a window for CT, z-scores for everything else.

    Args:
        document: As it is written.
        planned: A whole recipe.
    """
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and isinstance(planned.get(key), Mapping):
            found[key] = filled(value, planned[key])
        elif value != AUTO:
            found[key] = value
        elif key in RULES:
            found |= {rule: planned[rule] for rule in (*RULES, "channels") if rule in planned}
        elif key in planned:
            found[key] = planned[key]
    return found


def recipe_text(head: Sequence[str], draft: Draft) -> str:
    """A recipe as YAML: lines of a head, then one value a line, each with its reason.

    Args:
        head: Comments.
        draft: Draft of the recipe.
    """
    lines = [f"# {line}".rstrip() for line in head]
    sections: set[str] = set()
    tops = list(dict.fromkeys(key.partition(".")[0] for key in draft.values))
    for key, planned in sorted(draft.values.items(), key=lambda item: tops.index(item[0].partition(".")[0])):
        *parents, last = key.split(".")
        for depth in range(len(parents)):
            section = ".".join(parents[: depth + 1])
            if section not in sections:
                sections.add(section)
                lines.append(f"{'  ' * depth}{parents[depth]}:")
        lines += _entry(last, planned, depth=len(parents))
    return "\n".join(lines) + "\n"


def _entry(key: str, planned: PlannedValue, *, depth: int) -> Iterator[str]:
    """One value on its line, or a section with a line for each of its own."""
    indent = "  " * depth
    if isinstance(planned.value, Mapping) and (depth == 0 or key in EXPANDED) and planned.value:
        yield _commented(f"{indent}{key}:", planned.reason)
        for name, value in planned.value.items():
            yield f"{indent}  {flow_yaml({name: value})[1:-1]}"
        return
    if key in LISTED and isinstance(planned.value, list) and isinstance(planned.value[0], Mapping):
        yield _commented(f"{indent}{key}:", planned.reason)
        for each in planned.value:
            yield f"{indent}  - {flow_yaml(each)}"
        return
    yield _commented(f"{indent}{flow_yaml({key: planned.value})[1:-1]}", planned.reason)


def _commented(text: str, reason: str) -> str:
    return f"{text:<{COLUMN - 2}}  # {reason}" if reason else text


def _leaves(document: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Values that are given by dotted key; below the second level sections count as values."""
    for key, value in document.items():
        if value == AUTO:
            continue
        if isinstance(value, Mapping) and depth == 0 and not is_plugin(value):
            yield from _leaves(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def is_plugin(section: Mapping[str, Any]) -> bool:
    """Whether a section is one by name, whose other keys belong together."""
    return "name" in section and AUTO not in section.values()
