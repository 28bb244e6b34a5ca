"""Run lengths: exactly the bytes that the header announces, or a refusal."""

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.uid import RLELossless

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.rle import decode_rle, decode_segment
from tests.dicom_factory import ct_series, edit, load


def encoded(words: np.ndarray) -> bytes:
    """Words `[N]` as one frame: one segment of literal runs for each byte, highest byte first (PS3.5 G.2 to G.3)."""
    planes = words.astype(words.dtype.newbyteorder(">")).view(np.uint8).reshape(len(words), -1).T
    segments = [literal(plane.tobytes()) for plane in planes]
    starts = np.cumsum([64, *map(len, segments)])[:-1]
    header = np.zeros(16, "<u4")
    header[0], header[1 : 1 + len(segments)] = len(segments), starts
    return header.tobytes() + b"".join(segments)


def literal(data: bytes) -> bytes:
    """Literal runs of up to 128 bytes, padded to an even length."""
    runs = b"".join(
        bytes([len(part) - 1]) + part for part in (data[first : first + 128] for first in range(0, len(data), 128))
    )
    return runs + b"\0" * (len(runs) % 2)


@given(hnp.arrays(st.sampled_from([np.uint8, np.uint16, np.uint32]), st.integers(1, 300)))
def test_what_is_encoded_is_decoded(words):
    decoded = decode_rle(encoded(words), num_pixels=len(words), bytes_per_pixel=words.dtype.itemsize)

    assert decoded.dtype == words.dtype
    assert decoded.tolist() == words.tolist()


def test_the_runs_of_the_standard():
    # Two bytes as they are, five times 7, nothing (128), one byte; padded with one zero.
    assert decode_segment(bytes([1, 10, 20, 252, 7, 128, 0, 30, 0]), 8) == bytes([10, 20, 7, 7, 7, 7, 7, 30])


@pytest.mark.parametrize(("num_bytes", "code"), [(9, "E_TRUNCATED"), (7, "E_CODESTREAM_MISMATCH"), (6, "E_CODES")])
def test_another_number_of_bytes_is_refused(num_bytes, code):
    with pytest.raises(InputError, match=code):
        decode_segment(bytes([1, 10, 20, 252, 7, 128, 0, 30]), num_bytes)


@pytest.mark.parametrize("more", [b"\0\0", b"\0\7", b"\xff\0", b"\0\0\0"], ids=["zero", "seven", "run", "padding"])
def test_even_one_byte_too_many_is_refused(more):
    with pytest.raises(InputError, match="E_CODESTREAM_MISMATCH"):
        decode_segment(literal(bytes(range(9))) + more, 9)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda frame: frame[:63], "E_TRUNCATED"),
        (lambda frame: frame[:-4], "E_TRUNCATED"),
        (lambda frame: b"\1" + frame[1:], "E_CODESTREAM_MISMATCH"),
        (lambda frame: b"\3" + frame[1:], "E_CODESTREAM_MISMATCH"),
        (lambda frame: b"\xff" + frame[1:], "E_CODESTREAM_MISMATCH"),
        (lambda frame: frame[:4] + b"\x42" + frame[5:], "E_CODESTREAM_MISMATCH"),
        (lambda frame: frame[:8] + b"\x20\0" + frame[10:], "E_CODESTREAM_MISMATCH"),
        (lambda frame: frame[:8] + b"\xff\xff" + frame[10:], "E_CODESTREAM_MISMATCH"),
    ],
)
def test_a_damaged_frame_is_refused(change, code):
    with pytest.raises(InputError, match=code):
        decode_rle(change(encoded(np.arange(300, dtype=np.uint16))), num_pixels=300, bytes_per_pixel=2)


LIES = {
    "fewer columns": {"Columns": 5},
    "more columns": {"Columns": 7},
    "fewer rows": {"Rows": 4},
    "more rows": {"Rows": 6},
    "other order, fewer": {"Rows": 6, "Columns": 4},
    "fewer bytes": {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
    "more bytes": {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
    "fewer bits": {"BitsStored": 10, "HighBit": 9},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_about_run_lengths_is_refused(tmp_path, lie):
    series = ct_series(tmp_path)
    for path in series:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    assert load(series).volume.voxels[0, 3, 2].tolist() == [0, 5, 10, 15, 20]
    for path in series:
        edit(path, **LIES[lie])

    with pytest.raises(InputError, match=r"E_CODESTREAM_MISMATCH|E_TRUNCATED"):
        load(series)
