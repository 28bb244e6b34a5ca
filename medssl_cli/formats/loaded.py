"""What a format reader returns, and the few words that all of them share."""

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field

from medssl_cli.formats.acquisition import Acquisition
from medssl_cli.imaging.volume import Volume

LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns affines and points of DICOM's world into ours; applied to ours it leads back, for it is its own inverse."""
EXIF_ORIENTATION: Final = "exif-orientation="
"""Begins the repair that says how a picture was stored (EXIF 2.32, tag 0x0112)."""
SourceKind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""The name of a format: a word of the program, never one of a file."""
SpacingKind = Literal["patient", "detector", "unknown"]
BurnedIn = Literal["not_expected", "no", "unknown", "accepted_risk"]


@dataclass(frozen=True)
class Identity:
    """Who and what an image is, in the clear. Lives in memory only; the cache stores keyed hashes of it.

    Args:
        patient: PatientID with its issuer, or a file name's patient part; None where there is no usable identity.
        study: StudyInstanceUID or the best substitute.
        series: SeriesInstanceUID or the best substitute.
        frame_of_reference: FrameOfReferenceUID.
    """

    patient: str | None
    study: str
    series: str
    frame_of_reference: str | None = None


@dataclass(frozen=True)
class LoadedImage:
    """One image as a format reader returns it: trustworthy, or the reader raised `InputError`.

    Args:
        volume: One channel, native grid; CT in Hounsfield units with an integer dtype where values are whole.
            A projection X-ray or picture is a volume of depth 1 whose affine is diag(spacing) and no place in a world.
        identity: Identity in the clear, for pseudonyms.
        source_kind: The format that it came from, by its name in `formats/images`.
        num_files: Files that it was assembled from.
        decoder: Library and version that decompressed the pixels, "" where none was needed.
        warnings: `W_` codes, each at most once.
        max_corner_displacement_mm: How far the source's own positions are from the affine.
        repairs: What a `Policy` changed, as "gaps=interpolate".
        spacing_kind: None for a volume; for a projection, where its spacing was measured: in the patient, on the
            detector, or not at all (the affine then says 1 mm).
        burned_in: Whether writing may be burned into the picture.
        inverted: The stored values were inverted (MONOCHROME1).
        acquisition: How it was made.
        details: What more there is to say about some of the warnings, each as "CODE: text".
        states_modality: The file itself says what its modality and units are; else the caller's word counts.
        nifti_header: Header of a NIfTI file, if the image is all of it and lies on the grid that it states: what is
            written on that grid can repeat it bit for bit.
    """

    volume: Volume
    identity: Identity
    source_kind: SourceKind
    num_files: int = 1
    decoder: str = ""
    warnings: tuple[str, ...] = ()
    max_corner_displacement_mm: float = 0.0
    repairs: tuple[str, ...] = ()
    spacing_kind: SpacingKind | None = None
    burned_in: BurnedIn = "not_expected"
    inverted: bool = False
    acquisition: Acquisition = field(default_factory=Acquisition)
    details: tuple[str, ...] = ()
    states_modality: bool = False
    nifti_header: bytes | None = None


def exif_orientation(repairs: tuple[str, ...]) -> int:
    """Orientation in which a picture was stored that was turned the right way up when it was read; 1 for none."""
    found = [repair.removeprefix(EXIF_ORIENTATION) for repair in repairs if repair.startswith(EXIF_ORIENTATION)]
    return int(found[0]) if found and found[0].isdecimal() else 1
