"""Reading a source: complete, bounded, and never from anything but a regular file."""

import contextlib
import errno
import gzip
import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats import source as module
from medssl_cli.formats.gzip_strict import gunzip, gzip_bytes
from medssl_cli.formats.source import Member, place_of, read_bytes, read_head, size_of
from medssl_cli.formats.table import stem_of


def refusal(path: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read_bytes(path, **options)
    assert str(path) not in str(caught.value)
    return caught.value.code


def test_a_file_is_read_whole_or_from_its_beginning(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(256)) * 1000)

    assert read_bytes(path) == bytes(range(256)) * 1000
    assert read_head(path, 3) == b"\0\1\2"
    assert size_of(path) == 256_000
    assert place_of(path) == path


def test_more_than_the_limit_a_pipe_a_folder_and_nothing_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    os.mkfifo(tmp_path / "pipe")

    assert refusal(tmp_path / "a", max_bytes=10) == "E_TOO_BIG"
    assert refusal(tmp_path / "pipe") == "S_SPECIAL_FILE"
    assert refusal(tmp_path) == "S_SPECIAL_FILE"
    assert refusal(tmp_path / "nothing") == "E_IO"


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(bytes(1000))
    really = os.fstat
    for new_size in (1010, 10, 1000):
        calls = []

        def fstat(descriptor, calls=calls, new_size=new_size):
            calls.append(1)
            if len(calls) == 3:
                with path.open("r+b") as stream:
                    stream.truncate(new_size)
                os.utime(path, ns=(0, new_size))
            return really(descriptor)

        monkeypatch.setattr(module.os, "fstat", fstat)
        assert refusal(path) == "E_CHANGED_DURING_READ"
        monkeypatch.setattr(module.os, "fstat", really)


@pytest.mark.parametrize(("number", "num_failures", "code"), [(errno.ESTALE, 3, ""), (errno.EIO, 4, "E_IO")])
def test_a_failing_network_drive_is_asked_four_times(tmp_path, monkeypatch, number, num_failures, code):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    really, calls = os.open, []

    def flaky(*arguments):
        calls.append(1)
        if len(calls) <= num_failures:
            raise OSError(number, "injected")
        return really(*arguments)

    monkeypatch.setattr(module.os, "open", flaky)
    if code:
        assert refusal(path) == code
    else:
        assert read_bytes(path) == b"abc"
    assert len(calls) == 4


def test_permissions_have_a_code_of_their_own(tmp_path, monkeypatch):
    def closed(*arguments):
        raise PermissionError

    monkeypatch.setattr(module.os, "open", closed)
    assert refusal(tmp_path / "a") == "E_PERMISSION"


def test_an_archive_counts_as_a_folder():
    member = Member(Path("/data/p1.zip"), 3, PurePosixPath("a/b.nii"))

    assert place_of(member) == Path("/data/p1.zip/a/b.nii")
    assert member.name == "b.nii"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.b.NII", "a.b"),
        ("1.2.840.nrrd", "1.2.840"),
        ("a.seg.nrrd", "a"),
        ("a.mha", "a"),
        ("a.b.JPEG", "a.b"),
        ("a.gz", "a.gz"),
        (".nii", ".nii"),
        ("IM0001", "IM0001"),
    ],
)
def test_stems(name, stem):
    assert stem_of(name) == stem


def test_no_flipped_bit_of_a_gzip_stream_is_accepted():
    """400 bits of the compressed data, checksum and length; the ten bytes before them are only time and system."""
    rng = np.random.default_rng(0)
    content = rng.integers(0, 40, 4000, dtype=np.uint8).tobytes()
    sound = gzip_bytes(content)
    codes = set()
    for position in rng.choice(np.arange(80, len(sound) * 8), 400, replace=False):
        damaged = bytearray(sound)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(InputError) as caught:
            gunzip(bytes(damaged), limit=2 * len(content))
        codes.add(caught.value.code)
    assert "E_GZ_CRC" in codes
    assert codes <= {"E_GZ_CRC", "E_GZ_TRUNCATED", "E_GZ_TRAILING", "E_GZ_BOMB"}


def test_a_flipped_bit_of_the_gzip_header_is_refused_or_changes_nothing():
    content = b"voxels" * 100
    num_accepted = 0
    for position in range(80):
        damaged = bytearray(gzip_bytes(content))
        damaged[position // 8] ^= 1 << position % 8
        with contextlib.suppress(InputError):
            assert gunzip(bytes(damaged), limit=1000) == content
            num_accepted += 1
    assert 0 < num_accepted <= 8 * 6 + 1


def test_a_gzip_stream_cut_anywhere_is_truncated():
    sound = gzip.compress(np.random.default_rng(0).bytes(700_000), mtime=0)

    for length in (0, 1, 9, 10, 11, 2**18 - 1, 2**18, 2**18 + 1, len(sound) - 8, len(sound) - 1):
        with pytest.raises(InputError, match="E_GZ_TRUNCATED"):
            gunzip(sound[:length], limit=10**6)


def test_gzip_members_follow_each_other_and_only_zeros_may_follow_them():
    two = gzip_bytes(b"one") + gzip_bytes(b"") + gzip_bytes(b"two")

    assert gunzip(two, limit=6) == b"onetwo"
    assert gunzip(two + bytes(512), limit=6) == b"onetwo"
    for garbage in (b"x", bytes(5) + b"x", b"\x1f"):
        with pytest.raises(InputError, match="E_GZ_TRAILING"):
            gunzip(two + garbage, limit=6)
    with pytest.raises(InputError, match="E_GZ_BOMB"):
        gunzip(two, limit=5)


def test_a_gzip_bomb_stops_at_the_limit():
    bomb = gzip.compress(bytes(200 * 2**20), 1, mtime=0)

    with pytest.raises(InputError, match="E_GZ_BOMB"):
        gunzip(bomb, limit=1000)
