"""From the values of stored label maps to the classes of a recipe, by what each label map calls its values.

A value has a name where its label map gives it one; `class_3`, which ingest writes where nobody named the value 3, is
none. A class takes a value by that name. It takes a value by number where the value has no name, and, if the recipe
gives the class no names at all, everywhere; then all label maps must call that value the same.

Shapes: V stored values and one more, K regions, X Y Z space.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.classes import ANY, IGNORE, NOT_JUDGED, Member, WantedClasses, joined
from medssl_cli.base.errors import UsageError
from medssl_cli.base.plugins import suggest
from medssl_cli.cache.items import LabelRecord

Table = NDArray[np.uint8]
"""Class by stored value, `[V]`: 0 background, 1 to K, `IGNORE`. The last entry is for every larger value.

For regions, `[K, V]`: 1 inside, 0 outside, `IGNORE` in all of them.
"""


def named(label: LabelRecord, value: int) -> str | None:
    """What a label map calls a value; None if nobody named it."""
    name = label.classes.get(value)
    return None if not name or name == f"class_{value}" else name


def members_of_region(label: LabelRecord, values: Sequence[int]) -> tuple[Member, ...]:
    """What makes up a region, as a recipe lists it: names, and values that have none."""
    return tuple(named(label, value) or value for value in values)


def table_of(label: LabelRecord, wanted: WantedClasses) -> Table:
    """Which values of a label map are which class, or in which regions.

    Raises:
        UsageError: `E_LABEL_CLASSES`, a value is of two classes that do not overlap, or of a class and ignored.
    """
    values = sorted({*label.classes, *label.voxels_per_class, *((label.ignore,) if label.ignore else ())})
    num_values = values[-1] + 2 if values else 1
    table = np.zeros((len(wanted.classes), num_values) if wanted.are_regions else num_values, dtype=np.uint8)
    for value in values:
        places = [IGNORE] if value == label.ignore else _places_of(label, value, wanted)
        if not wanted.are_regions:
            table[value] = places[0] if places else 0
        elif places == [IGNORE]:
            table[:, value] = IGNORE
        else:
            table[[place - 1 for place in places], value] = 1
    return table


def to_classes(voxels: NDArray[np.integer], table: Table) -> NDArray[np.uint8]:
    """Classes of stored label voxels, of the same shape, or regions `[K, ...]`.

    Values that the label map does not know are background.
    """
    classes = np.empty((*table.shape[:-1], *voxels.shape), dtype=np.uint8)
    for number, part in enumerate(voxels):  # part by part: the indices are eight times as large as the voxels
        classes[..., number, *(slice(None),) * part.ndim] = table.take(part, axis=-1, mode="clip")
    return classes


def places_in(table: Table, value: int) -> list[int]:
    """What a stored value is: classes or regions from 1 on, `IGNORE`, or nothing."""
    entries = table[..., min(value, table.shape[-1] - 1)]
    if entries.ndim == 0:
        return [int(entries)] if entries else []
    return [IGNORE] if entries[0] == IGNORE else (np.flatnonzero(entries) + 1).tolist()


def class_voxels(label: LabelRecord, wanted: WantedClasses) -> dict[int, int]:
    """Voxels of each class that a label map shows."""
    table, found = table_of(label, wanted), Counter[int]()
    for value, count in label.voxels_per_class.items():
        for place in places_in(table, value):
            found[place] += count
    return {place: found[place] for place in wanted.names if found[place]}


def tables_of(labels: Sequence[LabelRecord], wanted: WantedClasses) -> list[Table]:
    """`table_of` of each label map; equal ones are one array."""
    known: dict[bytes, Table] = {}  # of one recipe, so that equal bytes are of equal shapes
    tables = (table_of(label, wanted) for label in labels)
    return [known.setdefault(table.tobytes(), table) for table in tables]


def _places_of(label: LabelRecord, value: int, wanted: WantedClasses) -> list[int]:
    """Classes or regions, from 1 on, that a value is of; or `IGNORE` alone."""
    name, written = named(label, value), label.classes.get(value)
    takers = [place for place, members in enumerate(wanted.classes.values(), start=1)
              if members == ANY or _takes(members, value, name, written)]  # fmt: skip
    if len(takers) > 1 and not wanted.are_regions:
        first, second = (repr(wanted.names[place]) for place in takers[:2])
        raise UsageError(
            "E_LABEL_CLASSES",
            f"value {value}, called {written!r}, is in the classes {first} and {second}",
            hint="take it out of one of the two; classes that are meant to overlap list it under one name or value",
        )
    if not _takes(wanted.ignore, value, name, written):
        return takers
    by_name = [place for place in takers if wanted.classes[wanted.names[place]] != ANY]
    if by_name:
        raise UsageError(
            "E_LABEL_CLASSES",
            f"value {value}, called {written!r}, is in the class {wanted.names[by_name[0]]!r} and in ignore",
            hint="take it out of one of the two",
        )
    return [IGNORE]


def _takes(members: Sequence[Member], value: int, name: str | None, written: str | None) -> bool:
    """Whether members take a value that a label map calls so; see the top of this file."""
    if written is not None and written in members:
        return True
    return value in members and (name is None or not _has_names(members))


def _has_names(members: Sequence[Member]) -> bool:
    return any(isinstance(member, str) for member in members)


@dataclass(frozen=True)
class LabelSurvey:
    """All label maps of a set, and what a recipe makes of them.

    Args:
        labels: One per image.
        wanted: Classes of the recipe.
        option: Where the recipe has them, for messages.
    """

    labels: Sequence[LabelRecord]
    wanted: WantedClasses
    option: str = "task.classes"

    def refuse_contradictions(self) -> None:
        """Refuse what would train or score one structure under the name of another.

        Raises:
            UsageError: `E_LABEL_CLASSES`: a value with two names that the recipe takes by number, a name that no label
                map has or that some write in another way, label maps without names for a recipe that has nothing else,
                or none that shows any class.
        """
        self.refuse_two_names()
        self._refuse_nameless()
        for name, members in self.wanted.classes.items():
            if members != ANY:
                self._refuse_unknown(name, members)
        self._refuse_unknown("ignore", self.wanted.ignore)
        self.refuse_other_spellings()
        if self._left_out and not self._values_by_class:
            raise UsageError(
                "E_LABEL_CLASSES",
                f"no label map has a voxel of {joined(list(self.wanted.classes))}; "
                f"they have {joined(sorted(self._left_out))}",
                hint=f"medssl cache labels lists them; {self.option} takes them by name or value",
            )

    def refuse_other_spellings(self, hint: str = "") -> None:
        """Refuse a name that differs from one of the recipe in its case or its separators only, and is of no class.

        One structure that is written in two ways would be a class in some images and background in the others. Both
        names in one label map are two structures.

        Args:
            hint: What to do; else how to change the recipe.

        Raises:
            UsageError: `E_LABEL_CLASSES`.
        """
        wanted = {
            _spelling(member): (name, member)
            for name, members in self.wanted.classes.items()
            for member in (members if members != ANY else ())
            if isinstance(member, str)
        }
        pairs = [(other, *wanted[_spelling(other)]) for other in sorted(self._left_out) if _spelling(other) in wanted]
        for other, name, member in pairs:
            if not any({other, member} <= set(label.classes.values()) for label in self.labels):
                raise UsageError(
                    "E_LABEL_CLASSES",
                    f"{name!r} is called {member!r} by the classes and {other!r} in {self._left_out[other]} of "
                    f"{len(self.labels)} label maps",
                    hint=hint
                    or f"if they are the same, write {self.option}: {{{name}: [{member}, {other}]}}, "
                    "or ingest labels that use one name",
                )

    def refuse_two_names(self) -> None:
        """Refuse a value that is taken by number and that label maps call by different names.

        Raises:
            UsageError: `E_LABEL_CLASSES`.
        """
        for members in (*self.wanted.classes.values(), self.wanted.ignore):
            if members != ANY:
                self._refuse_two_names(members)

    def refuse_strangers(self) -> None:
        """Refuse label maps that mark something and have nothing in common with the classes.

        Raises:
            UsageError: `E_LABEL_CLASSES`.
        """
        if self._left_out and not self._values_by_class:
            raise UsageError(
                "E_LABEL_CLASSES",
                f"the label maps have {joined(sorted(self._left_out))}, the model {joined(list(self.wanted.classes))}",
                hint="score it with labels that have its names; name another set with medssl evaluate --label-set",
            )

    def notes(self) -> list[str]:
        """What a user should know of the way from values to classes, one line each."""
        lines = []
        values_by_class = self._values_by_class
        moved = {name: values_by_class[name] for name in self.wanted.classes if len(values_by_class.get(name, ())) > 1}
        if any(len(self._names.get(value, ())) > 1 for value in self._names) or self._is_moved:
            values = "; ".join(f"{name} is value {' or '.join(map(str, sorted(v)))}" for name, v in moved.items())
            lines.append(f"classes are matched by name, not by value{': ' * bool(values)}{values}")
        lines += [
            f"value {value} of {name!r} is called {', '.join(map(repr, called))}: it is not taken, as it has a name"
            for name, value, called in self._outvoted
        ]
        if self._left_out:
            counted = [
                f"{name} ({number} image{'s' * (number > 1)})" for name, number in sorted(self._left_out.items())
            ]
            lines.append(
                f"W_LABELS_LEFT_OUT: labels that the recipe does not name are background: {joined(counted, 8)}"
            )
        return lines

    def unseen(self) -> list[str]:
        """Names of classes of which no label map has a voxel."""
        seen = {place for _, _, place in self._found}
        return [name for place, name in self.wanted.names.items() if place not in seen]

    @cached_property
    def _found(self) -> list[tuple[int, int, int]]:
        """(number of the label map, value that it shows, class or 0) of all of them; one for each region of a value."""
        tables = tables_of(self.labels, self.wanted)
        return [(number, value, place)
                for number, label in enumerate(self.labels) for value in label.voxels_per_class
                for place in places_in(tables[number], value) or [0]]  # fmt: skip

    @cached_property
    def _names(self) -> Mapping[int, set[str]]:
        """Names of each value, over all label maps."""
        found: dict[int, set[str]] = defaultdict(set)
        for label in self.labels:
            for value in label.classes:
                if (name := named(label, value)) is not None:
                    found[value].add(name)
        return found

    @cached_property
    def _written(self) -> list[str]:
        """All that label maps call anything, with the name that `LabelRecord.ignore` goes by."""
        names = {name for label in self.labels for name in label.classes.values()}
        return sorted(names | {NOT_JUDGED for label in self.labels if label.ignore is not None})

    @cached_property
    def _nameless(self) -> frozenset[int]:
        """Values with voxels that some label map does not name."""
        return frozenset(
            value for label in self.labels for value in label.voxels_per_class if named(label, value) is None
        )

    @cached_property
    def _values_by_class(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = defaultdict(set)
        for _, value, place in self._found:
            if name := self.wanted.names.get(place):
                found[name].add(value)
        return found

    @property
    def _is_moved(self) -> bool:
        """Whether a value that the recipe gives beside a name is another in some label map."""
        for name, members in self.wanted.classes.items():
            values = {member for member in members if isinstance(member, int)}
            if members != ANY and _has_names(members) and values and self._values_by_class.get(name, set()) - values:
                return True
        return False

    @property
    def _outvoted(self) -> list[tuple[str, int, list[str]]]:
        """(class, value, names) where a class takes a value beside names, and label maps call it by none of these."""
        mixed = {name: members for name, members in self.wanted.classes.items()
                 if members != ANY and _has_names(members)}  # fmt: skip
        return [
            (name, member, others)
            for name, members in mixed.items()
            for member in members
            if isinstance(member, int)
            and (others := sorted((self._names.get(member, set()) - set(members)) & set(self._left_out)))
        ]

    @cached_property
    def _left_out(self) -> Counter[str]:
        """In how many images a name, or a value without one, is of no class."""
        missed = ((number, value) for number, value, place in self._found if place == 0)
        images = {(number, named(self.labels[number], value) or f"value {value}") for number, value in missed}
        return Counter(name for _, name in images)

    def _refuse_two_names(self, members: Sequence[Member]) -> None:
        """A value that is taken by number, or as what stands for its number, must be one thing."""
        for value in sorted(self._nameless):
            others = sorted(self._names.get(value, set()) - set(members))
            if f"class_{value}" in members and others:
                self._refuse_value(value, f"{others[0]!r} in some label maps and nothing in others", others)
        for value in (member for member in members if isinstance(member, int)):
            names = sorted(self._names.get(value, ()))
            if not _has_names(members):
                if len(names) > 1:
                    self._refuse_value(value, f"{names[0]!r} in some label maps and {names[1]!r} in others", names)
            elif value in self._nameless and (others := [name for name in names if name not in members]):
                self._refuse_value(value, f"{others[0]!r} in some label maps and nothing in others", others)

    def _refuse_value(self, value: int, called: str, names: Sequence[str]) -> None:
        entries = ", ".join(f"{name}: [{name}]" for name in names)
        raise UsageError(
            "E_LABEL_CLASSES",
            f"value {value} is called {called}: it cannot be taken by number",
            hint=f"take it by name, {self.option}: {{{entries}}}; or ingest labels with names for all images",
        )

    def _refuse_unknown(self, name: str, members: Sequence[Member]) -> None:
        """A name that no label map has is a mistake, unless a value stands for it where there are no names."""
        missing = [member for member in members if isinstance(member, str) and member not in self._written]
        values = [member for member in members if isinstance(member, int)]
        if not missing or not self.labels or (values and (self._values_by_class.get(name) or not self._names)):
            return
        for value in values:
            for other in sorted(self._names.get(value, ())):
                raise UsageError(
                    "E_LABEL_CLASSES",
                    f"value {value} is {missing[0]!r} in the recipe and {other!r} in the label maps",
                    hint=f"if they are the same, write {self.option}: {{{name}: [{other}]}}",
                )
        raise UsageError(
            "E_LABEL_CLASSES",
            f"no label map has {missing[0]!r}; they have {joined(self._written)}",
            hint=self._region_hint(name, missing[0]) or suggest(missing[0], self._written),
        )

    def _region_hint(self, name: str, member: str) -> str:
        """How a recipe lists what a data set calls a region; "" if none is called so."""
        found = [(label, label.regions[member]) for label in self.labels if member in label.regions]
        if not found:
            return ""
        members = ", ".join(map(str, members_of_region(*found[0])))
        return f"it is a region, which is listed by its parts: {self.option}: {{{name}: [{members}]}}"

    def _refuse_nameless(self) -> None:
        """A value without a name says nothing to a recipe that goes by names."""
        unclear = {(number, value) for number, value, place in self._found
                   if place == 0 and named(self.labels[number], value) is None}  # fmt: skip
        for value in sorted({value for _, value in unclear}):
            for name, members in self.wanted.classes.items():
                if called := sorted(self._names.get(value, set()) & set(members)):
                    raise UsageError(
                        "E_LABEL_CLASSES",
                        f"value {value} is called {called[0]!r} in some label maps and nothing in others: "
                        f"there {name!r} cannot be found by name",
                        hint=f"if they are the same, add the value, {self.option}: {{{name}: [{called[0]}, {value}]}}",
                    )
        bare = {number for number, label in enumerate(self.labels)
                if not any(named(label, value) for value in label.classes)}  # fmt: skip
        written = {name for number in bare for name in self.labels[number].classes.values()}
        by_name = [
            (name, members[0])
            for name, members in self.wanted.classes.items()
            if members != ANY and all(isinstance(member, str) and member not in written for member in members)
        ]
        values = sorted({value for number, value in unclear if number in bare})
        if by_name and values:
            (name, member), shown = by_name[0], ", ".join(map(str, values[:8]))
            raise UsageError(
                "E_LABEL_CLASSES",
                f"{len(bare)} of {len(self.labels)} label maps have no names, only values {shown}: "
                f"{name!r} cannot be found by name",
                hint=f"add the value that it has there, {self.option}: {{{name}: [{member}, VALUE]}}",
            )


def _spelling(name: str) -> str:
    """A name without what people write in different ways: case and separators."""
    return "".join(letter for letter in name.casefold() if letter not in " _-.")
