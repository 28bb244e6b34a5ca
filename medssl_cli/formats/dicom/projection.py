"""Projection X-rays and other single pictures: what their spacing means and whether writing may be burned in.

A projection has no place in the patient (PS3.3 10.7.1.3): it becomes a volume of depth 1 whose affine is diag(spacing).
"""

from typing import Final

import numpy as np

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.headers import Header
from medssl_cli.formats.dicom.tags import RADIOGRAPHS, SECONDARY_CAPTURE
from medssl_cli.formats.loaded import BurnedIn, SpacingKind
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.imaging.geometry import Affine

# Writing is the rule in these (PS3.15 E.3.1 note): nothing says which pixels are free of it.
WRITTEN_ON: Final = frozenset({"US", "XA", "RF", "ES", "OP", "XC", "IVUS"})

_CALIBRATED: Final = frozenset({"GEOMETRY", "FIDUCIAL"})
_MAX_MAGNIFICATION: Final = 20.0


def is_projection(header: Header) -> bool:
    """Whether a picture of this modality is read on its own rather than as a slice of a volume."""
    return header.Modality in RADIOGRAPHS or header.Modality in WRITTEN_ON


def is_inverted(header: Header) -> bool:
    """Whether the lowest stored value of a projection is the brightest (PS3.3 C.7.6.3.1.2, C.11.6.1).

    INVERSE and MONOCHROME1 each say so; where both are there, as DX demands (C.8.11.3), they say it once.
    """
    return header.PhotometricInterpretation == "MONOCHROME1" or header.PresentationLUTShape.upper() == "INVERSE"


def polarity_is_doubtful(header: Header) -> bool:
    """Whether the two elements that say what is bright contradict each other."""
    shapes = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}
    shape = header.PresentationLUTShape.upper()
    return shape in shapes.values() and shapes.get(header.PhotometricInterpretation) != shape


def check_picture(header: Header) -> None:
    """Refuse what is not one picture.

    Raises:
        InputError: `E_NO_PATIENT_GEOMETRY` for several frames: a film loop or a tomosynthesis is no volume.
    """
    if header.NumberOfFrames > 1 or header.frame or header.tile is not None:
        raise InputError(
            "E_NO_PATIENT_GEOMETRY",
            f"{header.NumberOfFrames} frames of projections, which have no place in the patient",
        )


def burned_in(header: Header, policy: Policy = STRICT) -> BurnedIn:
    """Whether writing may be burned into a picture, under the policy of the site (reliability 3.5).

    Args:
        header: Header of a projection or a slice; only what it says in (0028,0301) counts.
        policy: Its `burned_in`.

    Returns:
        "no" or "unknown" for a radiograph, "not_expected" for a slice; "accepted_risk" where only the policy took it.

    Raises:
        InputError: `E_BURNED_IN`.
    """
    says = header.BurnedInAnnotation.upper()
    takes_risk = policy.burned_in == "accept-risk"
    if says == "YES":
        return _at_risk(takes_risk, "the header says that writing is burned into the picture")
    if header.SOPClassUID in SECONDARY_CAPTURE:
        return _at_risk(takes_risk, "a secondary capture may show any screen")
    if header.Modality in WRITTEN_ON:
        return _at_risk(takes_risk, f"pictures of modality {header.Modality} usually have writing burned in")
    if header.Modality not in RADIOGRAPHS:
        return "not_expected"
    if says == "NO":
        return "no"
    if policy.burned_in == "refuse":
        return _at_risk(False, "element (0028,0301) does not say that the picture is free of writing")
    return "unknown"


def spacing_of(header: Header) -> tuple[tuple[float, float], SpacingKind]:
    """Distance (x, y) between pixels in mm and where it was measured.

    PixelSpacing is in the patient where it was calibrated or corrected, that is, unless it merely repeats
    ImagerPixelSpacing; the latter divided by the estimated magnification is in the patient too (PS3.3 10.7.1.3,
    C.8.11.7). Without either the spacing is unknown and 1 mm stands in.

    Raises:
        InputError: `E_SPACING_INVALID`.
    """
    imager, pixel = header.ImagerPixelSpacing, header.PixelSpacing
    factor = header.EstimatedRadiographicMagnificationFactor
    is_calibrated = header.PixelSpacingCalibrationType.upper() in _CALIBRATED
    if pixel is not None and (is_calibrated or imager is None or pixel != imager):
        return _columns_first(pixel), "patient"
    if imager is None:
        return (1.0, 1.0), "unknown"
    if factor is None or factor == 1:
        return _columns_first(imager), "detector"
    if not 1 <= factor <= _MAX_MAGNIFICATION:
        raise InputError("E_SPACING_INVALID", "the magnification in element (0018,1114) is not possible")
    return _columns_first((imager[0] / factor, imager[1] / factor)), "patient"


def picture_affine(spacing: tuple[float, float]) -> Affine:
    """diag(x, y, 1): spacing only, no place in a world."""
    return np.diag([*spacing, 1.0, 1.0]).astype(np.float64)


def _columns_first(spacing: tuple[float, float]) -> tuple[float, float]:
    """DICOM's [between rows, between columns] as (x, y)."""
    if min(spacing) <= 1e-6:
        raise InputError("E_SPACING_INVALID", "a pixel spacing is zero or negative")
    return spacing[1], spacing[0]


def _at_risk(takes_risk: bool, reason: str) -> BurnedIn:
    if not takes_risk:
        raise InputError("E_BURNED_IN", reason, hint="mask the writing, or pass --burned-in=accept-risk")
    return "accepted_risk"
