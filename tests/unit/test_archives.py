"""Zip archives are read in place: nothing escapes, nothing explodes, nothing is believed that can be checked."""

import gc
import io
import multiprocessing
import os
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats import archives
from medssl_cli.formats.archives import default_budget, harmless_name, open_archive
from medssl_cli.formats.discover import discover
from medssl_cli.formats.nifti import encode_nifti
from medssl_cli.formats.source import Member, place_of, read_bytes, read_head, size_of
from tests.zip_factory import LINK, STORED, Raw, deflated, zeros, zip_bytes

NIFTI = encode_nifti(np.zeros((2, 3, 4), np.uint8), np.eye(4))
GIB = 2**30


def archive(tmp_path: Path, *members: Raw, **options) -> Path:
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes(*members, **options))
    return path


def member(path: Path, index: int = 0) -> Member:
    return Member(path, index, open_archive(path).entry(index).inner)


def refusal(path: Path, index: int = 0) -> str:
    """Code of reading a member to its end."""
    with pytest.raises(InputError) as caught:
        read_bytes(member(path, index))
    return caught.value.code


def kinds(path: Path, **options) -> list[tuple[str, str]]:
    return [(found.kind, found.code) for found in discover([path], **options)]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_what_the_standard_library_wrote(tmp_path, compression):
    contents = {"a/empty": b"", "a/ü.bin": bytes(range(256)) * 20_000, "b": b"x"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", compression) as written:
        for name, data in contents.items():
            written.writestr(name, data)
        with written.open("streamed", "w", force_zip64=True) as stream:
            stream.write(b"zip64 extra and data descriptor")

    opened = open_archive(tmp_path / "a.zip")
    sources = [Member(tmp_path / "a.zip", index, opened.entry(index).inner) for index in range(len(opened))]

    assert {str(source.inner): read_bytes(source) for source in sources} == {
        **contents,
        "streamed": b"zip64 extra and data descriptor",
    }
    assert [size_of(source) for source in sources] == [0, 5_120_000, 1, 31]
    assert read_head(sources[1], 5) == bytes(range(5))
    assert place_of(sources[1]) == tmp_path / "a.zip" / "a" / "ü.bin"


def test_the_record_of_large_archives_is_understood(tmp_path, monkeypatch):
    """The number of members does not fit into the 16 bits of the short record."""
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as written:
        for index in range(5):
            written.writestr(str(index), b"abc")
    assert b"PK\6\6" in (tmp_path / "a.zip").read_bytes()

    assert len(open_archive(tmp_path / "a.zip")) == 5
    assert read_bytes(member(tmp_path / "a.zip", 4)) == b"abc"


def test_bytes_before_the_archive_and_a_comment_after_it_do_no_harm(tmp_path):
    path = archive(tmp_path, Raw(b"a", b"abc"), prefix=b"#!/bin/sh\n", comment=b"PK\5\6 is not the end")

    assert read_bytes(member(path)) == b"abc"


HOSTILE_NAMES = {
    "parents": (b"../../etc/passwd", "etc/passwd"),
    "absolute": (b"/etc/passwd", "etc/passwd"),
    "drive": (b"C:\\Windows\\a.dcm", "Windows/a.dcm"),
    "backslashes": (b"..\\..\\a.dcm", "a.dcm"),
    "inner-parents": (b"a/../../../b.dcm", "a/b.dcm"),
    "share": (b"\\\\server\\share\\a", "server/share/a"),
    "nul": (b"a\0b.dcm", "a_b.dcm"),
    "only-dots": (b"../..", "member-0"),
    "long": (b"x/" * 3000 + b"y" * 5000 + b".dcm", "/".join(["x"] * 63 + ["y" * 251 + ".dcm"])),
}


@pytest.mark.parametrize("case", HOSTILE_NAMES)
def test_no_name_leads_anywhere(tmp_path, case):
    name, harmless = HOSTILE_NAMES[case]
    path = archive(tmp_path, Raw(name, NIFTI))
    before = sorted(tmp_path.rglob("*"))

    (found,) = discover([path])

    assert found.kind == "nifti"
    assert str(found.source.inner) == harmless
    assert read_bytes(found.source) == NIFTI
    assert place_of(found.source).is_relative_to(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_is_not_text_survives():
    name = b"\xff\xfe.nii".decode("utf-8", "surrogateescape")

    assert harmless_name(name, 0).name == name


def test_links_and_folders_are_counted_and_not_followed(tmp_path):
    path = archive(
        tmp_path, Raw(b"d/", method=STORED), Raw(b"d/link", b"/etc/passwd", attributes=LINK), Raw(b"d/x", b"x")
    )

    assert kinds(path) == [("other", "S_SPECIAL_FILE"), ("other", "S_SPECIAL_FILE"), ("other", "S_NOT_AN_IMAGE")]
    assert refusal(path, 1) == "S_SPECIAL_FILE"


def test_names_that_repeat_or_differ_in_case_are_all_counted(tmp_path):
    path = archive(tmp_path, Raw(b"a.nii", NIFTI), Raw(b"a.nii", NIFTI + b"1"), Raw(b"A.nii", NIFTI + b"2"))
    found = list(discover([path]))

    assert [read_bytes(each.source)[len(NIFTI) :] for each in found] == [b"", b"1", b"2"]
    assert len({each.source for each in found}) == len({each.place for each in found}) == 3


def test_a_bomb_is_never_unpacked(tmp_path):
    packed, crc = zeros(GIB)
    path = archive(tmp_path, Raw(b"a", packed=packed, size=GIB, crc=crc))
    assert path.stat().st_size < 1_100_000

    tracemalloc.start()
    try:
        assert kinds(path) == [("other", "S_NOT_AN_IMAGE")]
        assert kinds(path, max_archive_bytes=GIB - 1) == [("other", "E_ARCHIVE_BOMB")]
        with pytest.raises(InputError, match="E_TOO_BIG"):
            read_bytes(member(path), max_bytes=2**20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20


def test_looking_at_the_beginning_of_a_member_unpacks_no_more_than_that(tmp_path):
    packed, crc = zeros(64 * 2**20)
    path = archive(tmp_path, Raw(b"a", packed=packed, size=64 * 2**20, crc=crc))
    source = member(path)

    tracemalloc.start()
    try:
        assert read_head(source, 4096) == bytes(4096)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_forged_size_is_caught_at_the_first_byte_too_many(tmp_path):
    packed, crc = zeros(64 * 2**20)
    path = archive(tmp_path, Raw(b"a", packed=packed, size=1000, crc=crc))

    assert kinds(path) == [("other", "E_ARCHIVE_BOMB")]
    assert refusal(path) == "E_ARCHIVE_BOMB"


def test_the_default_budget_is_half_of_the_free_space_and_64_gib_at_most(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10 * GIB))
    assert default_budget(tmp_path) == 5 * GIB
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000 * GIB))
    assert default_budget(tmp_path) == 64 * GIB


