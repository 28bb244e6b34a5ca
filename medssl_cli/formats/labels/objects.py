"""Reading DICOM objects that hold labels: bounded, and with numbers parsed from the raw bytes by rules of our own."""

import contextlib
import io
import logging
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import TEXT_VR_DELIMS

from medssl_cli.base.errors import InputError
from medssl_cli.base.names import safe_name, unique_names
from medssl_cli.formats.dicom.window import DEFLATED, inflate
from medssl_cli.formats.labels import MAX_VALUE, Instance, listed
from medssl_cli.formats.labels.whole import BIG_ENDIAN, IMPLICIT, check_whole, read_meta
from medssl_cli.formats.source import Source, read_bytes

MAX_COORDINATE_MM: Final = 1e5
MAX_UIDS: Final = 100_000
_DECIMALS: Final = re.compile(rb"[0-9eE+\-. \\]*")
_UID: Final = re.compile(r"[0-9.]{1,64}")

# Its messages quote header values, which must not reach any log.
logging.getLogger("pydicom").propagate = False


@contextlib.contextmanager
def only_label_errors(what: str) -> Iterator[None]:
    """Whatever hostile bytes make a parser raise becomes `E_LABEL_FORMAT` that names the class of the error only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # noqa: BLE001 - RecursionError, struct.error and what else parsers raise
        failure = InputError("E_LABEL_FORMAT", f"the {what} cannot be parsed ({type(error).__name__})")
    else:
        return
    raise failure


def read_object(source: Source, *, max_bytes: int) -> Dataset:
    """A whole DICOM object; a deflated one is inflated within the same bound.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_TRUNCATED`, `E_TOO_BIG`, `E_DICOM_TOO_BIG`, `E_DICOM_DEPTH`, `E_DEFLATE_BOMB`,
            `E_DICOM_PARSE`, or what `read_bytes` raises; other errors are the parser's.
    """
    data = read_bytes(source, max_bytes=max_bytes)
    if data[128:132] != b"DICM":
        raise InputError("E_LABEL_FORMAT", "the DICOM signature is missing")
    syntax, start = read_meta(data)
    if syntax == BIG_ENDIAN:
        raise InputError("E_LABEL_FORMAT", "the object is big endian", hint="store it little endian")
    if syntax != DEFLATED:
        check_whole(data, start, is_implicit=syntax == IMPLICIT)
        return dcmread(io.BytesIO(data))
    plain = inflate(data, start=start, max_bytes=max_bytes)
    check_whole(plain, start, is_implicit=False)
    dataset = read_dataset(io.BytesIO(plain[start:]), is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """Items of a sequence; empty where it is missing.

    Raises:
        InputError: `E_LABEL_FORMAT`, the element is no sequence.
    """
    found = dataset.get(keyword)
    if found is None:
        return ()
    if not isinstance(found, Sequence | list) and not hasattr(found, "is_undefined_length"):
        raise _malformed(keyword, "is not a sequence")
    if any(not isinstance(item, Dataset) for item in found):
        raise _malformed(keyword, "is not a sequence")
    return list(found)


def raw(dataset: Dataset, keyword: str) -> bytes:
    """Bytes of an element as they lie in the file; empty where it is missing."""
    tag = int(tag_for_keyword(keyword) or 0)
    if tag not in dataset:
        return b""
    value = dataset.get_item(tag).value
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    parts = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    return "\\".join(map(str, parts)).encode("ascii", "replace")


def decimals(dataset: Dataset, keyword: str, *, count: int | None = None, max_count: int = 64) -> NDArray[np.float64]:
    """Decimal strings as finite numbers within +-100 m.

    Raises:
        InputError: `E_VALUE_INVALID`, or `E_TOO_BIG` for more than `max_count` numbers.
    """
    text = raw(dataset, keyword).rstrip(b" \0")
    if not _DECIMALS.fullmatch(text):
        raise _invalid(keyword, "is not made of plain numbers")
    parts = text.split(b"\\") if text else []
    if len(parts) > max_count:
        raise InputError("E_TOO_BIG", f"{len(parts)} numbers in one element, more than {max_count}")
    try:
        numbers = np.array([float(part) for part in parts], dtype=np.float64)
    except ValueError:
        raise _invalid(keyword, "is not made of plain numbers") from None
    if count is not None and len(numbers) != count:
        raise _invalid(keyword, f"has {len(numbers)} numbers instead of {count}")
    if len(numbers) and not (np.abs(numbers) <= MAX_COORDINATE_MM).all():
        raise _invalid(keyword, f"has a number beyond {MAX_COORDINATE_MM:g}")
    return numbers


def integer(dataset: Dataset, keyword: str, *, low: int, high: int) -> int:
    """A whole number of any numeric representation, within bounds.

    Raises:
        InputError: `E_VALUE_INVALID`.
    """
    value = dataset.get(keyword)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _invalid(keyword, "is missing or not a number") from None
    if not math.isfinite(number) or number != int(number) or not low <= number <= high:
        raise _invalid(keyword, f"is not a whole number from {low} to {high}")
    return int(number)


def text(dataset: Dataset, keyword: str) -> str:
    """One string; empty where it is missing."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def patient_id(dataset: Dataset) -> str:
    """PatientID as images have it (`dicom.values`), byte by byte; empty where it is missing."""
    return raw(dataset, "PatientID").decode("latin-1").strip(" \0")


def character_sets(dataset: Dataset) -> tuple[str, ...]:
    """The character sets that an object or an item declares (PS3.3 C.12.1.1.2); none: its text is ASCII."""
    written = raw(dataset, "SpecificCharacterSet").decode("latin-1")
    sets = tuple(part.strip(" \0") for part in written.split("\\"))
    return sets if any(sets) else ()


def name_text(item: Dataset, keyword: str, sets: Sequence[str]) -> str:
    """One name in the script in which it was written; empty where it is missing.

    Text that is no ASCII, although no character set is declared, is read as UTF-8 if it is that, and otherwise byte by
    byte: a wrong letter then, but never the same one for two.

    Args:
        item: Item of a sequence; its own character sets go before those of the object.
        keyword: An element of one value: a backslash in it is part of a letter.
        sets: `character_sets` of the object.

    Raises:
        InputError: `E_NAME_ENCODING`, it holds bytes that its character sets do not have.
    """
    data = raw(item, keyword).strip(b" \0")
    sets = character_sets(item) or sets
    if data.isascii() and b"\x1b" not in data:
        return data.decode("ascii")
    if not sets:
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode("utf-8")
        return data.decode("latin-1")
    found = decode_bytes(data, convert_encodings(list(sets)), TEXT_VR_DELIMS)
    if "\ufffd" in found or any(unicodedata.category(character) == "Cc" for character in found):
        raise InputError(
            "E_NAME_ENCODING",
            "its name holds bytes that are not of the character set that the file declares",
            hint="correct the character set where the file was made, or name other structures",
        )
    return found.strip()


def uid(dataset: Dataset, keyword: str) -> str | None:
    """A UID; None where it is missing or malformed."""
    value = text(dataset, keyword)
    return value if _UID.fullmatch(value) else None


def uids(datasets: Sequence[Dataset], keyword: str) -> frozenset[str]:
    """UIDs of several items.

    Raises:
        InputError: `E_TOO_BIG`, more than 100,000 of them.
    """
    if len(datasets) > MAX_UIDS:
        raise InputError("E_TOO_BIG", f"{len(datasets)} references, more than {MAX_UIDS}")
    return frozenset(found for dataset in datasets if (found := uid(dataset, keyword)))


def instances(datasets: Sequence[Dataset]) -> frozenset[Instance]:
    """What items of an image reference mean: objects, or frames of them (PS3.3 table 10-3).

    Raises:
        InputError: `E_TOO_BIG`, `E_VALUE_INVALID`.
    """
    found: set[Instance] = set()
    for dataset in datasets:
        sop_uid = uid(dataset, "ReferencedSOPInstanceUID")
        if sop_uid is None:
            continue
        frames = decimals(dataset, "ReferencedFrameNumber", max_count=MAX_UIDS)
        found.update(Instance(sop_uid, int(frame)) for frame in frames)
        if not len(frames):
            found.add(Instance(sop_uid))
    return frozenset(found)


def number_structures(
    names: dict[int, str], structures: Sequence[str] | None, *, keep_numbers: bool
) -> tuple[dict[int, int], dict[int, str]]:
    """Which value each structure of a file gets in the label map.

    Args:
        names: The file's own numbers and names, as they are written.
        structures: Take these only, by their names as they are written; all structures of one such name become one
            class. The first one is 1, the second 2: the same in every file, whatever it lacks.
        keep_numbers: Whether the file's numbers are kept without `structures`, if a label map can hold them. Otherwise
            names are numbered from 1.

    Returns:
        Value of each of the file's numbers, and names of the values.

    Raises:
        InputError: `E_LABEL_VALUES`: no structure is left, or more than 65,535. `E_NAME_COLLISION`.
    """
    if structures is not None:
        values, classes = _chosen(names, structures)
    else:
        values = _numbered(names, keep_numbers=keep_numbers)
        clean = dict(zip(sorted(names), unique_names(names[number] for number in sorted(names)), strict=True))
        classes = {value: clean[number] for number, value in values.items()}
    if names and structures is not None and not values:
        raise InputError(
            "E_LABEL_VALUES",
            f"none of its {len(names)} structures is one of the {len(structures)} that are asked for",
            hint=_nearly(names, structures),
        )
    if not values or max(values.values()) > MAX_VALUE:
        raise InputError(
            "E_LABEL_VALUES",
            f"{len(names)} structures, {len(values)} of them asked for; a label map holds 1 to {MAX_VALUE}",
            hint="name the structures to take",
        )
    return values, classes


def _nearly(names: dict[int, str], structures: Sequence[str]) -> str:
    """A hint that says how many names would be right but for capitals, and none of them."""
    wanted = {unicodedata.normalize("NFC", name).strip().casefold() for name in structures}
    count = sum(unicodedata.normalize("NFC", name).casefold() in wanted for name in names.values())
    also = f"; {count} of them differ from what is asked for in capitals only" if count else ""
    return f"--structures takes the names that the file has, letter by letter{also}"


def _chosen(names: dict[int, str], structures: Sequence[str]) -> tuple[dict[int, int], dict[int, str]]:
    """Structures by name: as the file has it, else as the cache shows it."""
    written = {number: unicodedata.normalize("NFC", name) for number, name in names.items()}
    shown = {number: safe_name(name) for number, name in names.items()}
    values: dict[int, int] = {}
    wanted: dict[int, str] = {}
    for value, structure in enumerate(structures, start=1):
        name = unicodedata.normalize("NFC", structure).strip()
        found = [number for number in names if written[number] == name]
        found = found or [number for number in names if shown[number] == name]
        if len({written[number] for number in found}) > 1:
            raise InputError(
                "E_NAME_COLLISION", f"structure {listed(found)}: different names that look alike once stored"
            )
        for number in found:
            values.setdefault(number, value)
        if value in values.values():
            wanted[value] = written[found[0]]
    return values, dict(zip(wanted, unique_names(wanted.values()), strict=True))


def _numbered(names: dict[int, str], *, keep_numbers: bool) -> dict[int, int]:
    if keep_numbers and all(0 < number <= MAX_VALUE for number in names):
        return {number: number for number in names}
    by_name = sorted(names, key=lambda number: (safe_name(names[number]).lower(), number))
    return {number: value for value, number in enumerate(sorted(names) if keep_numbers else by_name, start=1)}


def _element(keyword: str) -> str:
    tag = int(tag_for_keyword(keyword) or 0)
    return f"element ({tag >> 16:04x},{tag & 0xFFFF:04x})"


def _invalid(keyword: str, why: str) -> InputError:
    return InputError("E_VALUE_INVALID", f"{_element(keyword)} {why}")


def _malformed(keyword: str, why: str) -> InputError:
    return InputError("E_LABEL_FORMAT", f"{_element(keyword)} {why}")
