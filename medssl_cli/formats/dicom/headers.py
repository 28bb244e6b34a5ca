"""Read the few header elements that grouping, the geometry gate and decoding need, strictly, from untrusted files.

Numbers are parsed from the raw bytes by rules of our own: pydicom accepts "NaN" as a decimal string. Messages name
elements by number and never quote a value.
"""

import hashlib
import io
import logging
import math
import re
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, UID_dictionary

from medssl_cli.errors import InputError
from medssl_cli.formats.acquisition import Acquisition
from medssl_cli.formats.source import Source

MAX_FILE_BYTES: Final = 2 * 1024**3
MAX_SIDE: Final = 32_767
MAX_COORDINATE_MM: Final = 1e5

CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.4"
PET_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.128"
MODALITY_OF: Final = {CT_IMAGE: "CT", MR_IMAGE: "MR", PET_IMAGE: "PT"}

_ENHANCED: Final = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2.1", "2.2", "4.1", "4.3", "4.4", "128.1", "130")
)
_SECONDARY_CAPTURE: Final = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.7(\.[1-4])?")
_SEGMENTATION: Final = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.66(\.\d+)*")
_DECIMAL: Final = re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_INTEGER: Final = re.compile(rb"[+-]?\d{1,12}")
_MEDIA_SOP_CLASS: Final = 0x00020002
_TRANSFER_SYNTAX: Final = 0x00020010
_PHILIPS_CREATOR: Final = 0x20050010
_PHILIPS_SCALE_SLOPE: Final = 0x2005100E
_MODALITY_LUT: Final = tag_for_keyword("ModalityLUTSequence")
_PIXEL_TAGS: Final = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
_UNDEFINED: Final = 0xFFFFFFFF
_DEFLATED: Final = DeflatedExplicitVRLittleEndian.encode()
_META_BYTES: Final = 65_536

# Its messages quote header values, which must not reach any log.
logging.getLogger("pydicom").propagate = False

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Header:
    """What one file says about its picture; attributes carry DICOM's keywords.

    Args:
        source: The file.
        digest: SHA-256 of all its bytes, hexadecimal.
        pixel_offset: Byte of the file at which the value of PixelData begins.
        pixel_length: Bytes of that value; None where it is encapsulated (compressed).
        philips_scale_slope: Scale Slope (2005,100E) of Philips MR, the only private element that is read: without it
            intensities of one scan cannot be compared with another's (Chenevert et al., Transl Oncol 2014).
        frame: Which frame of a multi-frame object this is; Rows and Columns are those of the frame.
        tile: Row and column of the first pixel of this slice in a picture of several slices (mosaic); Rows and Columns
            are then those of the slice.
        picture_shape: Rows and columns of that picture.
        StackID: Of a frame (PS3.3 C.7.6.16.2.2); tells stacks of one object apart.
        philips_suv_factor: SUV Scale Factor (7053,1000) of Philips PET.
        has_preamble: The 128 bytes before the signature are not all zero.
        acquisition: What may be stored about how the picture was made.
    """

    source: Source
    digest: str
    pixel_offset: int
    pixel_length: int | None
    TransferSyntaxUID: str
    SOPClassUID: str
    SOPInstanceUID: str
    StudyInstanceUID: str
    SeriesInstanceUID: str
    FrameOfReferenceUID: str
    PatientID: str
    IssuerOfPatientID: str
    Modality: str
    ImageType: tuple[str, ...]
    ImagePositionPatient: Triple | None
    ImageOrientationPatient: tuple[float, float, float, float, float, float] | None
    PixelSpacing: tuple[float, float] | None
    Rows: int
    Columns: int
    BitsAllocated: int
    BitsStored: int
    HighBit: int
    PixelRepresentation: int
    SamplesPerPixel: int
    PhotometricInterpretation: str
    RescaleSlope: float | None
    RescaleIntercept: float | None
    RescaleType: str
    NumberOfFrames: int
    InstanceNumber: int | None
    AcquisitionNumber: int | None
    TemporalPositionIdentifier: int | None
    EchoNumbers: str
    EchoTime: float | None
    DiffusionBValue: float | None
    TriggerTime: float | None
    ConvolutionKernel: tuple[str, ...]
    AcquisitionTime: str
    LossyImageCompression: str
    BurnedInAnnotation: str
    PixelPaddingValue: int | None
    philips_scale_slope: float | None = None
    frame: int = 0
    tile: tuple[int, int] | None = None
    picture_shape: tuple[int, int] | None = None
    StackID: str = ""
    ImagerPixelSpacing: tuple[float, float] | None = None
    PixelSpacingCalibrationType: str = ""
    EstimatedRadiographicMagnificationFactor: float | None = None
    PixelPaddingRangeLimit: int | None = None
    Units: str = ""
    DecayCorrection: str = ""
    CorrectedImage: tuple[str, ...] = ()
    SeriesDate: str = ""
    SeriesTime: str = ""
    AcquisitionDate: str = ""
    PatientWeight: float | None = None
    RadionuclideTotalDose: float | None = None
    RadionuclideHalfLife: float | None = None
    RadiopharmaceuticalStartTime: str = ""
    RadiopharmaceuticalStartDateTime: str = ""
    philips_suv_factor: float | None = None
    has_preamble: bool = False
    acquisition: Acquisition = field(default_factory=Acquisition)


