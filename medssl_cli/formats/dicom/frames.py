"""The stored pictures of one file: exact length, found without trust in offset tables, decompressed one by one.

A file is opened once for all of its slices, and only if it is still the file whose header was read.
"""

import hashlib
import importlib.metadata
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli import __version__
from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.codestream import CodedPicture, check_codestream
from medssl_cli.formats.dicom.headers import Header, dataset_bytes, parse_failure
from medssl_cli.formats.dicom.rle import decode_rle
from medssl_cli.formats.dicom.window import DEFLATED

# Transfer syntaxes of PS3.6 Table A-1 whose pixels are not compressed: implicit, explicit, deflated; big endian.
BYTE_ORDER_OF: Final = {
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    DEFLATED: "<",
    "1.2.840.10008.1.2.2": ">",
}
RLE: Final = "1.2.840.10008.1.2.5"
MAX_FRAGMENTS: Final = 200_000

_ITEM: Final = b"\xfe\xff\x00\xe0"
_SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0"
_CODESTREAM_STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
_RETRIEVE: Final = "retrieve the file again"

Voxels = NDArray[Any]


@dataclass
class PixelFile:
    """Bytes of one file by offset; of a deflated file, as if its data set were not.

    Args:
        size: Size of the whole.
        stream: A file on disk, unbuffered, else None.
        data: Everything, where there is no stream.
    """

    size: int
    stream: io.FileIO | None = None
    data: bytes = b""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of an interval.

        Raises:
            InputError: `E_TRUNCATED`.
        """
        buffer = bytearray(max(0, min(length, self.size - offset)))
        if len(buffer) < length:
            raise InputError("E_TRUNCATED", "the file ends within its pixel data", hint=_RETRIEVE)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill a buffer of bytes from an offset.

        Raises:
            InputError: `E_TRUNCATED`.
        """
        if offset + len(target) > self.size:
            raise InputError("E_TRUNCATED", "the file ends within its pixel data", hint=_RETRIEVE)
        if self.stream is None:
            target[:] = self.data[offset : offset + len(target)]
            return
        self.stream.seek(offset)
        done = 0
        while done < len(target):
            count = self.stream.readinto(target[done:])
            if not count:
                raise _changed()
            done += count


