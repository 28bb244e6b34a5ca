"""Read the few header elements that grouping, the geometry gate and decoding need, strictly, from untrusted files.

One header describes one slice: a file of many frames or a mosaic gives many. Messages name elements by number and
never quote a value.
"""

import hashlib
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.acquisition import Acquisition
from medssl_cli.formats.dicom.elements import Elements, walk
from medssl_cli.formats.dicom.enhanced import frames
from medssl_cli.formats.dicom.fields import slice_fields
from medssl_cli.formats.dicom.mosaic import unfold
from medssl_cli.formats.dicom.objects import check_kind, refuse_non_image, sop_class_in
from medssl_cli.formats.dicom.tags import CT_IMAGE as CT_IMAGE
from medssl_cli.formats.dicom.tags import (
    ENHANCED,
    MEDIA_SOP_INSTANCE,
    MODALITIES,
    MODALITY_LUT,
    MR_IMAGE,
    RADIOGRAPHS,
    RADIOPHARMACEUTICAL,
)
from medssl_cli.formats.dicom.values import Values, invalid, required
from medssl_cli.formats.dicom.window import DEFLATED, Window, inflate, open_window
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Source, read_bytes

MAX_SIDE: Final = 32_767

_IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
_HIDDEN_DEFLATE_BYTES: Final = 64 * 2**20

# Its messages quote header values, which must not reach any log.
logging.getLogger("pydicom").propagate = False

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says about one slice; attributes carry DICOM's keywords.

    Args:
        source: The file.
        digest: SHA-256 of its bytes before `pixel_offset`, hexadecimal; those of a deflated file after inflating.
        pixel_offset: Byte at which the value of PixelData begins: of the file, or of `dataset_bytes` if it is deflated.
        pixel_length: Bytes of that value, of all frames together; None where it is encapsulated (compressed).
        NumberOfFrames: Frames of the whole file.
        philips_scale_slope: Scale Slope (2005,100E) of Philips MR: without it intensities of one scan cannot be
            compared with another's (Chenevert et al., Transl Oncol 2014).
        size_bytes: Size of the file.
        mtime_ns: When the file was last changed; 0 for a member of an archive.
        data_set_offset: Byte at which the data set begins, behind the meta information.
        frame: Which frame of a multi-frame object this is; Rows and Columns are those of the frame.
        tile: Row and column of the first pixel of this slice in a picture of several slices (mosaic); Rows and Columns
            are then those of the slice.
        picture_shape: Rows and columns of that picture.
        StackID: Stack of a frame (PS3.3 C.7.6.16.2.2); tells stacks of one object apart.
        StudyInstanceUID: Where a radiograph lacks one, as data sets are published that keep no more of a header than
            the picture needs, a stand-in made of the digest; so it is with SeriesInstanceUID.
        SOPInstanceUID: Where the data set lacks one, that of the meta information, else a stand-in made of the digest.
        DiffusionGradientOrientation: Unit vector of diffusion weighting, public or the vendor's own.
        DimensionIndexValues: Dimension index of a frame (PS3.3 C.7.6.17).
        FrameReferenceTime: Reference time of a PET slice, ms.
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
    DiffusionGradientOrientation: tuple[float, ...] | None = None
    DimensionIndexValues: tuple[int, ...] = ()
    NominalPercentageOfCardiacPhase: float | None = None
    FrameReferenceTime: float | None = None
    PresentationLUTShape: str = ""
    ImagerPixelSpacing: tuple[float, float] | None = None
    PixelSpacingCalibrationType: str = ""
    EstimatedRadiographicMagnificationFactor: float | None = None
    PixelPaddingRangeLimit: int | None = None
    Units: str = ""
    SUVType: str = ""
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
    size_bytes: int = 0
    mtime_ns: int = 0
    data_set_offset: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a plain tuple; unpickling shares equal texts again, which matters for 100,000 headers."""
        return _rebuild, (tuple(getattr(self, name) for name in _FIELDS),)


_FIELDS: Final = tuple(Header.__dataclass_fields__)
_REPEATED: Final = frozenset(
    (
        "ImageType", "ConvolutionKernel", "CorrectedImage", "ImageOrientationPatient", "PixelSpacing", "acquisition",
        "DiffusionGradientOrientation",
    )
)  # fmt: skip


def _rebuild(values: tuple[Any, ...]) -> Header:
    return Header(*map(_shared, _FIELDS, values))


def _shared(name: str, value: Any) -> Any:
    if type(value) is str:
        return sys.intern(value)
    return _first_equal(name, value) if name in _REPEATED else value


@lru_cache(maxsize=4096)
def _first_equal(name: str, value: Any) -> Any:
    return value


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these bytes (132 or more) carries the DICOM signature."""
    return head[128:132] == b"DICM"


