"""What a series says of itself, by which people choose one: kind, description, slices, thickness, contrast, moment."""

import contextlib
import io
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medssl_cli.formats.dicom import SeriesPart
from medssl_cli.formats.source import read_bytes
from medssl_cli.imaging.geometry import spacing_mm

MAX_TEXT: Final = 200
_TAGS: Final = (
    "SpecificCharacterSet", "SeriesDescription", "ContrastBolusAgent", "SliceThickness", "SeriesDate", "SeriesTime",
    "AcquisitionDate", "AcquisitionTime", "SeriesNumber",
)  # fmt: skip
WITHOUT_CONTRAST: Final = frozenset(
    ("without", "ohne", "sans", "sin", "senza", "nativ", "native", "plain", "none", "no", "noncontrast", "unenhanced")
)
"""Words that say that no contrast agent was given, whatever others say."""
WITH_CONTRAST: Final = frozenset(
    ("contrast", "kontrast", "km", "ce", "venous", "arterial", "portal", "portovenous", "venoes", "venös", "arteriell",
     "enhanced", "postcontrast", "gd", "gado", "gadolinium", "angio", "cta", "mra", "cect")
)  # fmt: skip


@dataclass(frozen=True)
class SeriesFacts:
    """What rules about series can ask for.

    Args:
        modality: DICOM modality.
        description: SeriesDescription.
        num_slices: Slices, or frames.
        thickness_mm: SliceThickness, else the distance between slices; None where nothing says.
        has_contrast: An agent is named, or the description says so.
        moment: When it was made, and its number: later ones compare as larger.
    """

    modality: str
    description: str
    num_slices: int
    thickness_mm: float | None
    has_contrast: bool
    moment: tuple[str, int]


def series_facts(part: SeriesPart) -> SeriesFacts:
    """What a series says of itself; what cannot be read is not said."""
    said = _said(part)
    description, agent = said.get("SeriesDescription", ""), said.get("ContrastBolusAgent", "")
    dates = [(said.get(f"{word}Date", ""), said.get(f"{word}Time", "")) for word in ("Series", "Acquisition")]
    moment = next((date + time for date, time in dates if date), "")
    return SeriesFacts(
        modality=part.modality,
        description=description,
        num_slices=len(part.headers),
        thickness_mm=_number(said.get("SliceThickness", "")) or _distance_mm(part),
        has_contrast=has_contrast(description, agent),
        moment=(moment, int(_number(said.get("SeriesNumber", "")) or 0)),
    )


def has_contrast(description: str, agent: str = "") -> bool:
    """Whether words say that a contrast agent was given."""
    if _words(agent):
        return not _words(agent) & WITHOUT_CONTRAST
    text = re.sub(r"\b(w/o|c-|non[ -]contrast)", " without ", description.casefold())
    text = re.sub(r"(\+ ?c\b|\bc\+)", " contrast ", text)
    return not _words(text) & WITHOUT_CONTRAST and bool(_words(text) & WITH_CONTRAST)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.casefold()))


def _number(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        value = float(text)
        return value if math.isfinite(value) and 0 < value < 1e9 else None
    return None


def _distance_mm(part: SeriesPart) -> float | None:
    """Between neighbouring slices; a projection has none."""
    return spacing_mm(part.affine)[2] if part.spacing_kind is None else None


def _said(part: SeriesPart) -> dict[str, str]:
    """Texts of the first file's header, printable and bounded."""
    from pydicom import dcmread

    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        source = part.sources[0]
        stream: Any = source if isinstance(source, Path) else io.BytesIO(read_bytes(source))
        found = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
        return {tag: _printable(found, tag) for tag in _TAGS if tag in found}
    return {}


def _printable(found: Any, tag: str) -> str:
    with contextlib.suppress(Exception):
        return "".join(filter(str.isprintable, str(found.get(tag) or "")))[:MAX_TEXT].strip()
    return ""