_KEYWORDS: Final = tuple(
    name for name in Header.__dataclass_fields__ if name[0].isupper() and name != "TransferSyntaxUID"
)
_TAGS: Final = {name: int(tag_for_keyword(name) or 0) for name in _KEYWORDS}


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these bytes (132 or more) carries the DICOM signature."""
    return head[128:132] == b"DICM"


def read_header(path: Path) -> Header:
    """Read one file's header.

    Args:
        path: A regular file with the DICOM signature.

    Returns:
        The header of a single-frame CT, MR or PET image whose needed elements are well formed.

    Raises:
        InputError: With an `S_` code if the object is not for us (`S_NON_IMAGE`, `S_SECONDARY_CAPTURE`,
            `S_UNSUPPORTED_MODALITY`), otherwise `E_DICOM_PARSE`, `E_TRUNCATED`, `E_VALUE_INVALID`, `E_TOO_BIG`,
            `E_ENHANCED_UNSUPPORTED`, `E_DEFLATED`, `E_PERMISSION` or `E_IO`.
    """
    data = read_bytes(path)
    # pydicom would inflate without a bound before it returns: a small file can ask for gigabytes.
    if _DEFLATED in data[:_META_BYTES]:
        raise InputError("E_DEFLATED", "the deflated transfer syntax is not read", hint="store it uncompressed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _parse(path, data)
    except InputError:
        raise
    except BaseException as error:  # noqa: BLE001 - hostile bytes reach RecursionError, MemoryError, struct.error
        failure = parse_failure(error)
    raise failure


def read_bytes(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        InputError: `E_PERMISSION`, `E_IO` or `E_TOO_BIG`.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError("E_TOO_BIG", f"the file is larger than {MAX_FILE_BYTES // 1024**3} GiB")
        return path.read_bytes()
    except PermissionError as error:
        raise InputError("E_PERMISSION", "the file cannot be read") from error
    except OSError as error:
        raise InputError("E_IO", f"the file cannot be read ({type(error).__name__})") from error


def parse_failure(error: BaseException) -> InputError:
    """`E_DICOM_PARSE` that names the class of an error only: messages of the parser quote values of the header."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    return InputError("E_DICOM_PARSE", f"the file cannot be parsed ({type(error).__name__})")


def _parse(path: Path, data: bytes) -> Header:
    stream = io.BytesIO(data)
    tags = [*_TAGS.values(), _MODALITY_LUT, _PHILIPS_CREATOR, _PHILIPS_SCALE_SLOPE]
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags)
    pixels = _pixel_element(data, stream.tell(), dataset)
    sop_class = _sop_class(dataset)
    _refuse_other_objects(sop_class, dataset, pixels is not None)
    if pixels is None:
        raise InputError("E_TRUNCATED", "the file ends before its pixel data begin", hint="retrieve the file again")
    return _header(path, data, dataset, sop_class, pixels)


def _sop_class(dataset: Dataset) -> str:
    media = _raw_tag(dataset.file_meta, _MEDIA_SOP_CLASS).decode("latin-1").strip(" \0")
    sop_class = _text(dataset, "SOPClassUID") or media
    if not sop_class:
        raise InputError("E_DICOM_PARSE", "element (0008,0016) is missing: what kind of object is this?")
    return sop_class