def test_members_that_share_bytes_are_refused_as_a_whole(tmp_path):
    """A thousand names for one member (CVE-2024-0450), and a member that quotes the next one's header."""
    one = Raw(b"a", b"x" * 1000)
    copies = [Raw(b"%d" % index, b"x" * 1000, offset=0) for index in range(999)]
    assert kinds(archive(tmp_path, one, *copies)) == [("other", "E_ARCHIVE_OVERLAP")]

    inner = Raw(b"b", b"kernel" * 100)
    header = zip_bytes(inner)[: 30 + 1 + len(deflated(inner.data))]
    outer = Raw(b"a", header, method=STORED)
    assert kinds(archive(tmp_path, outer, Raw(b"b", inner.data, offset=31))) == [("other", "E_ARCHIVE_OVERLAP")]


def test_a_local_header_that_is_longer_than_the_directory_says_does_not_reach_into_the_next_member(tmp_path):
    path = archive(tmp_path, Raw(b"a", b"x" * 50, method=STORED), Raw(b"b", b"y" * 50, method=STORED))
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 28, 40)
    path.write_bytes(data)

    assert refusal(path) == "E_ARCHIVE_OVERLAP"
    assert read_bytes(member(path, 1)) == b"y" * 50


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (Raw(b"a", NIFTI, flags=0x1), "E_ARCHIVE_ENCRYPTED"),
        (Raw(b"a", NIFTI, method=99, flags=0x1), "E_ARCHIVE_ENCRYPTED"),
        (Raw(b"a", NIFTI, method=9), "E_ARCHIVE"),
        (Raw(b"a", NIFTI, method=STORED, size=10), "E_ARCHIVE"),
        (Raw(b"a", NIFTI, crc=1), "E_ARCHIVE_CRC"),
        (Raw(b"a", NIFTI, size=len(NIFTI) + 1), "E_ARCHIVE_CRC"),
        (Raw(b"a", NIFTI, packed=deflated(NIFTI)[:-8]), "E_ARCHIVE_CRC"),
        (Raw(b"a", NIFTI, packed=deflated(NIFTI) + b"more"), "E_ARCHIVE_CRC"),
        (Raw(b"a", NIFTI, packed=b"\xff" * 30), "E_ARCHIVE_CRC"),
        (Raw(b"a", NIFTI, packed=b""), "E_ARCHIVE_CRC"),
    ],
    ids=["zip-crypto", "aes", "deflate64", "stored-size", "crc", "short", "cut", "trailing", "garbage", "nothing"],
)
def test_a_member_that_cannot_be_read_says_why_and_leaves_the_others(tmp_path, raw, code):
    path = archive(tmp_path, raw, Raw(b"b.nii", NIFTI))

    assert refusal(path) == code
    assert read_bytes(member(path, 1)) == NIFTI
    assert kinds(path)[1] == ("nifti", "")


