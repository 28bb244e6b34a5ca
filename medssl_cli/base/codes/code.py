"""What is said about a code, wherever it occurs."""

from typing import NamedTuple


class Code(NamedTuple):
    """One entry of the registry.

    Args:
        meaning: What is the case. Never changes.
        remedy: What to do about it: the hint of every error that brings none of its own.
        is_retired: Nothing gives it any more; caches and reports of earlier versions may hold it.
    """

    meaning: str
    remedy: str
    is_retired: bool = False
