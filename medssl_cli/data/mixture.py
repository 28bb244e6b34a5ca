"""Prepared items of several kinds as one sequence, in which an item comes as often as its kind counts."""

from collections.abc import Sequence

import numpy as np

from medssl_cli.cache.prepared import ItemSequence, PreparedItem


class MixedItems(ItemSequence):
    """Items of one part after the other, all of a part so many times.

    Args:
        parts: Items of each, none of them empty.
        weights: How often each part comes.
    """

    def __init__(self, parts: Sequence[Sequence[PreparedItem]], weights: Sequence[int]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) * weight for part, weight in zip(parts, weights, strict=True)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def item(self, index: int) -> PreparedItem:
        """See `ItemSequence.item`."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        return self._parts[number][(index - first) % len(self._parts[number])]


def mixed(parts: Sequence[Sequence[PreparedItem]], weights: Sequence[int] | None = None) -> Sequence[PreparedItem]:
    """Items of parts as one sequence; those of a single part that counts once stay what they are.

    Args:
        parts: Items of each.
        weights: How often each part comes; once by default.
    """
    counts = [1] * len(parts) if weights is None else weights
    return parts[0] if list(counts) == [1] else MixedItems(parts, counts)
