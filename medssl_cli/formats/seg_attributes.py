"""What a DICOM SEG says about patient and study: as its source says it, where that is valid.

Archives hold values that break the standard: ages without zeros, names of a hundred letters, dates that never were. An
object that repeats them is invalid itself. Each value is checked against its representation (PS3.5 section 6.2), put
right where that is certain, and left out otherwise; which ones is told by keyword, never by value.
"""

import math
import re
import unicodedata
import warnings
from collections.abc import Callable, MutableSequence
from datetime import date
from typing import Any, Final

MAX_BYTES: Final = 64
"""Largest number of bytes of a text or a name."""
UNKNOWN_METHOD: Final = "not stated by the source images"
Repair = Callable[[str], str | None]
"""A valid value, or None if there is none; the text is stripped and not empty."""


def valid_uid(text: str) -> bool:
    """Whether a text is a UID: below one of the three roots, no part with a leading zero (PS3.5 section 9.1)."""
    is_formed = len(text) <= 64 and re.fullmatch(r"([01]\.[1-3]?\d|2\.(0|[1-9]\d*))(\.(0|[1-9]\d*))*", text)
    return bool(is_formed)


def usable_uid(text: str) -> bool:
    """Whether a text can stand for a UID, valid or not: an object must name its source as the archive knows it."""
    return bool(re.fullmatch(r"[0-9.]{1,64}", text))


def clean_attributes(source: Any) -> tuple[dict[str, Any], list[str]]:
    """The attributes of patient and study that a SEG repeats.

    Args:
        source: A pydicom data set of the series.

    Returns:
        Valid values by keyword, those of type 2 empty if there are none, and the keywords of values that were
        repaired or left out.
    """
    kept: dict[str, Any] = {}
    changed: list[str] = []
    for keyword, repair in ATTRIBUTES.items():
        given = _text(source, keyword)
        value = repair(given) if given else None
        if value is not None:
            kept[keyword] = value
        elif keyword in TYPE_2:
            kept[keyword] = ""
        if given and value != given:
            changed.append(keyword)
    if kept.get("PatientIdentityRemoved") == "YES":
        methods = _deidentification(source)
        kept["DeidentificationMethod"] = methods or [UNKNOWN_METHOD]
        if not methods:
            changed.append("DeidentificationMethod")
    return kept, changed


def whole_number(source: Any, keyword: str) -> int | None:
    """A number of representation IS, or None."""
    text = _text(source, keyword)
    return int(text) if re.fullmatch(r"\+?\d{1,10}", text) and int(text) < 2**31 else None


def clean_date(text: str) -> str | None:
    """A day as YYYYMMDD (DA); the form of ACR-NEMA, with dots, and that of ISO 8601 are understood."""
    digits = re.sub(r"(?<=\d)[.-](?=\d)", "", text) if re.fullmatch(r"\d{4}([.-])\d\d\1\d\d", text) else text
    if not re.fullmatch(r"\d{8}", digits):
        return None
    try:
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
    return digits


def clean_time(text: str) -> str | None:
    """A time as HHMMSS.FFFFFF or a beginning of it (TM); colons are understood."""
    digits = text.replace(":", "") if re.fullmatch(r"\d\d:\d\d(:\d\d(\.\d{1,6})?)?", text) else text
    form = r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?"
    return digits if re.fullmatch(form, digits) else None


def clean_text(text: str, limit: int = MAX_BYTES) -> str:
    """A text of representation LO: no control characters, no backslash, not too long.

    The standard counts characters; validators count bytes, so both are kept.
    """
    return _shortened(_printable(text).replace("\\", "/"), limit).strip()


def _text(source: Any, keyword: str) -> str:
    """A value as text, whatever representation it is stored in; empty if there is none or it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = source.get(keyword)
            values = value if isinstance(value, MutableSequence) else [] if value is None else [value]
            texts = [item.decode("ascii", "replace") if isinstance(item, bytes) else str(item) for item in values]
    except Exception:  # noqa: BLE001 - pydicom converts on access, and fails in many ways
        return ""
    return "\\".join(texts).strip(" \0")


def _printable(text: str) -> str:
    return "".join("?" if letter == "\ufffd" else letter for letter in text if unicodedata.category(letter) != "Cc")


def _identifier(limit: int) -> Repair:
    """A cut identifier would be another one's, so one that is too long is left out."""

    def repair(text: str) -> str | None:
        return text if len(text) <= limit and _printable(text) == text and "\\" not in text else None

    return repair


def _name(text: str) -> str | None:
    """Three groups of five components at most, as many of them as there is room for (PN)."""
    groups = ["^".join(group.split("^")[:5]) for group in _printable(text).replace("\\", " ").split("=")[:3]]
    if "=".join(groups) == text and len(text.encode()) <= MAX_BYTES:
        return text
    while len(groups) > 1 and len("=".join(groups).encode()) > MAX_BYTES:
        groups.pop()
    return _shortened("=".join(groups), MAX_BYTES).rstrip(" ^=") or None


def _shortened(text: str, num_bytes: int) -> str:
    return text.encode()[:num_bytes].decode(errors="ignore")


def _sex(text: str) -> str | None:
    return text.upper() if text.upper() in ("M", "F", "O") else None


def _yes_or_no(text: str) -> str | None:
    return text.upper() if text.upper() in ("YES", "NO") else None


def _age(text: str) -> str | None:
    found = re.fullmatch(r"(\d{1,3})([DWMY])", text.upper())
    return f"{int(found[1]):03d}{found[2]}" if found else None


def _decimal(text: str) -> str | None:
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) or not math.isfinite(float(text)):
        return None
    return text if len(text) <= 16 else f"{float(text):.9g}"


def _deidentification(source: Any) -> list[str]:
    """How identity was removed, which must be said where it is said that it was (PS3.3 section C.7.1.1)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = source.get("DeidentificationMethod") or ""
            methods = [given] if isinstance(given, str) else list(given)
            codes = source.get("DeidentificationMethodCodeSequence") or ()
            methods = [str(method) for method in methods if method] or [str(code.CodeMeaning) for code in codes]
    except Exception:  # noqa: BLE001 - pydicom converts on access, and fails in many ways
        methods = []
    return [text for method in methods if (text := clean_text(method))]


ATTRIBUTES: Final[dict[str, Repair]] = {
    "PatientName": _name,
    "PatientID": _identifier(64),
    "IssuerOfPatientID": _identifier(64),
    "PatientBirthDate": clean_date,
    "PatientSex": _sex,
    "PatientIdentityRemoved": _yes_or_no,
    "PatientAge": _age,
    "PatientSize": _decimal,
    "PatientWeight": _decimal,
    "StudyID": _identifier(16),
    "StudyDate": clean_date,
    "StudyTime": clean_time,
    "AccessionNumber": _identifier(16),
    "ReferringPhysicianName": _name,
    "StudyDescription": lambda text: clean_text(text) or None,
}
TYPE_2: Final = frozenset(
    (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
    )
)
"""A source that lacks one gives an object that has it empty (PS3.5 section 7.4.3)."""
