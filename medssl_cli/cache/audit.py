"""Proof that a cache holds what the allow-list allows and nothing else, by looking at every file in it.

It is written apart from the writer: it trusts neither the catalog nor the code that stored the items. Messages name the
kind of file and of finding, never the text that was found.
"""

import re
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import MedsslError
from medssl_cli.cache.clear_text import has_uid, kinds_in_json, kinds_in_report, kinds_of_identity, texts_of
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.marker import read_marker
from medssl_cli.cache.records import ENTRY, LABEL_ARRAY, item_directories, read_record
from medssl_cli.formats.name_words import is_listed_channel

PRIVATE: Final = "E_PRIVACY"
MAX_TEXT_BYTES: Final = 2**26
EDGE_BYTES: Final = 2**16
_KEY: Final = "[a-z2-7]{26}"
_SET: Final = "[A-Za-z0-9_-]{1,32}"
KNOWN: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"cache\.json|site\.key|catalog-is-behind|writing-\d+",
        r"(catalog|sources)\.sqlite(-wal|-shm|-journal)?",
        r"items(/[a-z2-7]{2}(/KEY(/ITEM)?)?)?",
        r"prepared(/[0-9a-f]{16}(/[a-z2-7]{2}(/KEY(-[0-9a-f]{12})?(-SET-[0-9a-f]{12})?\.(b2nd|npz))?)?)?",
        r"prepared/[0-9a-f]{16}/[a-z2-7]{2}/KEY(-[0-9a-f]{12})?-[0-9a-f]{8}(-SET-[0-9a-f]{12})?\.json",
        r"reports(/[a-z]+-[0-9a-f]{16}(-\d+)?\.(json|jsonl|html)|/running-\d+\.jsonl)?",
        r"forgotten(/KEY)?",
    )
    for pattern in [
        pattern.replace(
            "ITEM",
            f"(image\\.b2nd|item\\.json|(superseded|channel|example)\\.json|{ENTRY.pattern}|{LABEL_ARRAY.pattern})",
        )
        .replace("KEY", _KEY)
        .replace("SET", _SET)
    ]
)
DECODER: Final = re.compile(r"[A-Za-z0-9 ._+/()-]{0,80}")
REPAIR: Final = re.compile(r"[a-z0-9_]{1,32}=[A-Za-z0-9_.+-]{1,32}|[WE]_[A-Z0-9_]{1,40}")
VERSION: Final = re.compile(r"\d{1,4}(\.\d{1,6}){0,3}([a-z+.-][A-Za-z0-9.+-]{0,32})?")


@dataclass
class Audit:
    """What was looked at and found.

    Args:
        problems: How often each sentence holds.
        names: Every name that a human has given: of label sets, classes, boxes, findings, channels that are on no list.
            Somebody should read them.
        num_files: Files looked at.
        num_items: Items whose record was read.
    """

    problems: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)
    num_files: int = 0
    num_items: int = 0


def audit_cache(root: Path, others: Iterable[Path] = ()) -> Audit:
    """Look at every file of a cache, and at other files and folders that came from it (runs, exports, reports)."""
    audit = Audit()
    try:
        read_marker(root)
    except MedsslError:
        audit.problems["cache.json is damaged or has fields that are not on the list"] += 1
    for path in sorted(root.rglob("*")):
        _audit_place(audit, root, path)
        if path.is_file() and not path.is_symlink():
            audit.num_files += 1
            audit.problems.update(_content_problems(path, is_item=path.parts[len(root.parts)] == "items"))
    for directory in item_directories(root):
        _audit_item(audit, directory)
    for other in others:
        for path in sorted(other.rglob("*")) if other.is_dir() else [other]:
            if path.is_file() and not path.is_symlink():
                audit.num_files += 1
                audit.problems.update(f"{problem} (outside of the cache)" for problem in _content_problems(path))
    return audit


def _audit_place(audit: Audit, root: Path, path: Path) -> None:
    """The name and the permissions of one file or folder."""
    place = path.relative_to(root).as_posix()
    is_temporary = any(part.startswith(".tmp-") for part in path.relative_to(root).parts)
    if not is_temporary and not any(pattern.fullmatch(place) for pattern in KNOWN):
        where = (
            place.split("/")[0] if place.split("/")[0] in ("items", "prepared", "reports", "forgotten") else "the cache"
        )
        audit.problems[f"a file or folder in {where} has a name that is not on the list"] += 1
    status = path.lstat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        audit.problems["a link or special file is in the cache"] += 1
    elif stat.S_IMODE(status.st_mode) & 0o077:
        audit.problems["a file or folder can be read by others (mode is not 0600 or 0700)"] += 1


