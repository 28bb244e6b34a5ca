"""A patient leaves: the right to erasure, as far as a cache can grant it. A trained model cannot unlearn."""

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.base.files import read_regular, storage_errors
from medssl_cli.base.plain_json import parse_json
from medssl_cli.cache.publish import publish_first
from medssl_cli.cache.records import item_directories, read_record
from medssl_cli.cache.store import Cache
from medssl_cli.cache.verify import forget_sources, remove_item
from medssl_cli.cache.writers import say_catalog_is_behind

KEY: Final = re.compile(r"[a-z2-7]{26}")
MAX_MANIFEST_BYTES: Final = 2**28


@dataclass(frozen=True)
class Erasure:
    """What was removed, and what holds traces of it.

    Args:
        patient_key: Key of the patient, who is refused from now on.
        items: Removed, with their labels, prepared views, catalog rows and reports.
        num_reports: Reports of ingests that named or drew an item; removed.
        num_unreadable: Damaged items, of which nobody can say whose they are; they stay.
        runs: Run folders whose manifest names an item: their models have learnt from it and cannot unlearn.
    """

    patient_key: str
    items: tuple[str, ...]
    num_reports: int
    num_unreadable: int
    runs: tuple[Path, ...]


def forget_patient(cache: Cache, patient: str, *, runs: Path = Path("runs")) -> Erasure:
    """Remove everything of a patient from a cache and refuse the patient from now on.

    The refusal comes first and the items after it, so that after a kill the same command finishes the work.

    Args:
        cache: Where the patient is.
        patient: The patient's key; its first letters are enough if they are unambiguous.
        runs: Folder of run folders to look through.

    Raises:
        UsageError: `E_NOT_FOUND`, no or several patients begin so.
        StorageError: `E_IO`.
    """
    key = _whole_key(cache, patient)
    with storage_errors("the cache"):
        (cache.root / "forgotten").mkdir(mode=0o700, exist_ok=True)
    publish_first(cache.root / "forgotten" / key, b"")
    items: set[str] = set()
    with cache.writing():
        while found := {record.item_id for record in cache.scan() if record.patient_key == key}:
            for item_id in sorted(found):
                remove_item(cache.item_directory(item_id))
            items |= found
        num_reports = _remove_traces(cache, items)
    return Erasure(key, tuple(sorted(items)), num_reports, _num_unreadable(cache), _runs_with(runs, key))


def _whole_key(cache: Cache, patient: str) -> str:
    if KEY.fullmatch(patient):
        return patient
    keys = {record.patient_key for record in cache.scan() if record.patient_key.startswith(patient)}
    if len(keys) != 1:
        raise UsageError(
            "E_NOT_FOUND", f"{len(keys)} patients of the cache begin so", hint="see: medssl cache ls --json"
        )
    return keys.pop()


def _remove_traces(cache: Cache, items: Iterable[str]) -> int:
    """Catalog rows, prepared views, and reports, whose pages show pictures; returns the number of reports."""
    num_reports = 0
    with storage_errors("the cache"):
        forget_sources(cache.root)
        for item_id in items:
            for path in cache.root.glob(f"prepared/*/{item_id[:2]}/{item_id}*"):
                path.unlink(missing_ok=True)
        for report in sorted(cache.root.glob("reports/*")):
            content = report.read_bytes() if report.is_file() else b""
            if any(item_id.encode() in content for item_id in items):
                report.unlink()
                num_reports += 1
    try:
        cache.catalog.remove(items)
    except sqlite3.Error:
        say_catalog_is_behind(cache.root)
    return num_reports


def _num_unreadable(cache: Cache) -> int:
    num_unreadable = 0
    for directory in item_directories(cache.root):
        try:
            read_record(directory)
        except GateError:
            num_unreadable += 1
    return num_unreadable


def _runs_with(runs: Path, patient_key: str) -> tuple[Path, ...]:
    depths = ("*/manifest.json", "*/*/manifest.json")  # folds and studies keep their runs in a folder of their own
    manifests = sorted(path for depth in depths for path in runs.glob(depth) if path.is_file())
    return tuple(path.parent for path in manifests if _names(path, patient_key))


def _names(manifest: Path, patient_key: str) -> bool:
    """Whether a run's manifest names a patient; one that cannot be read counts if the key is anywhere in it."""
    if manifest.stat().st_size > MAX_MANIFEST_BYTES:
        return True
    content = read_regular(manifest)
    try:
        splits: dict[str, list[dict[str, Any]]] = parse_json(content)["splits"]
        return any(entry["patient"] == patient_key for entries in splits.values() for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError):
        return patient_key.encode() in content