def test_any_flipped_bit_of_a_members_data_is_noticed(tmp_path):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 50, 2000, dtype=np.uint8).tobytes()
    sound = zip_bytes(Raw(b"a", data))
    start, end = 31, 31 + len(deflated(data))
    path = tmp_path / "a.zip"
    codes = []
    for position in rng.choice(np.arange(start * 8, end * 8), 400, replace=False):
        damaged = bytearray(sound)
        damaged[position // 8] ^= 1 << position % 8
        path.unlink(missing_ok=True)
        path.write_bytes(damaged)
        codes.append(refusal(path))
    assert set(codes) <= {"E_ARCHIVE_CRC", "E_ARCHIVE_BOMB"}
    assert len(codes) == 400


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.zip", zip_bytes(Raw(b"x", b"x"))),
        ("b.tar", bytes(257) + b"ustar" + bytes(250)),
        ("b.7z", b"7z\xbc\xaf\x27\x1c"),
    ],
    ids=["zip", "tar", "7z"],
)
def test_an_archive_inside_an_archive_is_refused(tmp_path, name, content):
    path = archive(tmp_path, Raw(name.encode(), content), Raw(b"a.nii", NIFTI))

    assert kinds(path) == [("other", "E_NESTED_ARCHIVE"), ("nifti", "")]


