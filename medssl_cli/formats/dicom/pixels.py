"""Pixels of a series: stored words of every slice, masked, scaled slice by slice, laid out as `[1, X, Y, Z]`.

S slices of Y rows and X columns. Each file is read once, straight into the stack; whole scales never leave integers.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.frames import BYTE_ORDER_OF, open_pixels, read_frames
from medssl_cli.formats.dicom.headers import Header
from medssl_cli.formats.dicom.loss import is_lossy, loss_ratio
from medssl_cli.formats.dicom.projection import is_inverted
from medssl_cli.formats.dicom.repair import repaired
from medssl_cli.formats.dicom.scaling import darkened, invert, mask_bits, rescale, span_of
from medssl_cli.formats.dicom.series import SeriesPart
from medssl_cli.formats.dicom.suv import suv_factor
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Source
from medssl_cli.imaging.volume import Volume

PLAUSIBLE_HU: Final = (-1100.0, 4000.0)

_MAX_SAMPLES: Final = 200_000
_LINE_BYTES: Final = 64

Voxels = NDArray[Any]


def needs_decoder(part: SeriesPart) -> bool:
    """Whether any pixels are compressed: decoders are foreign code and belong into a child process."""
    return any(header.TransferSyntaxUID not in BYTE_ORDER_OF for header in part.headers)


def read_series(part: SeriesPart, policy: Policy = STRICT) -> LoadedImage:
    """Decode, scale, repair and stack the slices of one part.

    Args:
        part: Part from `group_headers`, under the same policy.
        policy: Its `max_volume_bytes`.

    Returns:
        Voxels `[1, X, Y, Z]` (column, row, slice), C-contiguous, with the part's affine; the smallest integer dtype
        that holds every scaled value exactly, otherwise float32. CT is in Hounsfield units; PET in SUVbw where its
        header allows that, else "Bq/ml" or "a.u." with `W_SUV_UNAVAILABLE`.

    Raises:
        InputError: `E_PHOTOMETRIC`, `E_TOO_BIG`, `E_CHANGED_DURING_READ`, `E_TRUNCATED`, `E_PIXEL_LENGTH`,
            `E_CODESTREAM_MISMATCH`, `E_PIXEL_DECODE`, `E_VALUE_INVALID`, `E_SCALE` or `E_NONFINITE_VOXELS`.
    """
    first = part.headers[0]
    for header in part.headers:
        _check_kind(header, is_projection=part.spacing_kind is not None)
    x, y, z = part.repair.shape((first.Columns, first.Rows, len(part.headers)))
    if x * y * z * 4 > policy.max_volume_bytes:
        raise InputError("E_TOO_BIG", f"the volume is larger than {policy.max_volume_bytes} bytes")
    scales = _scales(part.headers)
    units, factor, doubt = _units(part)
    found, details = (["W_SUV_UNAVAILABLE"], [f"W_SUV_UNAVAILABLE: {doubt}"]) if doubt else ([], [])
    acquisition = first.acquisition
    stored, decoder, has_high_bits = _stored(part)
    if has_high_bits:
        found.append("W_HIGH_BITS")
    if units == "HU" and not _is_plausible(part.headers, stored, scales):
        found.append("W_HU_IMPLAUSIBLE")
    if is_lossy(part.headers):
        found.append("W_LOSSY")
        if ratio := loss_ratio(part.headers):
            details.append(f"W_LOSSY: ratio {ratio:.3g}")
            acquisition = acquisition.model_copy(update={"lossy_ratio": ratio})
    spans = [span_of(values) for values in stored]
    scales = [(slope * factor, intercept * factor) for slope, intercept in scales]
    if (
        len({end * slope + intercept for span, (slope, intercept) in zip(spans, scales, strict=True) for end in span})
        == 1
    ):
        found.append("W_CONSTANT_IMAGE")
    padding = _padding_of(first, stored, part)
    stack = rescale(stored, scales, spans)
    if padding is not None:
        stack, is_changed = darkened(stack, padding)
        found += ["W_PADDING"] if is_changed else []
    if part.repair.names:
        stack = repaired(stack, part.repair)
    return LoadedImage(
        volume=Volume(voxels=_laid_out(stack), affine=part.affine, modality=first.Modality, units=units),
        identity=part.identity,
        source_kind="dicom",
        num_files=len({header.source for header in part.headers}),
        decoder=decoder,
        warnings=tuple(dict.fromkeys((*part.warnings, *found))),
        max_corner_displacement_mm=part.mcd_mm,
        repairs=part.repair.names,
        spacing_kind=part.spacing_kind,
        burned_in=part.burned_in,
        inverted=any(_is_inverted(header, part) for header in part.headers),
        acquisition=acquisition,
        details=tuple(details),
        states_modality=True,
    )


def _stored(part: SeriesPart) -> tuple[Voxels, str, bool]:
    """Masked stored values `[S, Y, X]`, the decoders' names, and whether bits above those stored were set."""
    headers = part.headers
    kinds = {(header.BitsAllocated // 8, header.PixelRepresentation) for header in headers}
    dtype = np.result_type(*(np.dtype(f"{'ui'[sign]}{width}") for width, sign in kinds))
    stack = np.empty((len(headers), headers[0].Rows, headers[0].Columns), dtype=dtype)
    is_direct = len(kinds) == 1
    members: dict[Source, list[int]] = defaultdict(list)
    for k, header in enumerate(headers):
        members[header.source].append(k)
    decoders: set[str] = set()
    has_high_bits = False
    for numbers in members.values():
        own = [headers[k] for k in numbers]
        words = [
            stack[k].view(f"u{stack.itemsize}")
            if is_direct
            else np.empty(stack.shape[1:], f"u{header.BitsAllocated // 8}")
            for k, header in zip(numbers, own, strict=True)
        ]
        with open_pixels(own[0]) as pixels:
            decoders.add(read_frames(pixels, own, words))
        for k, header, target in zip(numbers, own, words, strict=True):
            values, is_dirty = mask_bits(
                target, bits_stored=header.BitsStored, is_signed=header.PixelRepresentation == 1
            )
            has_high_bits |= is_dirty
            if _is_inverted(header, part):
                values = invert(values, bits_stored=header.BitsStored)
            if not np.may_share_memory(values, stack):
                stack[k] = values
    return stack, ", ".join(sorted(decoders - {""})), has_high_bits


def _laid_out(stack: Voxels) -> Voxels:
    """`[S, Y, X]` as C-contiguous `[1, X, Y, S]`.

    One row of every slice at a time, through a buffer whose lines do not share cache sets: more than ten times as
    fast as copying the transposed array at once.
    """
    slices, rows, columns = stack.shape
    result = np.empty((columns, rows, slices), dtype=stack.dtype)
    buffer = np.empty((slices, columns + _LINE_BYTES // stack.itemsize), dtype=stack.dtype)[:, :columns]
    for row in range(rows):
        buffer[...] = stack[:, row]
        result[:, row] = buffer.T
    return result[np.newaxis]


def _check_kind(header: Header, *, is_projection: bool) -> None:
    allowed = ("MONOCHROME2",) if header.Modality == "CT" and not is_projection else ("MONOCHROME1", "MONOCHROME2")
    if header.PhotometricInterpretation not in allowed or header.SamplesPerPixel != 1:
        raise InputError("E_PHOTOMETRIC", "the picture is not plain grey values")


def _is_inverted(header: Header, part: SeriesPart) -> bool:
    """Whether a projection is stored inverted. In a measured quantity, what is shown bright changes no value."""
    return part.spacing_kind is not None and is_inverted(header)


def _padding_of(header: Header, stored: Voxels, part: SeriesPart) -> NDArray[np.bool_] | None:
    """Where a projection says that no X-ray was, `[1, Y, X]`, stored; None for slices and without padding.

    Args:
        header: Header of the picture.
        stored: Masked, and inverted where the picture is: compared before `rescale` overwrites them.
        part: What it belongs to.
    """
    if part.spacing_kind is None or header.PixelPaddingValue is None:
        return None
    ends = _padding_range(header)
    if _is_inverted(header, part):
        stored = invert(stored, bits_stored=header.BitsStored)
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def _padding_range(header: Header) -> tuple[int, int]:
    """Both ends, inclusive (PS3.3 C.7.5.1.1.2)."""
    value, limit = header.PixelPaddingValue or 0, header.PixelPaddingRangeLimit
    return value, value if limit is None else limit


def _scales(headers: Sequence[Header]) -> list[tuple[float, float]]:
    """Slope and intercept of each slice.

    An image none of whose slices says any is not scaled. Where some say one that changes values, the others have lost
    theirs: left as they are they would stand beside them in another unit.
    """
    scales = [_scale(header) for header in headers]
    has_lost = any(None in (header.RescaleSlope, header.RescaleIntercept) for header in headers)
    if has_lost and any(scale != (1.0, 0.0) for scale in scales):
        said = {(header.RescaleSlope is None, header.RescaleIntercept is None) for header in headers}
        if len(said) > 1:
            raise InputError("E_VALUE_INVALID", "element (0028,1052) or (0028,1053) is missing in some of the slices")
    return scales


def _scale(header: Header) -> tuple[float, float]:
    """Slope and intercept of one slice; for Philips MR those of its floating-point values, (P RS + RI) / (RS SS)."""
    if header.Modality in ("CT", "PT") and None in (header.RescaleSlope, header.RescaleIntercept):
        raise InputError("E_VALUE_INVALID", "element (0028,1052) or (0028,1053) is missing: values have no unit")
    slope = 1.0 if header.RescaleSlope is None else header.RescaleSlope
    intercept = header.RescaleIntercept or 0.0
    if not 1e-30 < abs(slope) <= 1e6 or abs(intercept) > 1e9:
        raise InputError("E_SCALE", "the rescale slope is zero, or slope or intercept are enormous")
    if header.Modality == "MR" and header.philips_scale_slope is not None:
        return 1 / header.philips_scale_slope, intercept / (slope * header.philips_scale_slope)
    return slope, intercept


def _units(part: SeriesPart) -> tuple[str, float, str]:
    """Units of the finished volume, what scaled values are multiplied by, and why there are no uptake values."""
    first = part.headers[0]
    if first.Modality != "PT":
        return ("HU" if first.Modality == "CT" else "a.u."), 1.0, ""
    suv = suv_factor(part.headers)
    doubt = f"missing, unusable or contradictory: {', '.join(suv.missing)}" if suv.factor is None else ""
    if suv.uses_acquisition_time and "#p" in part.identity.series:
        doubt = "the earliest acquisition of one time point is not that of the series"
    if suv.factor is not None and not doubt:
        return "SUVbw", suv.factor, ""
    return ("Bq/ml" if first.Units == "BQML" else "a.u."), 1.0, doubt


def _is_plausible(headers: Sequence[Header], stored: Voxels, scales: Sequence[tuple[float, float]]) -> bool:
    """Whether the 1st and 99th percentile of what is not padding lie within what Hounsfield units allow."""
    if any(header.RescaleType.upper() not in ("", "HU") for header in headers):
        return False
    share = max(1, stored.size // _MAX_SAMPLES)
    samples = []
    for header, values, (slope, intercept) in zip(headers, stored, scales, strict=True):
        thinned = values.reshape(-1)[::share]
        if header.PixelPaddingValue is not None:
            ends = _padding_range(header)
            thinned = thinned[(thinned < min(ends)) | (thinned > max(ends))]
        samples.append(thinned.astype(np.float64) * slope + intercept)
    everything = np.concatenate(samples)
    if everything.size == 0:
        return False
    low, high = np.percentile(everything, [1, 99])
    return bool(PLAUSIBLE_HU[0] <= low and high <= PLAUSIBLE_HU[1])
