"""Stored images with everything that labels may call them by, in the clear: they live in memory only."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from medssl_cli.formats.labels import Instance, name_key
from medssl_cli.formats.source import Source, place_of
from medssl_cli.ingest.tasks import StoredImage


@dataclass(frozen=True)
class KnownImage:
    """A stored image and what labels may call it by, in the clear. Lives in memory only.

    Args:
        image: Where it went.
        series_uid: SeriesInstanceUID; "" if it has one that is not known in the clear.
        frame_of_reference: FrameOfReferenceUID.
        sop_uids: SOPInstanceUIDs of its slices.
        study: StudyInstanceUID.
        patients: PatientID, alone and with its issuer; of a file the patient part of its name.
        place: Path of its file, where it is one file.
        frames: Its frames of objects that have several.
        is_superseded: A larger version of it is in the cache.
    """

    image: StoredImage
    series_uid: str | None = None
    frame_of_reference: str | None = None
    sop_uids: frozenset[str] = frozenset()
    study: str | None = None
    patients: tuple[str, ...] = ()
    place: PurePath | None = None
    frames: frozenset[Instance] = frozenset()
    is_superseded: bool = False

    @classmethod
    def of_series(cls, image: StoredImage, headers: Sequence[Any], patient: str | None = None) -> "KnownImage":
        """An image that was made from DICOM headers.

        Args:
            image: Where it went.
            headers: `SeriesPart.headers`.
            patient: Patient part of the names of its files, where the headers name nobody.
        """
        first = headers[0]
        sources = {header.source for header in headers}
        named, issuer = first.PatientID or patient, first.IssuerOfPatientID
        return cls(
            image,
            series_uid=first.SeriesInstanceUID,
            frame_of_reference=first.FrameOfReferenceUID or None,
            sop_uids=frozenset(header.SOPInstanceUID for header in headers),
            study=first.StudyInstanceUID,
            patients=tuple(dict.fromkeys((named, f"{issuer}\\{named}" if issuer else named))) if named else (),
            place=place_of(first.source) if len(sources) == 1 else None,
            frames=frozenset(Instance(h.SOPInstanceUID, h.frame + 1) for h in headers if h.NumberOfFrames > 1),
        )

    @classmethod
    def of_file(cls, image: StoredImage, source: Source, patient: str | None = None) -> "KnownImage":
        """An image that is a file of its own."""
        return cls(image, patients=(patient,) if patient else (), place=place_of(source))

    @classmethod
    def recalled(cls, image: StoredImage, source: Source, *, has_uids: bool) -> "KnownImage":
        """An image of an unchanged file that was not opened again: nothing is known in the clear but its place.

        Args:
            image: Where it went.
            source: The file.
            has_uids: It has identifiers of its own, which only the cache knows, as pseudonyms.
        """
        return cls(image, series_uid="" if has_uids else None, place=place_of(source))

    @property
    def names(self) -> dict[str, frozenset[str]]:
        """Everything that the value of a table may be, as `name_key`, by its level, the most specific first."""
        words: dict[str, Iterable[str | None]] = {
            "sop": self.sop_uids,
            "name": (self.place.name if self.place else None,),
            "series": (self.series_uid,),
            "study": (self.study,),
            "patient": self.patients,
        }
        return {level: frozenset(name_key(one) for one in some if one) for level, some in words.items()}


def names_of(images: Iterable[KnownImage]) -> dict[str, frozenset[str]]:
    """Whatever a table may call the images by, for each level."""
    found: dict[str, set[str]] = defaultdict(set)
    for image in images:
        for level, names in image.names.items():
            found[level] |= names
    return {level: frozenset(names) for level, names in found.items()}
