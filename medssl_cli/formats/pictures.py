"""PNG, JPEG and TIFF pictures of X-rays: grey values and nothing else.

Text, EXIF, IPTC, XMP and colour profiles are never read into anything; of all metadata only the orientation counts
(EXIF 2.32, tag 0x0112), because it says which way up the picture is. Resolution tags are not trusted: the spacing is
unknown.
Shape letters: X columns (to the right of the picture), Y rows (downwards).
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.acquisition import Acquisition
from medssl_cli.formats.loaded import EXIF_ORIENTATION, BurnedIn, Identity, LoadedImage
from medssl_cli.formats.picture_checks import (
    COPY_AGAIN,
    MAX_PIXELS,
    PNG_MAGIC,
    TiffFacts,
    check_jpeg,
    check_jpeg_size,
    check_png,
    check_size,
    check_tiff,
)
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Source, read_bytes
from medssl_cli.imaging.volume import Volume

Kind = Literal["PNG", "JPEG", "TIFF"]
Grey = NDArray[np.uint8] | NDArray[np.uint16]

MAX_PICTURE_BYTES: Final = 2**30
_TIFF_MAGIC: Final = (b"II*\0", b"MM\0*")
_ORIENTATION: Final = 0x0112
_OPAQUE: Final = 255
_UPRIGHT: Final[dict[int, Callable[[Any], Any]]] = {
    2: np.fliplr,
    3: lambda rows: np.rot90(rows, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda rows: np.rot90(rows, -1),
    7: lambda rows: np.rot90(rows, 2).T,
    8: np.rot90,
}


@dataclass(frozen=True)
class _Picture:
    """Grey values `[Y, X]`, the right way up, and what had to be done for that."""

    rows: Grey
    orientation: int
    is_inverted: bool
    is_lossy: bool


def is_picture(head: bytes) -> bool:
    """Whether bytes begin like a PNG, JPEG or TIFF file."""
    return _kind_of(head) is not None


def read_picture(
    source: Source, *, modality: str = "unknown", policy: Policy = STRICT, is_label: bool = False
) -> LoadedImage:
    """Read one picture as a volume `[1, X, Y, 1]` of depth 1 with the identity as affine, or refuse it.

    Args:
        source: The file; its content decides how it is read, not its name.
        modality: What the caller knows about it.
        policy: `burned_in`, which has no default for pictures: they say nothing about themselves.
        is_label: It is a label map, in which no writing is burned in and no value may have changed; one bit is enough.

    Raises:
        InputError: `E_BURNED_IN`, `E_PICTURE_PARSE`, `E_TRUNCATED`, `E_TOO_BIG`, `E_PHOTOMETRIC`, `E_DATATYPE`,
            `E_LABEL_LOSSY`, and the codes of reading files.
    """
    import PIL

    burned_in = "not_expected" if is_label else _burned_in(policy)
    data = read_bytes(source, max_bytes=MAX_PICTURE_BYTES)
    picture = _picture(data, is_label=is_label)
    if is_label and picture.is_lossy:
        raise InputError("E_LABEL_LOSSY", "the label map is a picture that was compressed with loss (JPEG)")
    ratio = picture.rows.nbytes / len(data) if picture.is_lossy else None
    stem = source.name.rpartition(".")[0] or source.name
    voxels = np.ascontiguousarray(picture.rows.T)[None, :, :, None]
    return LoadedImage(
        volume=Volume(voxels, np.eye(4), modality),
        identity=Identity(patient=None, study=stem, series=stem),
        source_kind="picture",
        decoder=f"pillow {PIL.__version__}",
        warnings=(
            *(() if is_label else ("W_BURNED_IN_UNKNOWN",)),
            *(("W_LOSSY",) if picture.is_lossy else ()),
        ),
        repairs=() if picture.orientation == 1 else (f"{EXIF_ORIENTATION}{picture.orientation}",),
        spacing_kind="unknown",
        burned_in=burned_in,
        inverted=picture.is_inverted,
        acquisition=Acquisition(lossy_ratio=ratio),
        details=() if ratio is None else (f"W_LOSSY: ratio {ratio:.3g}",),
    )


def _burned_in(policy: Policy) -> BurnedIn:
    match policy.burned_in:
        case "accept":
            return "unknown"
        case "accept-risk":
            return "accepted_risk"
        case _:
            raise InputError(
                "E_BURNED_IN",
                "a picture without a DICOM header does not say whether writing is burned into it",
                hint="look at some of them, then pass --burned-in=accept, or --burned-in=refuse to leave them out",
            )


def _kind_of(head: bytes) -> Kind | None:
    if head.startswith(PNG_MAGIC):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "TIFF" if head.startswith(_TIFF_MAGIC) else None


def _picture(data: bytes, *, is_label: bool) -> _Picture:
    kind = _kind_of(data)
    facts = TiffFacts(is_white_zero=False, is_lossy=kind == "JPEG")
    match kind:
        case "PNG":
            check_png(data, is_label=is_label)
        case "JPEG":
            check_jpeg(data)
        case "TIFF":
            facts = check_tiff(data)
        case None:
            raise InputError("E_PICTURE_PARSE", "neither PNG nor JPEG nor TIFF")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows, orientation = _decoded(data, kind)
    except InputError:
        raise
    except Exception as error:  # hostile bytes reach SyntaxError, struct.error, KeyError, MemoryError
        raise _coded(error) from error
    return _Picture(rows, orientation, facts.is_white_zero, facts.is_lossy)


def _coded(error: Exception) -> InputError:
    """What a library's exception means; its words are left out, they may quote the file."""
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return InputError("E_TOO_BIG", f"the picture has more than {MAX_PIXELS} pixels")
    if isinstance(error, OSError) and "truncated" in str(error):
        return InputError("E_TRUNCATED", "the picture ends before its pixels do", hint=COPY_AGAIN)
    return InputError("E_PICTURE_PARSE", f"the picture cannot be decoded ({type(error).__name__})", hint=COPY_AGAIN)


