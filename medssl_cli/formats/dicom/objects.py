"""Which kinds of DICOM objects are images for us, and what is said about those that are not."""

from typing import Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.elements import Elements, walk
from medssl_cli.formats.dicom.tags import (
    CINE,
    ENHANCED,
    ENHANCED_PROJECTION,
    MEDIA_SOP_CLASS,
    MODALITIES,
    NUCLEAR_MEDICINE,
    ONE_CAPTURE,
    RADIOGRAPHS,
    SECONDARY_CAPTURE,
    SOP_CLASS,
    TAGS,
)
from medssl_cli.formats.dicom.values import Values
from medssl_cli.formats.dicom.window import Window
from medssl_cli.formats.policy import Policy

_ROWS: Final = TAGS["Rows"]
_SEGMENTATIONS: Final = "1.2.840.10008.5.1.4.1.1.66."  # label maps (66.7) are in no dictionary yet


class _FoundError(Exception):
    """Ends a walk as soon as the kind of object is known."""


def sop_class_in(window: Window) -> str:
    """The kind of object in a file, walking no further than to where it stands; empty where it does not say."""
    found: list[bytes] = []

    def stop(value: bytes) -> None:
        found.append(value)
        raise _FoundError

    try:
        return _stated(walk(window, allow_headerless=True, wanted=frozenset((SOP_CLASS,)), on_sop_class=stop))
    except _FoundError:
        return _plain(found[0])


def refuse_non_image(value: bytes) -> None:
    """Refuse objects that are known to hold no image before their often long content is walked.

    Args:
        value: Raw value of (0008,0016).

    Raises:
        InputError: `S_NON_IMAGE`.
    """
    sop_class = _plain(value)
    if sop_class in MODALITIES or sop_class in SECONDARY_CAPTURE:
        return
    name = _name(sop_class)
    if sop_class.startswith(_SEGMENTATIONS) or (name and "Image Storage" not in name):
        raise InputError("S_NON_IMAGE", f"not an image ({name or 'a segmentation'})")


def check_kind(elements: Elements, policy: Policy) -> str:
    """The kind of an image that is read.

    Args:
        elements: Elements of the file.
        policy: Whether a secondary capture of an X-ray is taken: with the risk of burned-in writing only.

    Raises:
        InputError: `S_NON_IMAGE`, `S_SECONDARY_CAPTURE`, `S_UNSUPPORTED_MODALITY`, `S_NOT_AN_IMAGE`, `E_DICOM_PARSE`,
            `E_ENHANCED_UNSUPPORTED`, `E_NO_PATIENT_GEOMETRY`, or `E_TRUNCATED` for an image without pixel data.
    """
    sop_class = _stated(elements)
    has_pixels = elements.pixel_tag is not None
    if elements.start == 0 and not (sop_class and TAGS["SOPInstanceUID"] in elements.values):
        raise InputError("S_NOT_AN_IMAGE", "no DICOM signature, and not a bare data set either")
    if not sop_class:
        raise InputError("E_DICOM_PARSE", "element (0008,0016) is missing: what kind of object is this?")
    if sop_class == ONE_CAPTURE and Values(elements.values, elements.is_little).text("Modality") in RADIOGRAPHS:
        if policy.burned_in != "accept-risk":
            raise InputError(
                "S_SECONDARY_CAPTURE",
                "a secondary capture that says that it is an X-ray",
                hint="retrieve the original, or look at some of them and pass --burned-in=accept-risk",
            )
    elif sop_class not in MODALITIES:
        raise _refusal(sop_class, is_image=has_pixels or _ROWS in elements.values)
    num_frames = Values(elements.values, elements.is_little).integer("NumberOfFrames")
    if num_frames is not None and num_frames > 1 and sop_class not in ENHANCED:
        if sop_class in CINE:
            raise InputError("E_NO_PATIENT_GEOMETRY", f"a film of {num_frames} pictures, not a volume")
        raise InputError(
            "E_ENHANCED_UNSUPPORTED",
            f"{num_frames} frames of unknown place in a file of single images",
            hint="export single-frame images",
        )
    if not has_pixels:
        raise InputError("E_TRUNCATED", "the file ends before its pixel data begin", hint="retrieve the file again")
    return sop_class


def _refusal(sop_class: str, *, is_image: bool) -> InputError:
    name = _name(sop_class)
    if sop_class in SECONDARY_CAPTURE:
        return InputError("S_SECONDARY_CAPTURE", f"a secondary capture ({name})")
    if sop_class in ENHANCED_PROJECTION:
        return InputError("E_ENHANCED_UNSUPPORTED", f"a multi-frame object of projections ({name})")
    if sop_class == NUCLEAR_MEDICINE:
        return InputError("E_NO_PATIENT_GEOMETRY", f"an image placed by its detectors only ({name})")
    if not is_image:
        if not name:
            return InputError("E_DICOM_PARSE", "an object of unknown kind without pixel data")
        if "Image Storage" not in name:
            return InputError("S_NON_IMAGE", f"not an image ({name})")
    return InputError("S_UNSUPPORTED_MODALITY", f"an image of a kind that is not read ({name or 'unknown'})")


def _stated(elements: Elements) -> str:
    for tag in (SOP_CLASS, MEDIA_SOP_CLASS):
        found = elements.values.get(tag)
        if isinstance(found, bytes) and (sop_class := _plain(found)):
            return sop_class
    return ""


def _plain(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0")


def _name(sop_class: str) -> str:
    """The registered name; "" for anything else, which therefore is never quoted."""
    from pydicom.uid import UID_dictionary  # a quarter of a second that images need not pay

    return UID_dictionary.get(sop_class, ("",))[0]