def read_headers(source: Source, policy: Policy = STRICT) -> tuple[Header, ...]:
    """Read one file's headers, touching the file only up to its pixel data.

    Args:
        source: A file with the DICOM signature, or without it if the policy allows.
        policy: `allow_headerless`, `keep_demographics` and `burned_in` (secondary captures of X-rays) matter here.

    Returns:
        One header per slice of a CT, MR or PET image, single or multi-frame; one of a single projection or ultrasound
        picture.

    Raises:
        InputError: Refusal with an `S_` code if the object is not for us (`S_NON_IMAGE`, `S_SECONDARY_CAPTURE`,
            `S_UNSUPPORTED_MODALITY`, `S_NOT_AN_IMAGE`), otherwise `E_DICOM_PARSE`, `E_TRUNCATED`, `E_DICOM_LENGTH`,
            `E_DICOM_DEPTH`, `E_DICOM_TOO_BIG`, `E_DEFLATE_BOMB`, `E_NO_SERIES_UID`, `E_VALUE_INVALID`, `E_TOO_BIG`,
            `E_ENHANCED_UNSUPPORTED`, `E_MOSAIC_UNSUPPORTED`, `E_NO_PATIENT_GEOMETRY`, `E_GEOM_MISSING`,
            `E_SPACING_INVALID`, `E_PERMISSION` or `E_IO`.
    """
    try:
        with open_window(source) as window:
            elements = walk(window, allow_headerless=policy.allow_headerless, on_sop_class=refuse_non_image)
            return _headers(source, window, elements, policy)
    except InputError:
        raise
    except BaseException as error:  # noqa: BLE001 - hostile bytes reach MemoryError and worse
        failure = parse_failure(error)
    raise failure


def sop_class_of(source: Source) -> str:
    """The kind of object, read from the first bytes of a file; empty where it does not say.

    Raises:
        InputError: As `read_headers`, for files that cannot be read or parsed as far as (0008,0016).
    """
    with open_window(source) as window:
        return sop_class_in(window)


def dataset_bytes(source: Source, header: Header) -> bytes:
    """All bytes of a file, to which `pixel_offset` refers: inflated where the data set is deflated.

    Args:
        source: The file.
        header: The header of the file.

    Raises:
        InputError: As `read_bytes`; `E_DEFLATE_BOMB`, `E_TRUNCATED` or `E_DICOM_PARSE` for a deflated stream.
    """
    data = read_bytes(source)
    if header.TransferSyntaxUID != DEFLATED:
        return data
    limit = header.pixel_offset + 2 * _picture_bytes(header) + _HIDDEN_DEFLATE_BYTES
    return inflate(data, start=header.data_set_offset, max_bytes=limit)


def content_digest(source: Source) -> str:
    """SHA-256 of all bytes of a file, hexadecimal.

    Raises:
        InputError: As `read_bytes`.
    """
    return hashlib.sha256(read_bytes(source)).hexdigest()


