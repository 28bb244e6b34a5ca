"""Pixels of a series: exact length, masked to the bits stored, scaled slice by slice, stacked to `[1, X, Y, Z]`."""

import hashlib
import importlib.metadata
import io
import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from medssl_cli.errors import InputError
from medssl_cli.formats import LoadedImage
from medssl_cli.formats.dicom.codestream import check_codestream
from medssl_cli.formats.dicom.headers import Header, parse_failure, read_bytes
from medssl_cli.formats.dicom.series import SeriesPart
from medssl_cli.imaging.volume import Volume

MAX_VOLUME_BYTES: Final = 8 * 1024**3
PLAUSIBLE_HU: Final = (-1100.0, 4000.0)

_NATIVE: Final = {str(ImplicitVRLittleEndian): "<", str(ExplicitVRLittleEndian): "<", str(ExplicitVRBigEndian): ">"}
_ALWAYS_LOSSY: Final = frozenset({str(JPEGBaseline8Bit), str(JPEGExtended12Bit)})
_MAX_SAMPLES: Final = 200_000
_INTEGERS: Final = (np.uint8, np.int16, np.uint16, np.int32, np.uint32)

Voxels = NDArray[np.generic]


def needs_decoder(part: SeriesPart) -> bool:
    """Whether any pixels are compressed: decoders are foreign code and belong into a child process."""
    return any(header.TransferSyntaxUID not in _NATIVE for header in part.headers)


def read_series(part: SeriesPart) -> LoadedImage:
    """Decode, scale and stack the slices of one part.

    Args:
        part: From `group_headers`.

    Returns:
        Voxels `[1, X, Y, Z]` (column, row, slice) with the part's affine; the smallest integer dtype that holds every
        scaled value exactly, otherwise float32; CT in Hounsfield units.

    Raises:
        InputError: `E_PHOTOMETRIC`, `E_TOO_BIG`, `E_CHANGED_DURING_READ`, `E_TRUNCATED`, `E_PIXEL_LENGTH`,
            `E_CODESTREAM_MISMATCH`, `E_PIXEL_DECODE`, `E_VALUE_INVALID`, `E_SCALE` or `E_NONFINITE_VOXELS`.
    """
    first = part.headers[0]
    for header in part.headers:
        _check_kind(header)
    if first.Rows * first.Columns * len(part.headers) * 4 > MAX_VOLUME_BYTES:
        raise InputError("E_TOO_BIG", f"the volume is larger than {MAX_VOLUME_BYTES // 1024**3} GiB")
    found = list(part.warnings)
    slices: list[Voxels] = []
    decoders: set[str] = set()
    for header in part.headers:
        stored, decoder = _stored(header)
        masked, has_high_bits = mask_bits(
            stored, bits_stored=header.BitsStored, is_signed=header.PixelRepresentation == 1
        )
        if has_high_bits:
            found.append("W_HIGH_BITS")
        slices.append(masked)
        decoders.add(decoder)
    scales = [_scale(header) for header in part.headers]
    stack = rescale(slices, scales)
    is_ct = first.Modality == "CT"
    if is_ct and not _is_plausible(part.headers, slices, scales):
        found.append("W_HU_IMPLAUSIBLE")
    if any(_is_lossy(header) for header in part.headers):
        found.append("W_LOSSY")
    if stack.size and stack.min() == stack.max():
        found.append("W_CONSTANT_IMAGE")
    volume = Volume(
        voxels=stack.transpose(2, 1, 0)[np.newaxis],
        affine=part.affine,
        modality=first.Modality,
        units="HU" if is_ct else "a.u.",
    )
    return LoadedImage(
        volume=volume,
        identity=part.identity,
        source_kind="dicom",
        num_files=len(part.headers),
        decoder=", ".join(sorted(decoders - {""})),
        warnings=tuple(dict.fromkeys(found)),
        max_corner_displacement_mm=part.mcd_mm,
    )


def mask_bits(stored: Voxels, *, bits_stored: int, is_signed: bool) -> tuple[Voxels, bool]:
    """Keep the bits that are stored; the rest of each word may hold overlays or anything else (PS3.5 8.1.1).

    Args:
        stored: Integers of BitsAllocated bits, any shape.
        bits_stored: Meaningful low bits.
        is_signed: Two's complement within those bits.

    Returns:
        Values of the same width, signed or not; and whether bits above were set other than by sign extension.
    """
    width = stored.dtype.itemsize * 8
    kind = "i" if is_signed else "u"
    if bits_stored == width:
        return stored.view(f"{kind}{width // 8}"), False
    shift = width - bits_stored
    words = stored.view(f"u{width // 8}")
    values = (words << shift).view(f"{kind}{width // 8}") >> shift
    return values, bool((values.view(words.dtype) != words).any())


def rescale(slices: Sequence[Voxels], scales: Sequence[tuple[float, float]]) -> Voxels:
    """Apply each slice's own slope and intercept, exactly where integers can hold the result.

    Args:
        slices: S arrays `[Y, X]` of stored integers.
        scales: (slope, intercept) of each.

    Returns:
        `[S, Y, X]`, smallest of the integer dtypes that holds all values exactly, else float32.

    Raises:
        InputError: `E_NONFINITE_VOXELS` if float32 cannot hold a value.
    """
    low, high, is_whole = np.inf, -np.inf, True
    for values, (slope, intercept) in zip(slices, scales, strict=True):
        ends = np.array([values.min(), values.max()], dtype=np.float64) * slope + intercept
        low, high = min(low, ends.min()), max(high, ends.max())
        if is_whole and not (slope.is_integer() and intercept.is_integer()):
            scaled = values.astype(np.float64) * slope + intercept
            is_whole = bool((scaled == np.rint(scaled)).all())
    dtype = _dtype(low, high, is_whole)
    if not np.isfinite(np.array([low, high]).astype(np.float32)).all():
        raise InputError("E_NONFINITE_VOXELS", "scaled values exceed the range of 32-bit floats")
    stack = np.empty((len(slices), *slices[0].shape), dtype=dtype)
    for number, (values, (slope, intercept)) in enumerate(zip(slices, scales, strict=True)):
        stack[number] = values.astype(np.float64) * slope + intercept
    return stack


