"""Readers and writers of file formats: the only room that knows LPS, PixelSpacing, qform or photometric words."""

from dataclasses import dataclass
from typing import Literal

from medssl_cli.imaging.volume import Volume


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
        identity: In the clear, for pseudonyms.
        source_kind: Which family of formats it came from.
        num_files: Files that it was assembled from.
        decoder: Library and version that decompressed the pixels, "" where none was needed.
        warnings: `W_` codes, each at most once.
        max_corner_displacement_mm: How far the source's own positions are from the affine.
    """

    volume: Volume
    identity: Identity
    source_kind: Literal["dicom", "nifti"]
    num_files: int = 1
    decoder: str = ""
    warnings: tuple[str, ...] = ()
    max_corner_displacement_mm: float = 0.0
