"""What to look for in a PACS, and what its answers say: the DICOM JSON model (PS3.18 annex F), read with suspicion."""

import contextlib
import re
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from medssl_cli.base.errors import UsageError

STUDY_DATE: Final = "00080020"
MODALITY: Final = "00080060"
PATIENT_ID: Final = "00100020"
STUDY: Final = "0020000D"
SERIES: Final = "0020000E"
SOP: Final = "00080018"
NUM_INSTANCES: Final = "00201209"
Entry = dict[str, Any]
_UID: Final = re.compile(r"\d+(\.\d+)*", re.ASCII)
_MODALITY_WORD: Final = re.compile(r"[A-Z]{2,16}", re.ASCII)


@dataclass(frozen=True)
class PacsQuery:
    """What to look for; all conditions hold together.

    Args:
        modality: Modality of the series.
        date_from: First StudyDate.
        date_to: Last StudyDate.
        patients: PatientIDs, any of them; none stands for all.

    Raises:
        UsageError: `E_USAGE`, no condition at all, or one that means something else to a PACS.
    """

    modality: str | None = None
    date_from: date | None = None
    date_to: date | None = None
    patients: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.modality or self.date_from or self.date_to or self.patients):
            raise UsageError(
                "E_USAGE", "this would retrieve the whole PACS", hint="say medssl ingest --modality, --from or --to"
            )
        if self.modality is not None and not _MODALITY_WORD.fullmatch(self.modality):
            raise UsageError("E_USAGE", "a modality is two or more capital letters", hint="for example CT")
        if self.date_from and self.date_to and self.date_from > self.date_to:
            raise UsageError("E_USAGE", "--from is later than --to")
        if any(not text.strip() or not text.isprintable() or set(text) & set("*?\\") for text in self.patients):
            raise UsageError("E_USAGE", "a patient's ID is empty or has one of the characters * ? \\")

    def filters(self, patient: str | None) -> dict[str, str]:
        """Conditions on studies, as QIDO-RS writes them."""
        filters = {"ModalitiesInStudy": self.modality, "PatientID": patient}
        if self.date_from or self.date_to:
            first, last = (f"{day:%Y%m%d}" if day else "" for day in (self.date_from, self.date_to))
            filters["StudyDate"] = f"{first}-{last}"
        return {name: value for name, value in filters.items() if value}

    def takes_study(self, study: Entry, patient: str | None) -> bool:
        """Whether a study that was found is one that was asked for."""
        if patient is not None and text_of(study, PATIENT_ID).strip() != patient.strip():
            return False
        if not (self.date_from or self.date_to):
            return True
        with contextlib.suppress(ValueError):
            day = date.fromisoformat(text_of(study, STUDY_DATE).replace(".", ""))
            return (self.date_from or date.min) <= day <= (self.date_to or date.max)
        return False


@dataclass(frozen=True)
class SeriesRef:
    """A series that a PACS has.

    Args:
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID; empty if the study's UID cannot be used to ask for its series.
        num_instances: As the PACS counts them; None if it does not say.
    """

    study_uid: str
    series_uid: str
    num_instances: int | None = None

    @property
    def is_valid(self) -> bool:
        """Whether the UIDs are ones (PS3.5 section 9); others are never sent or used."""
        return is_uid(self.study_uid) and is_uid(self.series_uid)

    @property
    def place(self) -> str:
        """Its path in a DICOMweb service."""
        return f"/studies/{self.study_uid}/series/{self.series_uid}"


def is_uid(text: str) -> bool:
    """Whether a text is a UID (PS3.5 section 9.1; zeros in front are let pass): digits and single dots only."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def text_of(entry: Entry, tag: str) -> str:
    """First value of an element of the DICOM JSON model (PS3.18 annex F), if it is a text."""
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values and isinstance(values[0], str) else ""


def count_of(entry: Entry) -> int | None:
    """Number of Series Related Instances (0020,1209); None where it is missing or no number."""
    element = entry.get(NUM_INSTANCES)
    values = element.get("Value") if isinstance(element, dict) else None
    value = values[0] if isinstance(values, list) and values else None
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value.strip()[:12])
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return int(value) if is_count and value is not None else None