def _pixel_element(data: bytes, start: int, dataset: Dataset) -> tuple[int, int | None] | None:
    """Offset and length (None: encapsulated) of the value of PixelData that begins at an offset; None without one."""
    if data[start : start + 4] not in _PIXEL_TAGS:
        return None
    is_implicit, is_little = dataset.original_encoding
    order = "<" if is_little else ">"
    value = start + (8 if is_implicit else 12)
    if len(data) < value:
        return None
    (length,) = struct.unpack(f"{order}I", data[value - 4 : value])
    return value, None if length == _UNDEFINED else length


def _refuse_other_objects(sop_class: str, dataset: Dataset, has_pixels: bool) -> None:
    name = UID_dictionary.get(sop_class, ("unknown",))[0]
    if sop_class in _ENHANCED:
        raise InputError(
            "E_ENHANCED_UNSUPPORTED",
            f"an enhanced multi-frame object ({name})",
            hint="export the series as single-frame images",
        )
    if _SECONDARY_CAPTURE.fullmatch(sop_class):
        raise InputError("S_SECONDARY_CAPTURE", f"a secondary capture ({name})")
    if sop_class in MODALITY_OF:
        return
    is_image = has_pixels or "Rows" in dataset
    if sop_class not in UID_dictionary and not is_image:
        raise InputError("E_DICOM_PARSE", "an object of unknown kind without pixel data")
    if _SEGMENTATION.fullmatch(sop_class) or not (is_image or "Image Storage" in name):
        raise InputError("S_NON_IMAGE", f"not an image ({name})")
    raise InputError("S_UNSUPPORTED_MODALITY", f"an image of a kind that is not read yet ({name})")


