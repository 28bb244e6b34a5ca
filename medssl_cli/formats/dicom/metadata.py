"""What may be stored about how an image was made: numbers and words of closed vocabularies out of raw values.

Whatever is malformed or not in a vocabulary is dropped: no image is refused for it, and no free text passes.
"""

import math
import re
from functools import lru_cache
from typing import Any, Final, get_args

from medssl_cli.formats.acquisition import Acquisition, BodyPart, ImageKind, Manufacturer
from medssl_cli.formats.dicom.tags import TAGS
from medssl_cli.formats.dicom.values import Values, first_known, lenient

_KINDS: Final = frozenset(get_args(ImageKind))
_BODY_PARTS: Final = frozenset(get_args(BodyPart)) - {"unknown"}
_VIEWS: Final = frozenset(("PA", "AP", "LL", "RL", "CC", "MLO", "LATERAL", "OBLIQUE"))
_MANUFACTURERS: Final[dict[str, Manufacturer]] = {
    "AGFA": "AGFA", "CANON": "CANON", "CARESTREAM": "CARESTREAM", "FUJI": "FUJIFILM", "GE MED": "GE", "GE HEALTH": "GE",
    "HITACHI": "HITACHI", "HOLOGIC": "HOLOGIC", "LORAD": "HOLOGIC", "KONICA": "KONICA MINOLTA", "PHILIPS": "PHILIPS",
    "SAMSUNG": "SAMSUNG", "SHIMADZU": "SHIMADZU", "SIEMENS": "SIEMENS", "TOSHIBA": "TOSHIBA", "UIH": "UNITED IMAGING",
    "UNITED IMAGING": "UNITED IMAGING",
}  # fmt: skip
_AGE: Final = re.compile(r"(\d{3})([DWMY])")
_DAYS: Final = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25}
_TOP_AGE: Final = 85
_NO_AGENT: Final = frozenset(("NO", "NONE", "N"))
_NAMES: Final = (
    "ImageType", "FrameType", "BodyPartExamined", "FrameLaterality", "ImageLaterality", "Laterality", "ViewPosition",
    "ContrastBolusAgent", "Manufacturer", "KVP", "MagneticFieldStrength", "RepetitionTime", "EchoTime",
    "EffectiveEchoTime", "InversionTime", "InversionTimes", "FlipAngle", "RadionuclideHalfLife", "SliceThickness",
    "BitsStored", "LossyImageCompressionRatio",
)  # fmt: skip
_DEMOGRAPHIC: Final = ("PatientSex", "PatientAge")


def acquisition_of(values: Values, *, b_value: float | None, keep_demographics: bool) -> Acquisition:
    """The allow-list's fields of one slice; equal slices share one object.

    Args:
        values: Raw values.
        b_value: Diffusion weighting in s/mm^2, from wherever it stands.
        keep_demographics: Keep sex, and age in steps of five years up to 85.
    """
    names = _NAMES + _DEMOGRAPHIC if keep_demographics else _NAMES
    raw = tuple(values.bytes_of(TAGS[name])[:1024] for name in names)
    return _acquisition(raw, values.is_little, b_value)


@lru_cache(maxsize=1024)
def _acquisition(raw: tuple[bytes, ...], is_little: bool, b_value: float | None) -> Acquisition:
    tags = (TAGS[name] for name in _NAMES + _DEMOGRAPHIC)
    values = Values({tag: value for tag, value in zip(tags, raw, strict=False) if value}, is_little)
    kinds = values.texts("FrameType") if values.bytes_of(TAGS["FrameType"]) else values.texts("ImageType")
    fields: dict[str, Any] = {
        "image_type": tuple(kind for kind in kinds if kind in _KINDS),
        "body_part": _body_part(values),
        "laterality": _laterality(values),
        "view_position": _word(values, "ViewPosition", _VIEWS),
        "has_contrast_agent": _has_contrast_agent(values),
        "manufacturer": _manufacturer(values),
        "kvp": _number(values, "KVP"),
        "field_strength_t": _number(values, "MagneticFieldStrength"),
        "repetition_time_ms": _number(values, "RepetitionTime"),
        "echo_time_ms": first_known(_number(values, "EchoTime"), _double(values, "EffectiveEchoTime")),
        "inversion_time_ms": first_known(_number(values, "InversionTime"), _double(values, "InversionTimes")),
        "flip_angle_deg": _number(values, "FlipAngle"),
        "b_value": _bounded(b_value),
        "half_life_s": _number(values, "RadionuclideHalfLife"),
        "slice_thickness_mm": _number(values, "SliceThickness"),
        "bits_stored": _bits(values),
        "lossy_ratio": _number(values, "LossyImageCompressionRatio"),
        "sex": _word(values, "PatientSex", frozenset("FMO")),
        "age_from_years": _age(values),
    }
    return Acquisition(**fields)


def _number(values: Values, name: str) -> float | None:
    return _bounded(lenient(values.decimal, name))


def _double(values: Values, name: str) -> float | None:
    return _bounded(lenient(values.double, name))


def _bounded(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) and abs(number) <= 1e6 else None


def _bits(values: Values) -> int | None:
    raw = values.bytes_of(TAGS["BitsStored"])
    bits = int.from_bytes(raw, "little" if values.is_little else "big")
    return bits if len(raw) == 2 and 1 <= bits <= 64 else None


def _word(values: Values, name: str, vocabulary: frozenset[str]) -> str | None:
    word = values.text(name).upper()
    return word if word in vocabulary else None


def _body_part(values: Values) -> str:
    word = re.sub(r"[\s_-]", "", values.text("BodyPartExamined").upper())
    return word if word in _BODY_PARTS else "unknown"


def _laterality(values: Values) -> str | None:
    sides = (_word(values, name, frozenset("LRBU")) for name in ("FrameLaterality", "ImageLaterality", "Laterality"))
    return next((side for side in sides if side), None)


def _has_contrast_agent(values: Values) -> bool | None:
    agent = values.text("ContrastBolusAgent").upper()
    return agent not in _NO_AGENT if agent else None


def _manufacturer(values: Values) -> Manufacturer:
    name = values.text("Manufacturer").upper()
    if name == "GE":
        return "GE"
    return next((maker for word, maker in _MANUFACTURERS.items() if name.startswith(word)), "unknown")


def _age(values: Values) -> int | None:
    """Years in steps of five; everybody of 85 or more is 85 (PS3.15 E.3.5 leaves the steps to the site)."""
    match = _AGE.fullmatch(values.text("PatientAge").upper())
    if match is None:
        return None
    years = int(match[1]) * _DAYS[match[2]] / _DAYS["Y"]
    return min(_TOP_AGE, int(years) // 5 * 5)