BROKEN = {
    "cut": lambda data: data[:-30],
    "only-the-beginning": lambda data: data[:40],
    "directory-overwritten": lambda data: data.replace(b"PK\1\2", b"PK\1\0"),
    "more-members-than-there-are": lambda data: data[:-12] + struct.pack("<H", 999) + data[-10:],
    "directory-beyond-the-file": lambda data: data[:-6] + struct.pack("<I", 10_000) + data[-2:],
    "second-disk": lambda data: data[:-18] + b"\1\0" + data[-16:],
    "zip64-that-leads-nowhere": lambda data: (
        data[:-22] + b"PK\6\7" + b"\xff" * 16 + data[-22:-12] + b"\xff" * 10 + bytes(2)
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_archive_that_does_not_open_is_one_refused_object(tmp_path, case):
    path = tmp_path / "a.zip"
    path.write_bytes(BROKEN[case](zip_bytes(Raw(b"a.nii", NIFTI), Raw(b"b.nii", NIFTI))))

    assert kinds(path) == [("other", "E_ARCHIVE")]


def test_an_archive_without_members_is_one_skipped_object(tmp_path):
    assert kinds(archive(tmp_path)) == [("other", "S_NOT_AN_IMAGE")]


def test_too_many_members_are_refused_before_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    members = [Raw(b"%d" % index, b"") for index in range(3)]
    assert kinds(archive(tmp_path, *members)) == [("other", "E_ARCHIVE")]
    assert kinds(archive(tmp_path, *members, count=2)) == [("other", "E_ARCHIVE")]

    monkeypatch.setattr(archives, "MAX_MEMBERS", 100)
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 100)
    (tmp_path / "a.zip").unlink()
    assert kinds(archive(tmp_path, *members)) == [("other", "E_ARCHIVE")]


def test_random_damage_is_coded_and_never_raises_anything_else(tmp_path):
    sound = zip_bytes(*[Raw(b"%d.nii" % index, NIFTI, method=8 * (index % 2)) for index in range(4)])
    rng = np.random.default_rng(1)
    path = tmp_path / "a.zip"
    codes = set()
    for _ in range(300):
        damaged = bytearray(sound)
        for position in rng.integers(len(sound) - 280, len(sound), rng.integers(1, 6)):
            damaged[position] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        path.unlink(missing_ok=True)
        path.write_bytes(damaged[: rng.integers(1, len(damaged))] if rng.random() < 0.1 else damaged)
        for found in discover([path]):
            codes.add(found.code)
            if found.kind == "nifti":
                try:
                    assert read_bytes(found.source) == NIFTI
                except InputError as error:
                    codes.add(error.code)
    assert {"", "E_ARCHIVE"} <= codes


def test_the_directory_is_parsed_once_and_a_changed_archive_is_opened_again(tmp_path, monkeypatch):
    path = archive(tmp_path, *[Raw(b"%d" % index, b"old") for index in range(20)])
    parsed = []
    walk = archives.Archive._walk_directory
    monkeypatch.setattr(archives.Archive, "_walk_directory", lambda self: parsed.append(1) or walk(self))

    assert {read_bytes(member(path, index)) for index in range(20)} == {b"old"}
    assert len(parsed) == 1

    (tmp_path / "new.zip").write_bytes(zip_bytes(Raw(b"a", b"fresh")))
    (tmp_path / "new.zip").replace(path)
    assert read_bytes(member(path)) == b"fresh"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_few_archives_stay_open_and_a_stream_outlives_the_cache(tmp_path):
    def num_open() -> int:
        return sum(os.path.realpath(link).endswith(".zip") for link in Path("/proc/self/fd").iterdir())

    archives._open.cache_clear()
    gc.collect()
    paths = [tmp_path / f"{index}.zip" for index in range(10)]
    for path in paths:
        path.write_bytes(zip_bytes(Raw(b"a", b"abc" * 2**20, method=STORED)))
    opened = open_archive(paths[0])
    stream = opened.stream(opened.entry(0))
    first = next(stream)
    for path in paths:
        read_head(member(path), 4)

    assert num_open() <= 5
    assert first + b"".join(stream) == b"abc" * 2**20
    del stream, opened
    archives._open.cache_clear()
    assert num_open() == 0


def _read_in_child(source: Member) -> bytes:
    return read_bytes(source)


def test_a_member_can_be_read_in_a_child_process(tmp_path):
    path = archive(tmp_path, Raw(b"a", b"abc"), Raw(b"b", b"def"))
    sources = [member(path, 0), member(path, 1)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_read_in_child, sources) == [b"abc", b"def"]
    assert read_bytes(sources[1]) == b"def"


def test_an_archive_that_is_not_there_or_a_pipe_is_refused(tmp_path):
    with pytest.raises(InputError, match="E_IO"):
        read_bytes(Member(tmp_path / "nothing.zip", 0, PurePosixPath("a")))
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(InputError, match="S_SPECIAL_FILE"):
        read_bytes(Member(tmp_path / "pipe.zip", 0, PurePosixPath("a")))
    path = archive(tmp_path, Raw(b"a", b"abc"))
    with pytest.raises(InputError, match="E_ARCHIVE"):
        read_bytes(Member(path, 1, PurePosixPath("b")))


def test_a_large_stored_archive_written_by_the_standard_library_reads_back_in_any_order(tmp_path):
    rng = np.random.default_rng(2)
    contents = [rng.bytes(rng.integers(0, 3000)) for _ in range(50)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        for index, data in enumerate(contents):
            written.writestr(f"{index}", data, compress_type=rng.choice([0, 8]))
    path = tmp_path / "a.zip"
    path.write_bytes(buffer.getvalue())

    for index in rng.permutation(50):
        assert read_bytes(member(path, int(index))) == contents[index]
