"""What all DICOM objects that are derived from a series share: UIDs as functions of it, its date, references to it."""

import hashlib
import io
import uuid
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import numpy as np

from medssl_cli import __version__
from medssl_cli.base.errors import InputError
from medssl_cli.formats.anatomy_codes import Code
from medssl_cli.formats.dicom import Header
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.formats.seg_attributes import (
    MAX_BYTES,
    clean_date,
    clean_text,
    clean_time,
    usable_uid,
    valid_uid,
    whole_number,
)
from medssl_cli.formats.seg_frames import MAX_INDEX_ERROR
from medssl_cli.formats.source import Source, read_bytes
from medssl_cli.imaging.geometry import Affine, displacement_limit_mm, spacing_mm
from medssl_cli.recipe_sections import Algorithm

NAMESPACE: Final = uuid.UUID("6f3c2a52-3a0e-5a86-9a55-6d2f1c0b7e41")
MAX_SERIES_NUMBER: Final = 2_000_000
AI: Final[Code] = ("123109", "DCM", "Artificial Intelligence")


def version_and_family(algorithm: Algorithm | None) -> tuple[str, Code]:
    """What an object says of its maker beside the name; medssl's version where nothing else is known."""
    if algorithm is None:
        return __version__, AI
    return algorithm.version or __version__, AI if algorithm.family is None else algorithm.family.triple


def derived_uid(*parts: str) -> str:
    """A UID under 2.25, the arc of UUIDs (PS3.5 annex B.2)."""
    return f"2.25.{uuid.uuid5(NAMESPACE, '|'.join(parts)).int}"


def frame_of_reference(header: Header) -> str:
    """That of a slice; one of its series' own where it has no valid one."""
    given = header.FrameOfReferenceUID
    return given if valid_uid(given) else derived_uid("frame of reference", header.SeriesInstanceUID)


def require_one_patient(slices: Sequence[Header]) -> None:
    """Refuse slices of several patients or studies.

    Raises:
        InputError: `E_PATIENT_MIX`.
    """
    identities = {(header.PatientID, header.StudyInstanceUID) for header in slices}
    if len(identities) > 1:
        raise InputError("E_PATIENT_MIX", f"the slices of one series name {len(identities)} patients or studies")


def require_uids(slices: Sequence[Header]) -> list[str]:
    """Keywords of UIDs that are not valid, and can be named all the same.

    Raises:
        InputError: `E_SEG_SOURCE`.
    """
    found = {
        keyword: {getattr(header, keyword) for header in slices}
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    }
    unusable = [keyword for keyword, uids in found.items() if not all(map(usable_uid, uids))]
    if unusable:
        raise InputError("E_SEG_SOURCE", f"a DICOM SEG must name its source, which has no usable {unusable[0]}")
    return [keyword for keyword, uids in found.items() if not all(map(valid_uid, uids))]


def read_without_pixels(source: Source) -> Any:
    """The data set of a slice, whose attributes of patient and study an object repeats."""
    from pydicom import dcmread

    stream = source if isinstance(source, Path) else io.BytesIO(read_bytes(source))
    return dcmread(stream, stop_before_pixels=True, force=True)


def object_label(name: str, number: int) -> str:
    """A class's name; one that is too long ends in its number, so that no two are the same."""
    whole, room = clean_text(name, 1000), clean_text(name)
    return (room if whole == room else f"{clean_text(name, MAX_BYTES - 6)} #{number}") or f"class {number}"


def series_number(source: Any, model_sha256: str) -> int:
    """Behind the source's, so that viewers sort it there, and another one for most other models."""
    number = min(whole_number(source, "SeriesNumber") or 0, MAX_SERIES_NUMBER)
    return 1000 * number + 900 + int(model_sha256[:8], 16) % 100


def date_and_time(source: Any) -> tuple[str, str]:
    """When the series was made, as far as its headers say it: objects do not hang on the clock."""
    for name in ("Content", "Series", "Acquisition", "Study"):
        if (day := clean_date(str(source.get(f"{name}Date") or ""))) is not None:
            return day, clean_time(str(source.get(f"{name}Time") or "")) or "000000"
    return "19000101", "000000"


def first_slice(slices: Sequence[Header]) -> Header:
    """The slice whose patient, study and dates an object repeats: the same one, wherever its file lies."""
    return min(slices, key=lambda header: (header.SOPInstanceUID, header.frame))


def names_of_slices(slices: Sequence[Header]) -> list[str]:
    """What tells one image of a series from the others: its instances and frames."""
    return sorted(f"{header.SOPInstanceUID}#{header.frame}" for header in slices)


def answer_digest(slices: Sequence[Header], answer: bytes, *words: str) -> str:
    """SHA-256 of an answer about these images, and of words that say in which form it is given."""
    return hashlib.sha256("|".join([*names_of_slices(slices), *words]).encode() + answer).hexdigest()


def source_image(template: Any, header: Header) -> Any:
    """The reference to one slice, or to one frame of a multi-frame object (PS3.3 section 10.3)."""
    item = deepcopy(template)
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if header.NumberOfFrames > 1:
        item.ReferencedFrameNumber = header.frame + 1
    return item


def slices_at(slices: Sequence[Header], affine: Affine, num_slices: int) -> dict[int, list[Header]]:
    """Slices of the series by the slice of the label map that lies where they do; of a mended series some have none."""
    to_index = np.linalg.inv(LPS_TO_RAS @ affine)
    limit = displacement_limit_mm(affine) / min(spacing_mm(affine)) + MAX_INDEX_ERROR
    found: dict[int, list[Header]] = {}
    for header in slices:
        if header.ImagePositionPatient is None:
            continue
        index = to_index @ (*header.ImagePositionPatient, 1.0)
        k = round(index[2])
        if abs(index[2] - k) < limit and 0 <= k < num_slices:
            found.setdefault(k, []).append(header)
    return found