def _header(path: Path, data: bytes, dataset: Dataset, sop_class: str, pixels: tuple[int, int | None]) -> Header:
    modality = _text(dataset, "Modality")
    if modality != MODALITY_OF[sop_class]:
        raise _invalid("Modality", "contradicts the kind of object")
    if _MODALITY_LUT in dataset:
        raise InputError("E_VALUE_INVALID", "element (0028,3000): a modality lookup table instead of a linear scale")
    frames = _integer(dataset, "NumberOfFrames")
    if frames is not None and frames != 1:
        raise InputError("E_ENHANCED_UNSUPPORTED", f"a file of {frames} frames", hint="export single-frame images")
    position, orientation, spacing = (
        _decimals(dataset, name, count)
        for name, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    if max(map(abs, (*(position or ()), *(orientation or ()), *(spacing or ()))), default=0) > MAX_COORDINATE_MM:
        raise InputError("E_VALUE_INVALID", f"a position or spacing of more than {MAX_COORDINATE_MM:g} mm")
    values: dict[str, Any] = {
        "SOPClassUID": sop_class,
        "NumberOfFrames": 1,
        "ImagePositionPatient": position,
        "ImageOrientationPatient": orientation,
        "PixelSpacing": spacing,
        "PixelPaddingValue": _padding(dataset),
        "philips_scale_slope": _philips_scale_slope(dataset),
    }
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PhotometricInterpretation"):
        values[name] = _required(name, _text(dataset, name) or None)
    for name in ("FrameOfReferenceUID", "PatientID", "IssuerOfPatientID", "Modality", "RescaleType", "EchoNumbers"):
        values[name] = _text(dataset, name)
    for name in ("AcquisitionTime", "LossyImageCompression", "BurnedInAnnotation"):
        values[name] = _text(dataset, name)
    for name in ("ImageType", "ConvolutionKernel"):
        values[name] = tuple(part.strip().upper() for part in _text(dataset, name).split("\\"))
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"):
        values[name] = _required(name, _short(dataset, name))
    for name in ("InstanceNumber", "AcquisitionNumber", "TemporalPositionIdentifier"):
        values[name] = _integer(dataset, name)
    for name in ("RescaleSlope", "RescaleIntercept", "EchoTime", "TriggerTime"):
        values[name] = (_decimals(dataset, name, 1) or (None,))[0]
    values["DiffusionBValue"] = _double(dataset, "DiffusionBValue")
    _check_image(values)
    syntax = _raw_tag(dataset.file_meta, _TRANSFER_SYNTAX).decode("latin-1").strip(" \0")
    if not syntax:
        raise InputError("E_DICOM_PARSE", "element (0002,0010) is missing: how are the pixels encoded?")
    digest = hashlib.sha256(data).hexdigest()
    return Header(
        source=path, digest=digest, pixel_offset=pixels[0], pixel_length=pixels[1], TransferSyntaxUID=syntax, **values
    )


def _check_image(values: dict[str, Any]) -> None:
    for name in ("Rows", "Columns"):
        if not 1 <= values[name] <= MAX_SIDE:
            raise _invalid(name, "is not a possible image size")
    if values["BitsAllocated"] not in (8, 16, 32):
        raise _invalid("BitsAllocated", "is not 8, 16 or 32")
    if not 1 <= values["BitsStored"] <= values["BitsAllocated"]:
        raise _invalid("BitsStored", "does not fit the bits allocated")
    if values["HighBit"] != values["BitsStored"] - 1:
        raise _invalid("HighBit", "is not one less than the bits stored")
    if values["PixelRepresentation"] not in (0, 1):
        raise _invalid("PixelRepresentation", "is neither 0 nor 1")


def _invalid(name: str, why: str) -> InputError:
    tag = _TAGS[name]
    return InputError("E_VALUE_INVALID", f"element ({tag >> 16:04x},{tag & 0xFFFF:04x}) {why}")


def _required(name: str, value: Any) -> Any:
    if value is None:
        raise _invalid(name, "is missing or empty")
    return value


def _raw(dataset: Dataset, name: str) -> bytes:
    return _raw_tag(dataset, _TAGS[name])


def _raw_tag(dataset: Dataset, tag: int) -> bytes:
    if tag not in dataset:
        return b""
    value = dataset.get_item(tag).value
    if value is None:
        return b""
    return value if isinstance(value, bytes) else str(value).encode("ascii", "replace")


def _text(dataset: Dataset, name: str) -> str:
    """One string; Latin-1 gives every byte a character, so unequal bytes stay unequal whatever the character set."""
    return _raw(dataset, name).decode("latin-1").strip(" \0")


def _strings(dataset: Dataset, name: str, pattern: re.Pattern[bytes]) -> list[bytes]:
    raw = _raw(dataset, name).strip(b" \0")
    parts = [part.strip(b" \0") for part in raw.split(b"\\")] if raw else []
    if any(not pattern.fullmatch(part) for part in parts):
        raise _invalid(name, "is not a plain number")
    return parts


def _decimals(dataset: Dataset, name: str, count: int) -> tuple[float, ...] | None:
    numbers = tuple(float(part) for part in _strings(dataset, name, _DECIMAL))
    if not numbers:
        return None
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise _invalid(name, f"is not {count} finite numbers")
    return numbers


def _integer(dataset: Dataset, name: str) -> int | None:
    numbers = _strings(dataset, name, _INTEGER)
    if len(numbers) > 1:
        raise _invalid(name, "has several values")
    return int(numbers[0]) if numbers else None


def _short(dataset: Dataset, name: str) -> int | None:
    raw = _raw(dataset, name)
    if not raw:
        return None
    if len(raw) != 2:
        raise _invalid(name, "is not one 16-bit number")
    return int.from_bytes(raw, "little" if dataset.original_encoding[1] else "big")


def _padding(dataset: Dataset) -> int | None:
    """PixelPaddingValue in the stored sign; None where it is malformed: it only guards a plausibility warning."""
    raw = _raw(dataset, "PixelPaddingValue")
    if len(raw) != 2:
        return None
    is_signed = _short(dataset, "PixelRepresentation") == 1
    return int.from_bytes(raw, "little" if dataset.original_encoding[1] else "big", signed=is_signed)


def _double(dataset: Dataset, name: str) -> float | None:
    raw = _raw(dataset, name)
    if not raw:
        return None
    if len(raw) != 8:
        raise _invalid(name, "is not one 64-bit number")
    (number,) = struct.unpack("<d" if dataset.original_encoding[1] else ">d", raw)
    if not math.isfinite(number):
        raise _invalid(name, "is not finite")
    return float(number)


def _philips_scale_slope(dataset: Dataset) -> float | None:
    """A finite, positive Scale Slope in the vendor's own block; None elsewhere."""
    raw = _raw_tag(dataset, _PHILIPS_SCALE_SLOPE)
    if not _raw_tag(dataset, _PHILIPS_CREATOR).startswith(b"Philips MR Imaging DD 001") or len(raw) != 4:
        return None
    (slope,) = struct.unpack("<f" if dataset.original_encoding[1] else ">f", raw)
    return float(slope) if math.isfinite(slope) and slope > 0 else None
