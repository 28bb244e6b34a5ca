"""Boxes and findings of items that are in the cache already."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from medssl_cli.cache.format import check_label_set
from medssl_cli.cache.items import Box, ItemRecord
from medssl_cli.cache.records import new_entries
from medssl_cli.cache.store import Cache


def add_boxes(cache: Cache, item_id: str, label_set: str, boxes: Sequence[Box], *, dry_run: bool = False) -> bool:
    """Add boxes to an item; call inside `Cache.writing`.

    Args:
        cache: Where the item is.
        item_id: An item of the cache.
        label_set: Name of the set.
        boxes: Boxes in continuous voxel indices of the item; none at all says that somebody looked and found nothing.
        dry_run: Only say what would be; the item need not exist then.

    Returns:
        False if the same boxes are there already.

    Raises:
        InputError: `E_LABEL_CONFLICT` if other boxes of the set are there.
        ValueError: The set's name is not a short word.
    """
    return _add(cache, item_id, "boxes", label_set, tuple(boxes), dry_run)


def add_findings(
    cache: Cache, item_id: str, label_set: str, findings: Mapping[str, float], *, dry_run: bool = False
) -> bool:
    """Add findings to an item: 1 present, 0 absent, between them a probability; otherwise like `add_boxes`.

    Args:
        cache: Where the item is.
        item_id: An item of the cache.
        label_set: Name of the set.
        findings: Findings by name.
        dry_run: Only say what would be.
    """
    return _add(cache, item_id, "findings", label_set, dict(findings), dry_run)


def _add(
    cache: Cache, item_id: str, field: Literal["boxes", "findings"], label_set: str, entry: Any, dry_run: bool
) -> bool:
    check_label_set(label_set)

    def with_entry(record: ItemRecord) -> ItemRecord:
        return record.model_copy(update={field: {**getattr(record, field), label_set: entry}})

    if not dry_run:
        return cache.update_record(item_id, with_entry)
    if not cache.item_directory(item_id).exists():
        return True
    record = cache.record(item_id)
    return bool(new_entries(record, with_entry(record)))
