"""What is known about an item, on disk: `item.json`, which never changes, and one file for each thing added later.

A label map, a set of boxes, a set of findings, a successor, and a channel or case that was not known are entries. An
entry is a small file beside `item.json` that appears under its name by one link, which fails if the name is taken. So
processes that add to one item at the same time can neither overwrite nor lose anything of each other, on any file
system, and no lock is needed.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import GateError, InputError
from medssl_cli.base.files import json_bytes, read_regular, sha256_json
from medssl_cli.base.plain_json import parse_json
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.publish import unreadable

ITEM: Final = "item.json"
IMAGE: Final = "image.b2nd"
SUPERSEDED: Final = "superseded.json"
SINGLE: Final = {SUPERSEDED: "superseded_by", "channel.json": "channel", "example.json": "example_key"}
"""Files of entries of which an item has one at most. What `item.json` says of channel and case stays."""
FIELDS: Final = {"label": "labels", "boxes": "boxes", "findings": "findings"}
ENTRY: Final = re.compile(r"(label|boxes|findings)-([A-Za-z0-9_-]{1,32})\.json")
LABEL_ARRAY: Final = re.compile(r"label-([A-Za-z0-9_-]{1,32})-([0-9a-f]{12})\.b2nd")
ANOTHER_SET: Final = (
    "ingest all labels again under another --label-set NAME; train with --set task.label_set=NAME, and score a trained "
    "model with medssl evaluate --label-set NAME"
)


def label_file(label_set: str, sha256: str) -> str:
    """Name of a label map's file: by content, so that two processes never write different bytes under one name."""
    return f"label-{label_set}-{sha256[:12]}.b2nd"


def sealed_record(record: ItemRecord) -> bytes:
    """What an `item.json` holds: the record and its digest."""
    return _sealed(record.model_dump(mode="json"))


def read_record(directory: Path) -> ItemRecord:
    """An item's record with everything that was added to it.

    Raises:
        GateError: `E_CACHE_CORRUPT`, a file is damaged, or belongs to another item.
        StorageError: `E_IO`, it may be sound and cannot be read now.
    """
    try:
        document = read_sealed(directory / ITEM)
        for name in sorted(os.listdir(directory)):  # noqa: PTH208 - names only, this is read for every item of a cache
            if match := ENTRY.fullmatch(name):
                entries = document.setdefault(FIELDS[match[1]], {})
                entries[match[2]] = _entry(directory / name)
            elif name in SINGLE:
                document[SINGLE[name]] = _entry(directory / name)
        record = ItemRecord.model_validate(document)
        if record.item_id != directory.name:
            raise ValueError("item")
        return record
    except (FileNotFoundError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise GateError(
            "E_CACHE_CORRUPT", f"the record of item {directory.name} is damaged", hint="medssl cache verify"
        ) from error
    except OSError as error:
        raise unreadable(f"the record of item {directory.name}", error) from error


def new_entries(record: ItemRecord, wanted: ItemRecord) -> dict[str, bytes]:
    """Files that turn a record into the wanted one, by name.

    Raises:
        InputError: `E_LABEL_CONFLICT`, an entry would be replaced or removed.
        ValueError: Something else would change, or is not allowed in a record.
    """
    have, want = record.model_dump(mode="json"), wanted.model_dump(mode="json")
    ItemRecord.model_validate(want)
    files: dict[str, bytes] = {}
    for name, field in SINGLE.items():
        known, entry = have.pop(field, None), want.get(field)
        if known is None and entry is not None:
            files[name] = _sealed({"item_id": record.item_id, "entry": entry})
        elif known != entry and name != SUPERSEDED:
            raise ValueError("only entries can be added to a record")
    if any(have[field] != want[field] for field in have.keys() - {*FIELDS.values()}):
        raise ValueError("only entries can be added to a record")
    for prefix, field in FIELDS.items():
        for name in have[field] | want[field]:
            if name not in have[field]:
                files[f"{prefix}-{name}.json"] = _sealed({"item_id": record.item_id, "entry": want[field][name]})
            elif have[field][name] != want[field].get(name):
                raise InputError(
                    "E_LABEL_CONFLICT",
                    f"item {record.item_id} has other {field} of the set {name!r}",
                    hint=ANOTHER_SET,
                )
    return files


def item_directories(root: Path) -> Iterator[Path]:
    """Folders of all items of a cache, in order of their ids; what writers have not finished is left out."""
    for folder in sorted((root / "items").glob("[!.]*")):
        yield from (path for path in sorted(folder.glob("[!.]*")) if path.is_dir())


def read_sealed(path: Path) -> dict[str, Any]:
    """A JSON document that carries its own digest, written exactly as it is written here.

    Raises:
        ValueError: A byte of it has changed.
        OSError: It cannot be read.
    """
    data = read_regular(path)
    document = parse_json(data)
    if not isinstance(document, dict):
        raise ValueError("not a document")
    digest = document.pop("record_sha256", None)
    if digest != sha256_json(document) or data != _sealed(document):
        raise ValueError("digest")
    return document


def _sealed(document: dict[str, Any]) -> bytes:
    whole = {**document, "record_sha256": sha256_json(document)}
    return json_bytes(whole)


def is_sound(path: Path, item_id: str | None = None) -> bool:
    """Whether no byte of a sealed document has changed, and an entry belongs to the item."""
    try:
        document = read_sealed(path)
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return item_id is None or document.get("item_id") == item_id


def _entry(path: Path) -> Any:
    document = read_sealed(path)
    if document["item_id"] != path.parent.name:
        raise ValueError("item")
    return document["entry"]
