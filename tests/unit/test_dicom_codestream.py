"""A compressed picture's own header is believed only where it agrees with the DICOM header."""

import struct
from dataclasses import replace

import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import read_headers
from medssl_cli.formats.dicom.codestream import check_codestream
from tests.dicom_factory import ct_series

RLE = "1.2.840.10008.1.2.5"


def _j2k(*, columns=6, rows=5, bits=12, signed=False, components=1, offset=0):
    depth = bytes([(bits - 1) | (0x80 if signed else 0), 1, 1])
    size = struct.pack(">HIIIIIIIIH", 0, columns + offset, rows + offset, offset, offset, 64, 64, 0, 0, components)
    body = size + depth * components
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(body) + 2) + body + bytes(20)


def _jpeg(*, columns=6, rows=5, bits=12, components=1, marker=0xC3, end=b"\xff\xd9"):
    frame = struct.pack(">BHHB", bits, rows, columns, components) + bytes(3 * components)
    comment = b"\xff\xfe\x00\x06text"
    return (
        b"\xff\xd8"
        + comment
        + b"\xff\xff"
        + bytes([marker])
        + struct.pack(">H", len(frame) + 2)
        + frame
        + bytes(9)
        + end
    )


def _jp2(codestream, *, length=None):
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x10ftypjp2 \0\0\0\0"
    return boxes + struct.pack(">I", len(codestream) + 8 if length is None else length) + b"jp2c" + codestream


@pytest.mark.parametrize(
    "frame",
    [_j2k(), _j2k(offset=3), _j2k(bits=16), _jp2(_j2k()), _jpeg(), _jpeg(marker=0xC1), _jpeg(marker=0xF7)],
    ids=["j2k", "j2k-offset", "j2k-16-bit", "jp2", "jpeg-lossless", "jpeg", "jpeg-ls"],
)
def test_agreement_is_accepted(tmp_path, frame):
    check_codestream(_header(tmp_path), [frame])


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC3, 0xF7])
def test_a_stream_that_was_cut_has_no_end(tmp_path, marker):
    """The decoder fills up what is missing; padding behind the end is none of the picture."""
    check_codestream(_header(tmp_path), [_jpeg(marker=marker, end=b"\xff\xd9\0")])

    for end in (b"", b"\xff", b"\xff\0\xd9"):
        with pytest.raises(InputError, match="E_TRUNCATED"):
            check_codestream(_header(tmp_path), [_jpeg(marker=marker, end=end)])


@pytest.mark.parametrize("build", [_j2k, _jpeg, lambda **changes: _jp2(_j2k(**changes))], ids=["j2k", "jpeg", "jp2"])
@pytest.mark.parametrize(
    "changes",
    [{"columns": 7}, {"rows": 4}, {"bits": 11}, {"bits": 17}, {"components": 3}, {"components": 0}, {"rows": 0}],
    ids=lambda changes: "-".join(f"{name}-{value}" for name, value in changes.items()),
)
def test_disagreement_is_refused(tmp_path, build, changes):
    with pytest.raises(InputError, match="E_CODESTREAM_MISMATCH"):
        check_codestream(_header(tmp_path), [build(**changes)])


def test_the_sign_must_agree(tmp_path):
    header = _header(tmp_path)

    check_codestream(replace(header, PixelRepresentation=1), [_j2k(signed=True)])
    for representation, signed in ((0, True), (1, False)):
        with pytest.raises(InputError, match="E_CODESTREAM_MISMATCH"):
            check_codestream(replace(header, PixelRepresentation=representation), [_j2k(signed=signed)])


@pytest.mark.parametrize("length", [0, 1, 7, 2**31, 2**32 - 1])
def test_boxes_that_promise_no_progress_are_refused(tmp_path, length):
    """A box of length 0 makes readers that do not look loop for ever."""
    with pytest.raises(InputError, match="E_CODESTREAM_MISMATCH"):
        check_codestream(_header(tmp_path), [_jp2(_j2k(), length=length)])


@pytest.mark.parametrize("frame", [_j2k(), _jpeg(), _jp2(_j2k())], ids=["j2k", "jpeg", "jp2"])
def test_a_cut_header_is_refused(tmp_path, frame):
    header = _header(tmp_path)
    for length in range(len(frame) - 20):
        with pytest.raises(InputError) as refused:
            check_codestream(header, [frame[:length]])
        assert refused.value.code == "E_CODESTREAM_MISMATCH"


def test_what_never_comes_to_the_point_is_refused(tmp_path):
    for frame in (b"\xff\xd8" + b"\xff" * 2_000_000, b"\xff\xd8" + b"\xff\xfe\0\2" * 500_000, b"GIF89a"):
        with pytest.raises(InputError, match="E_CODESTREAM_MISMATCH"):
            check_codestream(_header(tmp_path), [frame])


def test_one_picture_has_one_frame(tmp_path):
    for frames in ([], [_j2k(), _j2k()]):
        with pytest.raises(InputError, match="E_TRUNCATED"):
            check_codestream(_header(tmp_path), frames)


def test_run_lengths_have_no_header_of_their_own(tmp_path):
    check_codestream(replace(_header(tmp_path), TransferSyntaxUID=RLE), [b"\1"])


def _header(folder):
    (header,) = read_headers(ct_series(folder)[0])  # 6 columns, 5 rows, 12 of 16 bits, unsigned
    return header
