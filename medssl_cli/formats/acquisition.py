"""What may be known about how an image was made: an allow-list of numbers and closed vocabularies, never free text."""

from typing import Annotated, Literal

from pydantic import Field

from medssl_cli.base.strict import Strict

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
ImageKind = Literal[
    "ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL", "LOCALIZER", "REFORMATTED", "MPR", "MIP",
    "PROJECTION IMAGE", "SUBTRACTION", "VOLUME", "DIFFUSION", "ADC", "TRACE", "FA", "PERFUSION", "T1", "T2", "PHASE",
    "MAGNITUDE", "REAL", "IMAGINARY", "M", "P", "R", "I", "NORM", "DIS2D", "DIS3D", "ND", "MOSAIC", "STATIC", "DYNAMIC",
    "GATED", "WHOLE BODY",
]  # fmt: skip
BodyPart = Literal[
    "ABDOMEN", "ANKLE", "ARM", "BRAIN", "BREAST", "CHEST", "CSPINE", "ELBOW", "EXTREMITY", "FOOT", "HAND", "HEAD",
    "HEART", "HIP", "KNEE", "LEG", "LSPINE", "NECK", "PELVIS", "PROSTATE", "SHOULDER", "SKULL", "SPINE", "TSPINE",
    "WHOLEBODY", "WRIST", "unknown",
]  # fmt: skip
Manufacturer = Literal[
    "AGFA", "CANON", "CARESTREAM", "FUJIFILM", "GE", "HITACHI", "HOLOGIC", "KONICA MINOLTA", "PHILIPS", "SAMSUNG",
    "SHIMADZU", "SIEMENS", "TOSHIBA", "UNITED IMAGING", "unknown",
]  # fmt: skip


class Acquisition(Strict):
    """The allow-list, version 1 (`docs/concepts/privacy.md`). A field that is not here cannot be stored.

    Numbers are in DICOM's units: kV, ms, tesla, degrees, s/mm^2, seconds, mm.
    """

    image_type: tuple[ImageKind, ...] = ()
    body_part: BodyPart = "unknown"
    laterality: Literal["L", "R", "B", "U"] | None = None
    view_position: Literal["PA", "AP", "LL", "RL", "CC", "MLO", "LATERAL", "OBLIQUE"] | None = None
    has_contrast_agent: bool | None = None
    manufacturer: Manufacturer = "unknown"
    kvp: Number | None = None
    field_strength_t: Number | None = None
    repetition_time_ms: Number | None = None
    echo_time_ms: Number | None = None
    inversion_time_ms: Number | None = None
    flip_angle_deg: Number | None = None
    b_value: Number | None = None
    half_life_s: Number | None = None
    slice_thickness_mm: Number | None = None
    bits_stored: Annotated[int, Field(ge=1, le=64)] | None = None
    lossy_ratio: Number | None = None
    sex: Literal["F", "M", "O"] | None = None
    age_from_years: Literal[0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85] | None = None
