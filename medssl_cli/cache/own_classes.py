"""The classes that label maps offer by themselves: what they call their values, and the regions that they declare."""

from collections.abc import Sequence

from medssl_cli.base.classes import MAX_CLASSES, Members, WantedClasses
from medssl_cli.base.errors import UsageError
from medssl_cli.cache.items import LabelRecord
from medssl_cli.cache.targets import members_of_region, named


def everything_in(labels: Sequence[LabelRecord]) -> WantedClasses:
    """A class for every name, and for every value without one, in the order of their values; at most as many as fit."""
    first: dict[str, int] = {}
    for label in labels:
        for value in label.voxels_per_class:
            name = named(label, value) or f"class_{value}"
            first[name] = min(value, first.get(name, value))
    ordered = sorted(first, key=lambda name: (first[name], name))[:MAX_CLASSES]
    return WantedClasses({name: _name_or_value(name, first[name]) for name in ordered})


def declared_in(labels: Sequence[LabelRecord]) -> WantedClasses:
    """The regions that label maps declare, the largest first, and a class for each name or value that is in none.

    A value with a name is a class of its own too. Without regions this is `everything_in`.

    Raises:
        UsageError: `E_LABEL_CLASSES`, one name stands for different regions, or for a region and a class.
    """
    classes = everything_in(labels).classes
    regions = _regions(labels)
    for name in regions:
        if name in classes:
            raise _two_meanings(name, "a region in some label maps and a class in others")
    inside = {member for members in regions.values() for member in members}
    alone = {name: members for name, members in classes.items() if name in members[:1] and not inside & {*members[1:]}}
    ordered = sorted(regions, key=lambda name: -len(regions[name]))
    found: dict[str, Members] = {name: regions[name] for name in ordered} | alone
    return WantedClasses(dict([*found.items()][:MAX_CLASSES]))


def _regions(labels: Sequence[LabelRecord]) -> dict[str, Members]:
    """Members of each region that some label map shows; of several regions of the same members the first."""
    found: dict[str, Members] = {}
    shown: set[str] = set()
    for label in labels:
        for name, values in label.regions.items():
            members = members_of_region(label, values)
            if found.setdefault(name, members) != members:
                raise _two_meanings(name, "of other values in some label maps than in others")
            shown.update({name} if label.voxels_per_class.keys() & {*values} else ())
    first = {members: name for name, members in reversed(found.items())}
    return {name: members for members, name in reversed(first.items()) if name in shown}


def _name_or_value(name: str, value: int) -> Members:
    return (name, value) if name == f"class_{value}" else (name,)


def _two_meanings(name: str, what: str) -> UsageError:
    return UsageError(
        "E_LABEL_CLASSES",
        f"{name!r} is {what}",
        hint="write the classes of a recipe by hand, or keep the data sets apart: medssl ingest --label-set NAME",
    )