def parse_failure(error: BaseException) -> InputError:
    """`E_DICOM_PARSE` that names the class of an error only: messages of the parser quote values of the header."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    return InputError("E_DICOM_PARSE", f"the file cannot be parsed ({type(error).__name__})")


def _headers(source: Source, window: Window, elements: Elements, policy: Policy) -> tuple[Header, ...]:
    sop_class = check_kind(elements, policy)
    raw = elements.values
    values = Values(raw, elements.is_little)
    if raw.get(MODALITY_LUT):
        raise InputError("E_VALUE_INVALID", "element (0028,3000): a modality lookup table instead of a linear scale")
    modality = values.text("Modality") or _only_radiograph(sop_class)
    if modality not in MODALITIES.get(sop_class, RADIOGRAPHS):
        raise invalid("Modality", "contradicts the kind of object")
    digest = hashlib.sha256(memoryview(window.buffer)[: elements.pixel_offset]).hexdigest()
    common = _image(values, sop_class, alone=f"sha256:{digest}" if modality in RADIOGRAPHS else "")
    common |= {
        "source": source,
        "digest": digest,
        "SOPInstanceUID": values.text("SOPInstanceUID") or values.plain(MEDIA_SOP_INSTANCE) or f"sha256:{digest}",
        "pixel_offset": elements.pixel_offset,
        "pixel_length": elements.pixel_length,
        "TransferSyntaxUID": _transfer_syntax(elements),
        "Modality": modality,
        "has_preamble": elements.has_preamble,
        "size_bytes": window.size_bytes,
        "mtime_ns": window.mtime_ns,
        "data_set_offset": elements.start,
    }
    if sop_class in ENHANCED:
        pictures = frames(_with_tracer(raw), common["NumberOfFrames"])
        headers = tuple(
            Header(**common, **slice_fields(Values(picture, elements.is_little), policy), frame=number)
            for number, picture in enumerate(pictures)
        )
    else:
        header = Header(**common, **slice_fields(Values(_with_tracer(raw), elements.is_little), policy))
        is_mosaic = sop_class == MR_IMAGE and "MOSAIC" in header.ImageType
        headers = _unfolded(header, values) if is_mosaic else (header,)
    _check_pixel_length(headers[0], window.size)
    return headers


def _only_radiograph(sop_class: str) -> str:
    """The usual modality of radiographs of a kind, for those that do not say it; "" for other kinds."""
    usual = MODALITIES.get(sop_class, ("",))[0]
    return usual if usual in RADIOGRAPHS else ""


def _transfer_syntax(elements: Elements) -> str:
    if elements.transfer_syntax:
        return elements.transfer_syntax
    if elements.start > 0 or elements.pixel_length is None:
        raise InputError("E_DICOM_PARSE", "element (0002,0010) is missing: how are the pixels encoded?")
    if elements.is_implicit:
        return _IMPLICIT_LITTLE
    return _EXPLICIT_LITTLE if elements.is_little else _EXPLICIT_BIG


def _image(values: Values, sop_class: str, *, alone: str) -> dict[str, Any]:
    """What holds for all frames of a file: identity, size and coding of the picture.

    Args:
        values: Raw values.
        sop_class: Kind of object.
        alone: What stands for the study and series of a picture that needs no other; "" for slices.
    """
    found: dict[str, Any] = {"SOPClassUID": sop_class}
    for name in ("SeriesInstanceUID", "StudyInstanceUID"):
        found[name] = values.text(name) or alone
        if not found[name]:
            raise InputError(
                "E_NO_SERIES_UID", "element (0020,000d) or (0020,000e) is missing: to which series does this belong?"
            )
    name = "PhotometricInterpretation"
    found[name] = required(name, values.text(name))
    for name in ("PatientID", "IssuerOfPatientID"):
        found[name] = values.identity(name)
    for name in ("FrameOfReferenceUID", "LossyImageCompression"):
        found[name] = values.text(name)
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"):
        found[name] = required(name, values.number(name, 2))
    found["NumberOfFrames"] = _num_frames(values)
    _check_image(found)
    return found


def _num_frames(values: Values) -> int:
    stated = values.integer("NumberOfFrames")
    if stated is not None and stated < 1:
        raise invalid("NumberOfFrames", "is not positive")
    return stated or 1


def _with_tracer(raw: Mapping[int, Any]) -> Mapping[int, Any]:
    """The elements of the one radiopharmaceutical beside those of the object; of several, none."""
    tracers = raw.get(RADIOPHARMACEUTICAL, ())
    return {**raw, **tracers[0]} if len(tracers) == 1 else raw


def _unfolded(header: Header, values: Values) -> tuple[Header, ...]:
    mosaic = unfold(
        values,
        rows=header.Rows,
        columns=header.Columns,
        position=header.ImagePositionPatient,
        orientation=header.ImageOrientationPatient,
        spacing=header.PixelSpacing,
    )
    shape = (header.Rows, header.Columns)
    return tuple(
        replace(
            header,
            Rows=mosaic.rows,
            Columns=mosaic.columns,
            tile=corner,
            picture_shape=shape,
            ImagePositionPatient=position,
        )
        for corner, position in zip(mosaic.corners, mosaic.positions, strict=True)
    )


def _check_image(values: dict[str, Any]) -> None:
    for name in ("Rows", "Columns"):
        if not 1 <= values[name] <= MAX_SIDE:
            raise invalid(name, "is not a possible image size")
    if values["BitsAllocated"] not in (8, 16, 32):
        raise invalid("BitsAllocated", "is not 8, 16 or 32")
    if not 1 <= values["BitsStored"] <= values["BitsAllocated"]:
        raise invalid("BitsStored", "does not fit the bits allocated")
    if values["HighBit"] != values["BitsStored"] - 1:
        raise invalid("HighBit", "is not one less than the bits stored")
    if values["PixelRepresentation"] not in (0, 1):
        raise invalid("PixelRepresentation", "is neither 0 nor 1")
    if not 1 <= values["SamplesPerPixel"] <= 4:
        raise invalid("SamplesPerPixel", "is not 1 to 4")


def _picture_bytes(header: Header) -> int:
    rows, columns = header.picture_shape or (header.Rows, header.Columns)
    return rows * columns * header.SamplesPerPixel * (header.BitsAllocated // 8) * header.NumberOfFrames


def _check_pixel_length(header: Header, size: int) -> None:
    """Pixel data must fit into the file; which code says so depends on whether their length could be true."""
    length, expected = header.pixel_length, _picture_bytes(header)
    if length is None:
        return
    if header.TransferSyntaxUID == DEFLATED:
        if length > 2 * expected + _HIDDEN_DEFLATE_BYTES:
            raise InputError("E_DEFLATE_BOMB", f"{length} bytes of deflated pixel data, {expected} expected")
    elif header.pixel_offset + length > size and length > 2 * expected + 1:
        raise InputError("E_DICOM_LENGTH", f"{length} bytes of pixel data are announced, {expected} expected")
    elif header.pixel_offset + min(length, expected) > size:
        raise InputError("E_TRUNCATED", "the file ends within its pixel data", hint="retrieve the file again")