def _decoded(data: bytes, kind: Kind) -> tuple[Grey, int]:
    """Grey values `[Y, X]`, the right way up, and the EXIF orientation that they were stored in."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        check_size(*image.size)
        if kind == "JPEG":
            check_jpeg_size(*image.size, len(data))
        if getattr(image, "is_animated", False):
            raise InputError("E_PHOTOMETRIC", "the file holds several pictures")
        orientation = _orientation(image)
        image.load()
        rows = _grey(image)
    # The library turns TIFF pictures itself when it loads them.
    is_upright = kind == "TIFF" or orientation == 1
    return rows if is_upright else _UPRIGHT[orientation](rows), orientation


def _orientation(image: Any) -> int:
    """EXIF orientation, 1 to 8; other values mean nothing."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _grey(image: Any) -> Grey:
    """Grey values `[Y, X]` of 8 or 16 bits; colour pictures only if they show grey, and none of which a part is hidden.

    Some pictures of NIH ChestX-ray14 are RGBA, all of it opaque.
    """
    if image.mode in ("LA", "RGBA"):
        if np.asarray(image.getchannel("A")).min() < _OPAQUE:
            raise InputError("E_PHOTOMETRIC", "the picture is transparent in places")
        image = image.convert(image.mode[:-1])
    if image.mode == "RGB":
        colours = np.asarray(image)
        red, green, blue = (colours[..., channel] for channel in range(3))
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            raise InputError("E_PHOTOMETRIC", "the picture has colours")
        return red
    pixels: NDArray[Any] = np.asarray(image)
    if image.mode == "1":
        return pixels.astype(np.uint8)
    if image.mode == "L":
        return pixels
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):
        return pixels.astype(np.uint16)
    raise InputError("E_PHOTOMETRIC", "palette, transparency, CMYK or other pixels that are not grey values")
