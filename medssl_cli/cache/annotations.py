"""Boxes and findings of items that are in the cache already."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from medssl_cli.cache.items import Box, check_label_set
from medssl_cli.cache.store import Cache


def add_boxes(cache: Cache, item_id: str, label_set: str, boxes: Sequence[Box]) -> bool:
    """Add boxes to an item; call inside `Cache.writing`.

    Args:
        cache: Where the item is.
        item_id: An item of the cache.
        label_set: Name of the set.
        boxes: In continuous voxel indices of the item; none at all says that somebody looked and found nothing.

    Returns:
        False if the same boxes are there already.

    Raises:
        InputError: `E_LABEL_CONFLICT` if other boxes of the set are there.
        ValueError: The set's name is not a short word.
    """
    return _add(cache, item_id, "boxes", label_set, tuple(boxes))


def add_findings(cache: Cache, item_id: str, label_set: str, findings: Mapping[str, float]) -> bool:
    """Add findings to an item: 1 present, 0 absent, between them a probability; otherwise like `add_boxes`.

    Args:
        cache: Where the item is.
        item_id: An item of the cache.
        label_set: Name of the set.
        findings: By name.
    """
    return _add(cache, item_id, "findings", label_set, dict(findings))


def _add(cache: Cache, item_id: str, field: Literal["boxes", "findings"], label_set: str, entry: Any) -> bool:
    check_label_set(label_set)

    return cache.update_record(
        item_id, lambda record: record.model_copy(update={field: {**getattr(record, field), label_set: entry}})
    )
