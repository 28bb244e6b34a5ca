"""What a recipe means by its classes: the names that make up each, or the values where label maps have no names.

classes: {liver: [liver], kidneys: [left_kidney, right_kidney]}     by name, several joined
classes: {left_ventricle: [500]}                                    by value
classes: {liver: [liver, 6]}                                        by name; value 6 where it has no name
classes: [liver, spleen]                                            short for {liver: [liver], spleen: [spleen]}
classes: {1: liver, 2: spleen}                                      short for {liver: [liver, 1], spleen: [spleen, 2]}
classes: {abnormal: any}                                            whatever is marked

Classes that share a member are regions, which overlap: each voxel is of any number of them. Others exclude each other.

classes: {whole_tumour: [edema, enhancing], tumour_core: [enhancing]}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator

from medssl_cli.base.names import is_safe_name, safe_name

ANY: Final = "any"
MAX_VALUE: Final = 65_535
"""Largest value of a label map."""
IGNORE: Final = 255
"""What stands for "takes part in no loss and no score" where a network's classes are 0 to K."""
MAX_CLASSES: Final = IGNORE - 1
NOT_JUDGED: Final = "ignore"
"""What nnU-Net calls, in dataset.json, the value of voxels that nobody judged."""

Activation = Literal["softmax", "sigmoid"]
"""Activation of a network's outputs: `softmax`, one class per voxel, with background as output 0; or `sigmoid`,
regions that may overlap, each an output of its own, whose voxels are those with a logit above 0."""
Member = int | str
"""A value of a label map, or what a label map calls one."""
Members = Literal["any"] | tuple[Member, ...]


def parse_classes(classes: object) -> dict[str, Members]:
    """Classes in any form that a recipe may write, as members by name, in the order of the network's outputs.

    Values and names, `{1: liver}`, are put in the order of their values.

    Raises:
        ValueError: They are of no such form, or two of them are the same.
    """
    found = {_class_name(name): _members(name, members) for name, members in _pairs(classes)}
    if not found:
        raise ValueError("name at least 1 class")
    if len(found) > MAX_CLASSES:
        raise ValueError(f"at most {MAX_CLASSES} classes")
    _refuse_twins(found)
    return found


def parse_ignored(members: object) -> tuple[Member, ...]:
    """What `ignore` lists; one name or value may stand without a list.

    Raises:
        ValueError: Something else than names and values.
    """
    listed = members if isinstance(members, list | tuple) else [members]
    return tuple(_member(member) for member in listed)


Classes = Annotated[dict[str, Members], BeforeValidator(parse_classes)]
Ignored = Annotated[tuple[Member, ...], BeforeValidator(parse_ignored)]


@dataclass(frozen=True)
class WantedClasses:
    """What a recipe wants of label maps. Its k-th class, from 1 on, is output k of the network; 0 is the rest.

    Regions have no rest: the k-th, from 1 on, is output k - 1.

    Args:
        classes: Members by name.
        ignore: Names and values of voxels that take part in no loss and no score.
    """

    classes: Mapping[str, Members]
    ignore: tuple[Member, ...] = ()

    @classmethod
    def of(cls, options: Any) -> "WantedClasses":
        """Classes of a task's or a method's options."""
        return cls(options.classes, options.ignore)

    def __post_init__(self) -> None:
        both = {member for members in self.classes.values() for member in members} & set(self.ignore)
        if both:
            raise ValueError(f"{shown(min(both, key=str))} is in a class and in ignore")

    @property
    def names(self) -> dict[int, str]:
        """Names by output, from 1 on."""
        return dict(enumerate(self.classes, start=1))

    @property
    def are_regions(self) -> bool:
        """Whether the classes overlap: some member is of several."""
        return first_overlap(self.classes) is not None

    @property
    def activation(self) -> Activation:
        """How the outputs of a network with these classes are read."""
        return "sigmoid" if self.are_regions else "softmax"


def shown(member: Member) -> str:
    """A member for a message."""
    return f"value {member}" if isinstance(member, int) else repr(member)


def _pairs(classes: object) -> list[tuple[object, object]]:
    """(name, members) of each class."""
    if isinstance(classes, list | tuple):
        if not all(isinstance(name, str) for name in classes):
            raise ValueError("a list holds names; a value needs one: {liver: [6]}")
        if len(set(classes)) < len(classes):
            raise ValueError("class names must differ")
        return [(name, [name]) for name in classes]
    if not isinstance(classes, Mapping):
        raise ValueError("write {liver: [liver], kidneys: [left_kidney, right_kidney]}, by name or by value")
    if (
        not classes
        or not all(_is_value(key) for key in classes)
        or not all(isinstance(n, str) for n in classes.values())
    ):
        return list(classes.items())
    if len(set(classes.values())) < len(classes):
        raise ValueError("class names must differ; to join values, write {liver: [6, 7]}")
    return [(classes[key], [classes[key], int(key)]) for key in sorted(classes, key=int)]


def _is_value(key: object) -> bool:
    """Whether a key stands for a value; those of stored recipes have become text."""
    return (isinstance(key, int) and not isinstance(key, bool)) or (isinstance(key, str) and key.isdecimal())


def _class_name(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"a class needs a name: write {{liver: [{name}]}}")
    if not is_safe_name(name):
        raise ValueError(f"class name {name!r}: letters, digits, space and ._+/-, at most 64 characters")
    return name


def _members(name: object, members: object) -> Members:
    if members == ANY:
        return ANY
    listed = members if isinstance(members, list | tuple) else [members]
    if not listed:
        raise ValueError(f"class {name!r} needs at least one name or value")
    return tuple(dict.fromkeys(_member(member) for member in listed))


def _member(member: object) -> Member:
    """Names in the form in which caches store them."""
    if isinstance(member, str) and member.strip():
        return safe_name(member)
    if isinstance(member, int) and not isinstance(member, bool) and 1 <= member <= MAX_VALUE:
        return member
    raise ValueError(f"{member!r} is neither a name nor a value from 1 to {MAX_VALUE}; 0 is background")


def first_overlap(classes: Mapping[str, Members]) -> tuple[str, str] | None:
    """The first two classes that share a member; None where classes exclude each other."""
    owners: dict[Member, str] = {}
    for name, members in classes.items():
        if members == ANY and len(classes) > 1:
            return name, next(other for other in classes if other != name)
        for member in members if members != ANY else ():
            if owners.setdefault(member, name) != name:
                return owners[member], name
    return None


def refuse_overlap(classes: Mapping[str, Members]) -> None:
    """Refuse regions where each voxel must have one class.

    Raises:
        ValueError: Some classes overlap.
    """
    pair = first_overlap(classes)
    if pair is not None:
        raise ValueError(f"classes {pair[0]!r} and {pair[1]!r} overlap, and here each voxel has one class")


def _refuse_twins(classes: Mapping[str, Members]) -> None:
    """Two classes of the same members would be one structure under two names."""
    owners: dict[object, str] = {}
    for name, members in classes.items():
        same = members if members == ANY else frozenset(members)
        if owners.setdefault(same, name) != name:
            raise ValueError(f"classes {owners[same]!r} and {name!r} are the same")


def joined(names: Sequence[str], limit: int = 5) -> str:
    """The first few names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