def _dtype(low: float, high: float, is_whole: bool) -> type[Any]:
    if is_whole:
        for dtype in _INTEGERS:
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return dtype
    return np.float32


def _check_kind(header: Header) -> None:
    allowed = ("MONOCHROME2",) if header.Modality == "CT" else ("MONOCHROME1", "MONOCHROME2")
    if header.PhotometricInterpretation not in allowed or header.SamplesPerPixel != 1:
        raise InputError("E_PHOTOMETRIC", f"a {header.Modality} image that is not plain grey values")


def _scale(header: Header) -> tuple[float, float]:
    """Slope and intercept of one slice; for Philips MR those of its floating-point values, (P RS + RI) / (RS SS)."""
    if header.Modality == "CT" and None in (header.RescaleSlope, header.RescaleIntercept):
        raise InputError("E_VALUE_INVALID", "element (0028,1052) or (0028,1053) is missing: no Hounsfield units")
    slope = 1.0 if header.RescaleSlope is None else header.RescaleSlope
    intercept = header.RescaleIntercept or 0.0
    if not 1e-30 < abs(slope) <= 1e6 or abs(intercept) > 1e9:
        raise InputError("E_SCALE", "the rescale slope is zero, or slope or intercept are enormous")
    if header.Modality == "MR" and header.philips_scale_slope is not None:
        return 1 / header.philips_scale_slope, intercept / (slope * header.philips_scale_slope)
    return slope, intercept


def _stored(header: Header) -> tuple[Voxels, str]:
    """Stored values `[Y, X]` in native byte order, and the decoder's name ("" where nothing was compressed)."""
    data = read_bytes(header.source)
    if hashlib.sha256(data).hexdigest() != header.digest:
        raise InputError("E_CHANGED_DURING_READ", "a file changed between two reads", hint="run the command again")
    order = _NATIVE.get(header.TransferSyntaxUID)
    if order is None:
        return _decompressed(header, data)
    width = header.BitsAllocated // 8
    expected = header.Rows * header.Columns * width
    if header.pixel_length is None:
        raise InputError("E_PIXEL_LENGTH", "uncompressed pixel data have no length")
    if header.pixel_offset + min(header.pixel_length, expected) > len(data):
        raise InputError("E_TRUNCATED", "the file ends within its pixel data", hint="retrieve the file again")
    if header.pixel_length not in (expected, expected + expected % 2):
        raise InputError("E_PIXEL_LENGTH", f"{header.pixel_length} bytes of pixel data, {expected} expected")
    words = np.frombuffer(data, f"{order}u{width}", header.Rows * header.Columns, header.pixel_offset)
    return words.astype(f"=u{width}", copy=False).reshape(header.Rows, header.Columns), ""


def _decompressed(header: Header, data: bytes) -> tuple[Voxels, str]:
    plugin = "pydicom" if header.TransferSyntaxUID == RLELossless else "pylibjpeg"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data))
            frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
            check_codestream(header, frames)
            decoder = get_decoder(UID(header.TransferSyntaxUID))
            pixels, _ = decoder.as_array(dataset, raw=True, decoding_plugin=plugin)
    except InputError:
        raise
    except BaseException as error:  # noqa: BLE001 - decoders written in Rust panic with a BaseException
        failure = parse_failure(error)
        raise InputError("E_PIXEL_DECODE", f"the pixel data cannot be decoded ({type(error).__name__})") from failure
    if pixels.shape != (header.Rows, header.Columns) or pixels.dtype.itemsize * 8 != header.BitsAllocated:
        raise InputError("E_CODESTREAM_MISMATCH", "the decoded picture has another size than its header says")
    return np.ascontiguousarray(pixels), _decoder_name(plugin, header.TransferSyntaxUID)


def _decoder_name(plugin: str, syntax: str) -> str:
    package = plugin
    if plugin == "pylibjpeg":
        is_j2k = syntax.startswith(("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.4.20"))
        package = "pylibjpeg-openjpeg" if is_j2k else "pylibjpeg-libjpeg"
    return f"{package}/{importlib.metadata.version(package)}"


def _is_lossy(header: Header) -> bool:
    return header.LossyImageCompression == "01" or header.TransferSyntaxUID in _ALWAYS_LOSSY


def _is_plausible(headers: Sequence[Header], slices: Sequence[Voxels], scales: Sequence[tuple[float, float]]) -> bool:
    """Whether the 1st and 99th percentile of what is not padding lie within what Hounsfield units allow."""
    if any(header.RescaleType.upper() not in ("", "HU") for header in headers):
        return False
    share = max(1, sum(values.size for values in slices) // _MAX_SAMPLES)
    samples = []
    for header, values, (slope, intercept) in zip(headers, slices, scales, strict=True):
        thinned = values.reshape(-1)[::share]
        if header.PixelPaddingValue is not None:
            thinned = thinned[thinned != header.PixelPaddingValue]
        samples.append(thinned.astype(np.float64) * slope + intercept)
    everything = np.concatenate(samples)
    if everything.size == 0:
        return False
    low, high = np.percentile(everything, [1, 99])
    return bool(PLAUSIBLE_HU[0] <= low and high <= PLAUSIBLE_HU[1])