def _audit_item(audit: Audit, directory: Path) -> None:
    """The record of one item: only fields of the model, only words of closed vocabularies."""
    try:
        record = read_record(directory)
    except MedsslError:
        audit.problems["a record is damaged or has fields that are not on the list"] += 1
        return
    audit.num_items += 1
    names = _given_names(record)
    audit.names |= names
    if any(kinds_of_identity(name) for name in names):
        audit.problems["a name of a class or finding looks like an identity"] += 1
    provenance = record.provenance
    checks = {
        "a warning that is not a code": all(code in CODES for code in provenance.warnings),
        "a repair that is not a rule": all(REPAIR.fullmatch(repair) for repair in provenance.repairs),
        "a decoder that is not a name and a version": DECODER.fullmatch(provenance.decoder) is not None,
        "a version that is not one": VERSION.fullmatch(provenance.medssl_version) is not None,
        "a key id that is not one": re.fullmatch(r"[0-9a-f]{8}", provenance.key_id) is not None,
    }
    audit.problems.update(f"a record holds {what}" for what, holds in checks.items() if not holds)


def _given_names(record: ItemRecord) -> set[str]:
    names = {*record.labels, *record.boxes, *record.findings}
    names |= {name for label in record.labels.values() for name in (*label.classes.values(), *label.regions)}
    names |= {box.name for boxes in record.boxes.values() for box in boxes}
    if record.channel is not None and not is_listed_channel(record.channel):
        names.add(record.channel)
    return names | {name for findings in record.findings.values() for name in findings}


def _content_problems(path: Path, *, is_item: bool = False) -> Iterator[str]:
    """What lies in clear in one file."""
    suffix = path.suffix
    if suffix == ".b2nd" and (is_item or path.parent.parent.parent.name == "prepared"):
        yield from _array_problems(path)
    elif suffix == ".npz":
        yield from _points_problems(path)
    elif ".sqlite" in path.name and not path.name.endswith("-shm"):
        yield from (f"a database holds a {kind}" for kind in sorted(_database_kinds(path)))
    elif path.name not in ("site.key", "cache.json"):
        yield from (f"a {suffix.lstrip('.') or 'text'} file holds a {kind}" for kind in sorted(_file_kinds(path)))


def _file_kinds(path: Path) -> set[str]:
    with path.open("rb") as stream:
        data = stream.read(MAX_TEXT_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return {"UID"} if has_uid(data[:EDGE_BYTES]) or has_uid(data[-EDGE_BYTES:]) else set()
    return kinds_in_json(text) if path.suffix in (".json", ".jsonl") else kinds_in_report(text)


def _array_problems(path: Path) -> Iterator[str]:
    """Voxels only: no metadata of the format, and no text before or after the frame."""
    import blosc2

    with path.open("rb") as stream:
        edges = stream.read(EDGE_BYTES)
        stream.seek(max(0, path.stat().st_size - EDGE_BYTES))
        edges += stream.read(EDGE_BYTES)
    if has_uid(edges):
        yield "an array holds a UID"
    try:
        array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        if len(array.schunk.vlmeta) or set(array.schunk.meta.keys()) != {"b2nd"}:
            yield "an array carries metadata"
    except (RuntimeError, ValueError, OSError, KeyError):
        yield "an array cannot be read"


def _points_problems(path: Path) -> Iterator[str]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not all(re.fullmatch(r"class_\d{1,5}", name) for name in archive.files):
                yield "a list of points has a name that is not on the list"
            if not all(archive[name].dtype == np.int32 for name in archive.files):
                yield "a list of points holds something else"
    except (OSError, ValueError, KeyError):
        yield "a list of points cannot be read"


def _database_kinds(path: Path) -> set[str]:
    """Kinds in every text of every table, and in what has been deleted but not yet overwritten."""
    kinds = {"UID"} if has_uid(path.read_bytes()[:MAX_TEXT_BYTES]) else set()
    if not path.name.endswith(".sqlite"):
        return kinds
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (table,) in tables:
                for row in connection.execute(f'SELECT * FROM "{table}"'):
                    for text in texts_of(row):
                        kinds |= kinds_in_json(text) if text.startswith("{") else kinds_of_identity(text)
    except sqlite3.Error:
        kinds.add("page that cannot be read")
    return kinds
