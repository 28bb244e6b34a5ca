"""What may differ from slice to slice: place, scale, and how the slice was acquired.

Only elements that place or scale a voxel are read strictly. Whatever tells images apart or describes them counts as
missing where it is malformed (`lenient`).
"""

from typing import Any, Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.metadata import acquisition_of
from medssl_cli.formats.dicom.tags import SLICE_MODALITIES
from medssl_cli.formats.dicom.values import Values, first_known, lenient
from medssl_cli.formats.policy import Policy

MAX_COORDINATE_MM: Final = 1e5

_GE_B_VALUE_MARK: Final = 100_000
_DIRECTION_DIGITS: Final = 4


def slice_fields(values: Values, policy: Policy) -> dict[str, Any]:
    """The fields of `Header` that one slice or frame has of its own.

    Args:
        values: Raw values of the file, or of one of its frames.
        policy: `keep_demographics` matters here.

    Raises:
        InputError: `E_VALUE_INVALID`.
    """
    b_value = _b_value(values)
    found: dict[str, Any] = {
        "ImagePositionPatient": values.decimals("ImagePositionPatient", 3),
        "ImageOrientationPatient": values.decimals("ImageOrientationPatient", 6),
        "PixelSpacing": values.decimals("PixelSpacing", 2),
        "PixelPaddingValue": _padding(values, "PixelPaddingValue"),
        "PixelPaddingRangeLimit": _padding(values, "PixelPaddingRangeLimit"),
        "EchoTime": first_known(lenient(values.decimal, "EchoTime"), lenient(values.double, "EffectiveEchoTime")),
        "TriggerTime": first_known(
            lenient(values.decimal, "TriggerTime"), lenient(values.double, "NominalCardiacTriggerDelayTime")
        ),
        "NominalPercentageOfCardiacPhase": lenient(values.double, "NominalPercentageOfCardiacPhase"),
        "FrameReferenceTime": lenient(values.decimal, "FrameReferenceTime"),
        "DiffusionBValue": b_value,
        "DiffusionGradientOrientation": _direction(values, b_value),
        "DimensionIndexValues": values.indices("DimensionIndexValues"),
        "TemporalPositionIdentifier": _time_point(values),
        "AcquisitionNumber": first_known(
            lenient(values.number, "FrameAcquisitionNumber", 2), lenient(values.integer, "AcquisitionNumber")
        ),
        "AcquisitionTime": values.text("FrameAcquisitionDateTime")[8:] or values.text("AcquisitionTime"),
        "ImageType": values.texts("FrameType" if values.text("FrameType") else "ImageType"),
        "acquisition": acquisition_of(values, b_value=b_value, keep_demographics=policy.keep_demographics),
        "philips_scale_slope": _positive(values.private_single("philips_scale_slope")),
        "philips_suv_factor": _positive(next(iter(values.private_decimals("philips_suv_factor")), None)),
    }
    places = (found["ImagePositionPatient"], found["ImageOrientationPatient"], found["PixelSpacing"])
    if any(place is not None and max(map(abs, place)) > MAX_COORDINATE_MM for place in places):
        raise InputError("E_VALUE_INVALID", f"a position or spacing of more than {MAX_COORDINATE_MM:g} mm")
    for name in (
        "RescaleType", "EchoNumbers", "BurnedInAnnotation", "StackID", "PixelSpacingCalibrationType",
        "PresentationLUTShape",
    ):  # fmt: skip
        found[name] = values.text(name)
    for name in ("RescaleSlope", "RescaleIntercept"):
        found[name] = values.decimal(name)
    found["ConvolutionKernel"] = values.texts("ConvolutionKernel")
    found["InstanceNumber"] = lenient(values.integer, "InstanceNumber")
    found |= _detector(values)
    return found | _pet(values) if values.text("Modality") == "PT" else found


def _detector(values: Values) -> dict[str, Any]:
    """What else places the pixels of a projection; a slice is not placed by it, and not refused for it."""
    readers = {
        "ImagerPixelSpacing": lambda name: values.decimals(name, 2),
        "EstimatedRadiographicMagnificationFactor": values.decimal,
    }
    is_slice = values.text("Modality") in SLICE_MODALITIES
    return {name: lenient(read, name) if is_slice else read(name) for name, read in readers.items()}


def _pet(values: Values) -> dict[str, Any]:
    """What uptake values need."""
    found: dict[str, Any] = {"CorrectedImage": values.texts("CorrectedImage")}
    for name in ("PatientWeight", "RadionuclideTotalDose", "RadionuclideHalfLife"):
        found[name] = lenient(values.decimal, name)
    for name in (
        "Units", "SUVType", "DecayCorrection", "SeriesDate", "SeriesTime", "AcquisitionDate",
        "RadiopharmaceuticalStartTime", "RadiopharmaceuticalStartDateTime",
    ):  # fmt: skip
        found[name] = values.text(name)
    return found


def _b_value(values: Values) -> float | None:
    """The public element, else the vendor's own (named in `docs/concepts/privacy.md`).

    GE marks some values by adding a multiple of 100,000, and writes 0 in every image without diffusion weighting.
    """
    public = lenient(values.double, "DiffusionBValue")
    if public is not None or values.text("Modality") != "MR":
        return public
    siemens, ge = (values.private_decimals(name) for name in ("siemens_b_value", "ge_b_value"))
    if siemens:
        return siemens[0]
    if ge and ge[0] >= 1:
        return ge[0] % _GE_B_VALUE_MARK
    return values.private_single("philips_b_value")


def _direction(values: Values, b_value: float | None) -> tuple[float, ...] | None:
    """Direction of diffusion weighting, rounded so that slices of one image agree; the vendors' own as for b-values."""
    found = values.doubles("DiffusionGradientOrientation", 3)
    if found is None and b_value and values.text("Modality") == "MR":
        found = values.private_doubles("siemens_direction", 3) or _private_direction(values)
    return None if found is None else tuple(round(number, _DIRECTION_DIGITS) + 0.0 for number in found)


def _private_direction(values: Values) -> tuple[float, ...] | None:
    philips = [values.private_single(f"philips_direction_{axis}") for axis in "xyz"]
    ge = [next(iter(values.private_decimals(f"ge_direction_{axis}")), None) for axis in "xyz"]
    for maker in (philips, ge):
        numbers = tuple(number for number in maker if number is not None)
        if len(numbers) == 3:
            return numbers
    return None


def _time_point(values: Values) -> int | None:
    """The public element; for GE, whose time series lack it, the count of complete runs through the slices.

    That is believed only where the position in the stack, too, starts again after each run.
    """
    public = first_known(
        lenient(values.number, "TemporalPositionIndex", 4), lenient(values.integer, "TemporalPositionIdentifier")
    )
    if public is not None or values.text("Modality") != "MR":
        return None if public is None else int(public)
    locations = values.private_number("ge_locations")
    points, number = (lenient(values.integer, name) for name in ("NumberOfTemporalPositions", "InstanceNumber"))
    if not locations or points is None or points < 2 or number is None or not 1 <= number <= locations * points:
        return None
    run, position = divmod(number - 1, locations)
    return run + 1 if lenient(values.number, "InStackPositionNumber", 4) == position + 1 else None


def _padding(values: Values, name: str) -> int | None:
    """In the stored sign."""
    unsigned = lenient(values.number, name, 2)
    is_signed = values.number("PixelRepresentation", 2) == 1
    return unsigned - 0x10000 if unsigned is not None and is_signed and unsigned >= 0x8000 else unsigned


def _positive(number: float | None) -> float | None:
    return number if number is not None and number > 0 else None
