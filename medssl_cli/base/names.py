"""Names that people give: of classes, structures, findings. They keep their letters, in every script."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from medssl_cli.base.errors import InputError

MAX_NAME: Final = 64
"""Characters, not bytes."""
_MARKS: Final = frozenset(" ._+/-")


def is_name_character(character: str) -> bool:
    """A letter or digit of any script, a mark on a letter, a space, or one of `._+/-`."""
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd" or character in _MARKS


def safe_name(name: str) -> str:
    """A name as it may be stored: Unicode form NFC, other characters left out, at most 64 characters; never empty."""
    kept = "".join(filter(is_name_character, unicodedata.normalize("NFC", name)))
    return kept.strip()[:MAX_NAME].strip() or "unnamed"


def is_safe_name(name: str) -> bool:
    """Whether a name may be stored as it is."""
    return bool(name) and safe_name(name) == name


def unique_names(names: Iterable[str]) -> list[str]:
    """Safe names in order; where one name was given several times, the later ones get a number.

    Raises:
        InputError: `E_NAME_COLLISION` if different names become equal.
    """
    written = list(names)
    forms: dict[str, set[str]] = defaultdict(set)
    for name in written:
        forms[safe_name(name)].add(unicodedata.normalize("NFC", name).strip())
    if any(len(different) > 1 for different in forms.values()):
        raise InputError(
            "E_NAME_COLLISION",
            "two names are told apart only by characters that may not be stored, or after the first "
            f"{MAX_NAME} characters",
        )
    found: list[str] = []
    for name in map(safe_name, written):
        candidate, number = name, 2
        while candidate in found or (number > 2 and candidate in forms):
            candidate = f"{name[: MAX_NAME - 5]}_{number}"
            number += 1
        found.append(candidate)
    return found
