"""The stored pixels of a segmentation object: plain, or decompressed by any codec that images may have.

What the codestream says must be what the header says; nothing is cut to fewer bits.
"""

import zlib
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels.objects import integer, raw, text

MAX_PIXEL_BYTES: Final = 2 * 2**30
MAX_FRAMES: Final = 200_000
MAX_SIDE: Final = 32_767
_UNCOMPRESSED: Final = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_DEFLATED_FRAMES: Final = "1.2.840.10008.1.2.8.1"
_BITS_OF: Final = {"BINARY": (1, 8), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
_FRAGMENT: Final = b"\xfe\xff\x00\xe0"
_END: Final = b"\xfe\xff\xdd\xe0" + bytes(4)


@dataclass(frozen=True)
class SegmentCoding:
    """Size and coding of the frames of a segmentation; attributes carry DICOM's keywords."""

    TransferSyntaxUID: str
    Rows: int
    Columns: int
    NumberOfFrames: int
    BitsAllocated: int
    BitsStored: int
    SamplesPerPixel: int = 1
    PixelRepresentation: int = 0
    PhotometricInterpretation: str = "MONOCHROME2"
    pixel_offset: int = 0

    @property
    def num_bytes(self) -> int:
        """Size of all frames without compression."""
        return (self.NumberOfFrames * self.Rows * self.Columns * self.BitsAllocated + 7) // 8


@dataclass(frozen=True)
class StoredFrames:
    """Frames as words, or as single bits.

    Args:
        data: All frames without gaps between them.
        bits: Bits of a pixel: 1, 8 or 16.
        shape: Rows and columns.
    """

    data: bytes
    bits: int
    shape: tuple[int, int]

    def __getitem__(self, index: int) -> NDArray[np.unsignedinteger[Any]]:
        """Frame `[rows, columns]`; single bits lie least significant first, across byte borders (PS3.5 8.1.1)."""
        rows, columns = self.shape
        size = rows * columns
        if self.bits > 1:
            kind = np.dtype("<u2" if self.bits == 16 else "u1")
            return np.frombuffer(self.data, kind, count=size, offset=index * size * kind.itemsize).reshape(
                rows, columns
            )
        first = index * size
        packed = np.frombuffer(self.data, np.uint8)[first // 8 : (first + size + 7) // 8]
        return np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + size].reshape(rows, columns)

    def highest(self) -> int:
        """The largest stored value."""
        if self.bits == 1:
            return 1
        return int(np.frombuffer(self.data, "<u2" if self.bits == 16 else "u1").max(initial=0))


def read_pixels(dataset: Any, kind: str) -> StoredFrames:
    """All frames of a segmentation object.

    Args:
        dataset: The object.
        kind: Its SegmentationType.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_VALUE_INVALID`, `E_TOO_BIG`, `E_PIXEL_LENGTH`, `E_TRUNCATED`,
            `E_CODESTREAM_MISMATCH`, `E_PIXEL_DECODE`.
    """
    coding = _coding(dataset, kind)
    shape = (coding.Rows, coding.Columns)
    data = raw(dataset, "PixelData")
    if coding.TransferSyntaxUID in _UNCOMPRESSED:
        needed = coding.num_bytes
        if len(data) not in (needed, needed + needed % 2):
            raise InputError("E_PIXEL_LENGTH", f"{len(data)} bytes of pixels, the header announces {needed}")
        frames = StoredFrames(data, coding.BitsAllocated, shape)
    elif coding.TransferSyntaxUID == _DEFLATED_FRAMES:
        frames = _inflated(data, coding)
    else:
        frames = _decompressed(data, coding)
    if frames.highest() >= 2**coding.BitsStored:
        raise InputError("E_VALUE_INVALID", f"a pixel has more than the {coding.BitsStored} bits that are stored")
    return frames


def num_frames(dataset: Any) -> int:
    """NumberOfFrames; a picture that does not say is one."""
    return integer(dataset, "NumberOfFrames", low=1, high=MAX_FRAMES) if "NumberOfFrames" in dataset else 1


def _coding(dataset: Any, kind: str) -> SegmentCoding:
    bits = integer(dataset, "BitsAllocated", low=1, high=16)
    if bits not in _BITS_OF.get(kind, ()):
        raise InputError("E_LABEL_FORMAT", f"a segmentation of {bits} bits whose type does not go with that")
    stored = integer(dataset, "BitsStored", low=1, high=bits) if "BitsStored" in dataset else bits
    for name, expected in (("SamplesPerPixel", 1), ("PixelRepresentation", 0)):
        if name in dataset:
            integer(dataset, name, low=expected, high=expected)
    coding = SegmentCoding(
        TransferSyntaxUID=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        Rows=integer(dataset, "Rows", low=1, high=MAX_SIDE),
        Columns=integer(dataset, "Columns", low=1, high=MAX_SIDE),
        NumberOfFrames=num_frames(dataset),
        BitsAllocated=bits,
        BitsStored=stored,
        PhotometricInterpretation=text(dataset, "PhotometricInterpretation") or "MONOCHROME2",
    )
    if coding.num_bytes > MAX_PIXEL_BYTES:
        raise InputError("E_TOO_BIG", f"the frames unpack to more than {MAX_PIXEL_BYTES} bytes")
    return coding


def _decompressed(data: bytes, coding: SegmentCoding) -> StoredFrames:
    from medssl_cli.formats.dicom.frames import decompress_all  # decoders cost time that plain objects need not pay

    if coding.BitsAllocated == 1:  # a codec has no bits beside each other: each pixel is a byte
        coding = replace(coding, BitsAllocated=8)
    words = "<u2" if coding.BitsAllocated == 16 else "u1"
    # The parser leaves the delimiter out.
    frames = [picture.astype(words).tobytes() for picture in decompress_all(data + _END, coding)]
    return StoredFrames(b"".join(frames), coding.BitsAllocated, (coding.Rows, coding.Columns))


def _inflated(data: bytes, coding: SegmentCoding) -> StoredFrames:
    """Frames that are deflated one by one (PS3.5 A.4, Deflated Image Frame Compression); bits begin anew in each."""
    size = (coding.Rows * coding.Columns * coding.BitsAllocated + 7) // 8
    fragments = _fragments(data)[1:]
    if len(fragments) != coding.NumberOfFrames:
        raise InputError("E_PIXEL_LENGTH", f"{len(fragments)} compressed frames, {coding.NumberOfFrames} expected")
    found = []
    for fragment in fragments:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            frame = stream.decompress(fragment, size + 2)
        except zlib.error:
            raise InputError("E_PIXEL_DECODE", "a deflated frame is damaged") from None
        if not stream.eof or len(frame) not in (size, size + size % 2) or stream.unused_data.strip(b"\0"):
            raise InputError("E_CODESTREAM_MISMATCH", "a deflated frame has another size than its header says")
        frame = frame[:size]
        if coding.BitsAllocated == 1:
            bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")
            frame = bits[: coding.Rows * coding.Columns].tobytes()
        found.append(frame)
    return StoredFrames(b"".join(found), max(coding.BitsAllocated, 8), (coding.Rows, coding.Columns))


def _fragments(data: bytes) -> list[bytes]:
    """Every item of encapsulated pixel data, the offset table first."""
    found, at = [], 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] != _FRAGMENT or at + 8 + length > len(data):
            break
        found.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return found