@contextmanager
def open_pixels(header: Header) -> Iterator[PixelFile]:
    """The file that a header was read from, if it is still the same.

    Raises:
        InputError: `E_CHANGED_DURING_READ` if size, time of change or header differ from what was read first, or
            change meanwhile; `E_IO`, `E_PERMISSION`.
    """
    if not isinstance(header.source, Path) or header.TransferSyntaxUID == DEFLATED:
        data = dataset_bytes(header.source, header)
        _check_header(header, data[: header.pixel_offset])
        yield PixelFile(len(data), data=data)
        return
    try:
        descriptor = os.open(header.source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with io.FileIO(descriptor) as stream:
            before = os.fstat(descriptor)
            if (before.st_size, before.st_mtime_ns) != (header.size_bytes, header.mtime_ns):
                raise _changed()
            opened = PixelFile(before.st_size, stream)
            _check_header(header, opened.read(0, header.pixel_offset))
            yield opened
            after = os.fstat(descriptor)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise _changed()
    except PermissionError as error:
        raise InputError("E_PERMISSION", "the file cannot be read") from error
    except OSError as error:
        raise InputError("E_IO", f"the file cannot be read ({type(error).__name__})") from error


def read_frames(pixels: PixelFile, headers: Sequence[Header], targets: Sequence[Voxels]) -> str:
    """Fill arrays with the stored words of slices of one file.

    Args:
        pixels: That file.
        headers: Headers of the slices.
        targets: Array `[Y, X]` for each, C-contiguous, unsigned words of BitsAllocated bits in native order.

    Returns:
        The decoder's name and version; "" where nothing was compressed.

    Raises:
        InputError: `E_PIXEL_LENGTH`, `E_TRUNCATED`, `E_TOO_BIG`, `E_CODESTREAM_MISMATCH`, `E_PIXEL_DECODE` or
            `E_CHANGED_DURING_READ`.
    """
    if headers[0].TransferSyntaxUID in BYTE_ORDER_OF:
        _read_native(pixels, headers, targets)
        return ""
    spans = _frame_spans(pixels, headers[0])
    known = -1
    picture: Voxels = np.empty((0, 0), np.uint8)
    for header, target in zip(headers, targets, strict=True):
        if _picture_number(header) != known:
            known = _picture_number(header)
            frame = b"".join(pixels.read(*span) for span in spans[known])
            picture = _decompressed(_whole_picture(header), frame)
        target[...] = _tile(picture, header)
    return _decoder_name(headers[0].TransferSyntaxUID)


def decompress_all(data: bytes, picture: CodedPicture) -> Iterator[Voxels]:
    """Decode the pictures of compressed pixel data that are in memory, one after the other.

    Args:
        data: Fragments and their delimiter, from `pixel_offset` on.
        picture: Size and coding, the same for all of them; `NumberOfFrames` are expected.

    Yields:
        `[Y, X]`, unsigned words.

    Raises:
        InputError: As `read_frames`.
    """
    pixels = PixelFile(len(data), data=data)
    for spans in _frame_spans(pixels, picture):
        yield _decompressed(picture, b"".join(pixels.read(*span) for span in spans))


def _read_native(pixels: PixelFile, headers: Sequence[Header], targets: Sequence[Voxels]) -> None:
    first = _whole_picture(headers[0])
    width = first.BitsAllocated // 8
    frame_bytes = first.Rows * first.Columns * width
    expected = frame_bytes * first.NumberOfFrames
    if first.pixel_length is None:
        raise InputError("E_PIXEL_LENGTH", "uncompressed pixel data have no length")
    if first.pixel_offset + min(first.pixel_length, expected) > pixels.size:
        raise InputError("E_TRUNCATED", "the file ends within its pixel data", hint=_RETRIEVE)
    if first.pixel_length not in (expected, expected + expected % 2):
        raise InputError("E_PIXEL_LENGTH", f"{first.pixel_length} bytes of pixel data, {expected} expected")
    is_big = BYTE_ORDER_OF[first.TransferSyntaxUID] == ">"
    if is_big and width == 1 and pixels.read(first.pixel_offset - 8, 2) == b"OW":
        # PS3.5 A.2: bytes lie in pairs within 16-bit words, so the pairs are the wrong way round.
        words = np.frombuffer(pixels.read(first.pixel_offset, first.pixel_length), ">u2")
        pixels, is_big = PixelFile(first.pixel_length, data=words.astype("<u2").tobytes()), False
        first = replace(first, pixel_offset=0)
    for header, target in zip(headers, targets, strict=True):
        offset = first.pixel_offset + _picture_number(header) * frame_bytes
        if header.tile is None:
            pixels.read_into(target.reshape(-1).view(np.uint8).data, offset)
        else:
            picture = np.frombuffer(pixels.read(offset, frame_bytes), f"u{width}").reshape(first.Rows, first.Columns)
            target[...] = _tile(picture, header)
        if is_big:
            target.byteswap(inplace=True)


def _frame_spans(pixels: PixelFile, header: CodedPicture) -> list[list[tuple[int, int]]]:
    """Offset and length of the fragments of each frame; offset tables may lie and are not looked at (PS3.5 A.4)."""
    fragments = _fragments(pixels, header.pixel_offset)
    count = header.NumberOfFrames
    begins = [pixels.read(at, min(4, length)).startswith(_CODESTREAM_STARTS) for at, length in fragments]
    if header.TransferSyntaxUID == RLE or (count > 1 and not any(begins)):
        begins = [True] * len(fragments)
    frames: list[list[tuple[int, int]]] = []
    for fragment, is_first in zip(fragments, begins, strict=True):
        if is_first or not frames:
            frames.append([])
        frames[-1].append(fragment)
    if len(frames) < count:
        raise InputError("E_TRUNCATED", f"{len(frames)} compressed frames, {count} expected", hint=_RETRIEVE)
    if len(frames) > count:
        raise InputError("E_PIXEL_LENGTH", f"{len(frames)} compressed frames, {count} expected")
    return frames


def _fragments(pixels: PixelFile, start: int) -> list[tuple[int, int]]:
    """Offset and length of every item after the offset table; the delimiter that ends them must be there."""
    found: list[tuple[int, int]] = []
    at = start
    while len(found) <= MAX_FRAGMENTS:
        head = pixels.read(at, 8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] == _SEQUENCE_END:
            return found[1:]
        if head[:4] != _ITEM:
            raise InputError("E_PIXEL_DECODE", "the compressed pixel data are not a sequence of fragments")
        if at + 8 + length > pixels.size:
            raise InputError("E_TRUNCATED", "the file ends within its pixel data", hint=_RETRIEVE)
        found.append((at + 8, length))
        at += 8 + length
    raise InputError("E_DICOM_TOO_BIG", f"more than {MAX_FRAGMENTS} fragments of compressed pixel data")


def _decompressed(header: CodedPicture, frame: bytes) -> Voxels:
    """One picture `[Y, X]` of unsigned words."""
    if header.TransferSyntaxUID == RLE:
        precision = check_codestream(header, [frame])
        size, width = header.Rows * header.Columns, header.BitsAllocated // 8
        words = decode_rle(frame, num_pixels=size, bytes_per_pixel=width).reshape(header.Rows, header.Columns)
        _check_bits(words, header, precision)
        return words
    from pydicom.pixels import get_decoder  # a third of a second that uncompressed series need not pay
    from pydicom.uid import UID

    padded = frame + b"\0" * (len(frame) % 2)
    item = _ITEM + len(padded).to_bytes(4, "little") + padded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            precision = check_codestream(header, [frame])
            pixels, _ = get_decoder(UID(header.TransferSyntaxUID)).as_array(
                _ITEM + bytes(4) + item + _SEQUENCE_END + bytes(4),
                raw=True,
                decoding_plugin="pylibjpeg",
                rows=header.Rows,
                columns=header.Columns,
                number_of_frames=1,
                samples_per_pixel=1,
                photometric_interpretation=header.PhotometricInterpretation,
                bits_allocated=header.BitsAllocated,
                bits_stored=header.BitsStored,
                pixel_representation=header.PixelRepresentation,
                pixel_keyword="PixelData",
                correct_unused_bits=False,  # cuts what a lying header leaves no room for
            )
    except InputError:
        raise
    except BaseException as error:  # noqa: BLE001 - decoders written in Rust panic with a BaseException
        failure = parse_failure(error)
        raise InputError("E_PIXEL_DECODE", f"the pixel data cannot be decoded ({type(error).__name__})") from failure
    if pixels.shape != (header.Rows, header.Columns) or pixels.dtype.itemsize * 8 != header.BitsAllocated:
        raise InputError("E_CODESTREAM_MISMATCH", "the decoded picture has another size than its header says")
    words = np.ascontiguousarray(pixels).view(f"u{pixels.dtype.itemsize}")
    _check_bits(words, header, precision)
    return words


def _check_bits(words: Voxels, header: CodedPicture, precision: int) -> None:
    """Refuse decompressed words that need more bits than the header says: cutting them would change values.

    Nothing else can stand in these bits of a compressed picture; those of plain pixels may hold overlays. A negative
    number has its sign there, or, of all or none and where the codestream has no room for more, nothing.
    """
    spare = words.dtype.itemsize * 8 - header.BitsStored
    if not spare:
        return
    high = words >> header.BitsStored
    is_clear = high == 0
    if header.PixelRepresentation == 1:
        is_negative = (words >> (header.BitsStored - 1)) & 1 == 1
        is_extended = is_negative & (high == (1 << spare) - 1)
        is_plain = precision == header.BitsStored and not is_extended.any()
        is_clear = is_extended | (is_clear & (is_plain | ~is_negative))
    if not is_clear.all():
        raise InputError(
            "E_CODESTREAM_MISMATCH",
            f"decompressed values need more than the {header.BitsStored} bits that the header says",
            hint=_RETRIEVE,
        )


def _decoder_name(syntax: str) -> str:
    if syntax == RLE:
        return f"medssl/{__version__}"
    is_j2k = syntax.startswith(("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.4.20"))
    package = "pylibjpeg-openjpeg" if is_j2k else "pylibjpeg-libjpeg"
    return f"{package}/{importlib.metadata.version(package)}"


def _picture_number(header: Header) -> int:
    return 0 if header.tile is not None else header.frame


def _whole_picture(header: Header) -> Header:
    """The header of the whole picture that a tile is cut from."""
    if header.picture_shape is None:
        return header
    return replace(header, Rows=header.picture_shape[0], Columns=header.picture_shape[1])


def _tile(picture: Voxels, header: Header) -> Voxels:
    row, column = header.tile or (0, 0)
    cut = picture[row : row + header.Rows, column : column + header.Columns]
    if cut.shape != (header.Rows, header.Columns):
        raise InputError("E_PIXEL_LENGTH", "a slice lies outside of its picture")
    return cut


def _check_header(header: Header, head: bytes) -> None:
    if hashlib.sha256(head).hexdigest() != header.digest:
        raise _changed()


def _changed() -> InputError:
    return InputError("E_CHANGED_DURING_READ", "a file changed between two reads", hint="run the command again")
