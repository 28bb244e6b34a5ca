"""Finding files: every entry is seen once, judged by its content, and none can block or lead outside."""

import gzip
import inspect
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.formats.discover import discover, look
from medssl_cli.formats.gzip_strict import gzip_bytes
from medssl_cli.formats.nifti import encode_nifti
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.sniff import sniff
from tests.zip_factory import Raw, zip_bytes

NIFTI = encode_nifti(np.zeros((2, 2, 2), dtype=np.uint8), np.eye(4))
DICOM = bytes(128) + b"DICM" + bytes(100)


def found(root: Path) -> dict[str, tuple[str, str]]:
    return {entry.source.name: (entry.kind, entry.code) for entry in discover([root])}


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (NIFTI, "a.nii", ("nifti", "")),
        (NIFTI, "no-extension", ("nifti", "")),
        (gzip_bytes(NIFTI), "a.txt", ("nifti", "")),
        (DICOM, "IM0001", ("dicom", "")),
        (DICOM, "a.txt", ("dicom", "")),
        (bytes(128) + b"DICM" + bytes(40) + b"1.2.840.10008.1.3.10", "x", ("other", "S_SIDECAR")),
        (DICOM, "DICOMDIR", ("other", "S_SIDECAR")),
        (b"", "a.dcm", ("other", "S_NOT_AN_IMAGE")),
        (b"", "a.nii.gz", ("other", "S_NOT_AN_IMAGE")),
        (b"plain text", "a.dcm", ("other", "S_NOT_AN_IMAGE")),
        (b"\xff\xd8\xff\xe0", "a.txt", ("picture", "")),
        (b"\x89PNG\r\n\x1a\n", "IM1", ("picture", "")),
        (b"II*\0", "a.tif", ("picture", "")),
        (b"MM\0*", "a.tif", ("picture", "")),
        (b"%PDF-1.7", "a.png", ("other", "S_NOT_AN_IMAGE")),
        (b"NRRD0004\n", "IM1", ("nrrd", "")),
        (b"damaged", "a.nrrd", ("nrrd", "")),
        (b"ObjectType = Image\nNDims = 3\nDimSize = 1 2 3\n", "IM1", ("metaimage", "")),
        (b"damaged", "a.mha", ("metaimage", "")),
        (b"<?xml version='1.0'?><a/>", "a.txt", ("xml", "")),
        (b"\xef\xbb\xbf<LidcReadMessage/>", "a.xml", ("xml", "")),
        (b"Image Index,Finding\n", "labels.csv", ("csv", "")),
        (b"a,b\n", "README", ("other", "S_NOT_AN_IMAGE")),
        (b"\0a,b\n", "labels.csv", ("other", "S_NOT_AN_IMAGE")),
        (b"participant_id\tage\n", "participants.tsv", ("other", "S_SIDECAR")),
        (b"0 1000\n", "a.bval", ("other", "S_SIDECAR")),
        (b"\0\x05\x16\x07" + bytes(60), "._a.nii.gz", ("other", "S_NOT_AN_IMAGE")),
        (b"damaged", "a.nii", ("nifti", "")),
        (gzip.compress(b"a" * 600, mtime=0), "a.tar.gz", ("other", "S_ARCHIVE")),
        (b"PK\x03\x04rest", "a.txt", ("zip", "")),
        (b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml", "a.xlsx", ("other", "S_NOT_AN_IMAGE")),
        (b"plain text", "a.zip", ("other", "S_NOT_AN_IMAGE")),
        (bytes(257) + b"ustar", "a.tar", ("other", "S_ARCHIVE")),
        (b' {"labels": {}}', "dataset.json", ("json", "")),
        (b"not json", "a.json", ("other", "S_NOT_AN_IMAGE")),
    ],
)
def test_content_decides(content, name, expected):
    assert sniff(content, name) == expected


def test_archives_other_than_zip_are_named(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"a" * 600))

    assert found(tmp_path) == {"a.tar.gz": ("other", "S_ARCHIVE")}


def test_pipes_are_not_opened_and_links_stay_inside(tmp_path):
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    (root / "a.nii").write_bytes(NIFTI)
    (tmp_path / "outside.nii").write_bytes(NIFTI)
    os.mkfifo(root / "pipe")
    (root / "inside").symlink_to(root / "a.nii")
    (root / "outside").symlink_to(tmp_path / "outside.nii")
    (root / "dangling").symlink_to(root / "nothing")
    (root / "sub" / "loop").symlink_to(root)
    (root / "self").symlink_to(root / "self")

    assert found(root) == {
        "a.nii": ("nifti", ""),
        "inside": ("nifti", ""),
        "pipe": ("other", "S_SPECIAL_FILE"),
        "outside": ("other", "S_LINK_OUTSIDE"),
        "dangling": ("other", "S_LINK_OUTSIDE"),
        "loop": ("other", "S_SPECIAL_FILE"),
        "self": ("other", "S_LINK_OUTSIDE"),
    }


def test_any_name_is_seen(tmp_path):
    names = [b"new\nline", b"-leading", b"\xff\xfe not utf-8", "\u00e9".encode(), "e\u0301".encode(), b"x" * 255, b" "]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(NIFTI)  # noqa: PTH118

    assert sorted(os.fsencode(entry.source.name) for entry in discover([tmp_path])) == sorted(names)


def test_overlapping_inputs_are_seen_once_and_the_order_is_stable(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.nii", "a.nii", "b/c.nii"):
        (tmp_path / name).write_bytes(NIFTI)

    paths = [entry.source.name for entry in discover([tmp_path, tmp_path / "b", tmp_path / "a.nii", tmp_path])]

    assert paths == ["a.nii", "c.nii", "z.nii"]


def test_an_unreadable_folder_is_one_refused_entry(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.nii").write_bytes(NIFTI)
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "closed":
            raise PermissionError
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr("medssl_cli.formats.discover.os.scandir", guarded)
        seen = found(tmp_path)

    assert seen == {"closed": ("other", "E_PERMISSION"), "a.nii": ("nifti", "")}


ODD_NAMES = [
    b"new\nline", b"-leading", b"\xff\xfe not utf-8", "\u00e9".encode(), "e\u0301".encode(), b"x" * 255, b" ", b"tab\t",
    "\u202egpj.nii".encode(), b"'quote\" $(x)", "\U0001f480".encode(), b"~",
]  # fmt: skip


def test_twelve_odd_names_are_seen_and_their_places_are_told_apart(tmp_path):
    for name in ODD_NAMES:
        folder = os.path.join(os.fsencode(tmp_path), b"\xfe", name)  # noqa: PTH118
        os.makedirs(folder)  # noqa: PTH103
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(NIFTI)
    entries = list(discover([tmp_path]))

    assert sorted(entry.place for entry in entries) == sorted(b"\xfe/%b/%b" % (name, name) for name in ODD_NAMES)
    assert {entry.kind for entry in entries} == {"nifti"}


def test_an_unreadable_file_is_refused_and_the_rest_goes_on(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_bytes(NIFTI)
    really_open = os.open

    def guarded(path, *arguments):
        if Path(path).name in ("a", "b"):
            raise PermissionError if Path(path).name == "a" else OSError(5, "I/O error")
        return really_open(path, *arguments)

    monkeypatch.setattr("medssl_cli.formats.discover.os.open", guarded)

    assert found(tmp_path) == {"a": ("other", "E_PERMISSION"), "b": ("other", "E_IO"), "c": ("nifti", "")}


def test_a_file_that_becomes_a_pipe_between_two_looks_does_not_block(tmp_path, monkeypatch):
    path = tmp_path / "a"
    os.mkfifo(path)
    regular = (tmp_path.parent / "regular").resolve()
    regular.write_bytes(b"x")
    monkeypatch.setattr(Path, "lstat", lambda self: regular.stat())

    assert look(path, tmp_path).code == "S_SPECIAL_FILE"


def test_a_file_that_becomes_a_link_between_two_looks_is_not_followed(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.write_bytes(NIFTI)
    path = tmp_path / "in"
    path.symlink_to(outside)
    monkeypatch.setattr(Path, "lstat", lambda self: outside.stat())

    assert look(path, tmp_path).code == "E_IO"


def test_an_input_folder_that_cannot_be_listed_is_a_usage_error(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError

    monkeypatch.setattr("medssl_cli.formats.discover.os.scandir", closed)
    with pytest.raises(UsageError, match="E_PERMISSION"):
        list(discover([tmp_path]))


def test_a_tree_deeper_than_the_interpreters_stack_is_walked(tmp_path):
    deep = tmp_path
    for _ in range(300):
        deep = deep / "d"
        deep.mkdir()
    (deep / "a.nii").write_bytes(NIFTI)
    (tmp_path / "e").write_bytes(NIFTI)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        names = [entry.source.name for entry in discover([tmp_path])]
    finally:
        sys.setrecursionlimit(limit)

    assert names == ["a.nii", "e"]


def test_a_folder_inside_itself_is_entered_once(tmp_path, monkeypatch):
    """A file system can be made that way, by hard links or by deceit; here two folders claim one identity."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.nii").write_bytes(NIFTI)
    original = Path.stat

    def same(self, **options):
        return original(tmp_path / "a" if self.name == "b" else self, **options)

    monkeypatch.setattr(Path, "stat", same)

    assert found(tmp_path) == {"b": ("other", "S_LINK_OUTSIDE")}


BARE = {
    "explicit": b"\x08\0\x05\0CS\x0a\0ISO_IR 100",
    "implicit": b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100",
    "meta": b"\x02\0\0\0UL\4\0" + bytes(12),
}


@pytest.mark.parametrize("case", BARE)
def test_a_bare_data_set_is_dicom_only_on_request(tmp_path, case):
    (tmp_path / "a").write_bytes(BARE[case])

    assert [entry.kind for entry in discover([tmp_path])] == ["other"]
    assert [entry.kind for entry in discover([tmp_path], Policy(allow_headerless=True))] == ["dicom"]


@pytest.mark.parametrize(
    "head", [b"plain text, long enough", b"", b"\x08\0", bytes(64), b"\x08\0\5\0\xff\xff\xff\xff" * 3]
)
def test_other_bytes_are_no_bare_data_set(head):
    assert sniff(head, "a", Policy(allow_headerless=True)) == ("other", "S_NOT_AN_IMAGE")


def test_known_files_are_not_opened(tmp_path, monkeypatch):
    for name in ("a.nii", "b.nii", "c.zip"):
        (tmp_path / name).write_bytes(NIFTI)
    (tmp_path / "link").symlink_to(tmp_path / "a.nii")
    opened = []
    really_open = os.open
    monkeypatch.setattr(
        "medssl_cli.formats.discover.os.open", lambda path, *rest: opened.append(path.name) or really_open(path, *rest)
    )
    sizes = {}

    def peek(path, status):
        sizes[path.name] = status.st_size
        return path.name != "b.nii"

    assert [entry.kind for entry in discover([tmp_path], peek=peek)] == ["known", "nifti", "known", "known"]
    assert opened == ["b.nii"]
    assert set(sizes.values()) == {len(NIFTI)}


def test_members_of_archives_stand_between_the_other_files(tmp_path):
    (tmp_path / "a.nii").write_bytes(NIFTI)
    (tmp_path / "b.zip").write_bytes(zip_bytes(Raw(b"z.nii", NIFTI), Raw(b"y.dcm", DICOM), Raw(b"x.json", b"{}")))
    (tmp_path / "c.nii").write_bytes(NIFTI)

    entries = list(discover([tmp_path]))

    assert [(entry.source.name, entry.kind) for entry in entries] == [
        ("a.nii", "nifti"), ("z.nii", "nifti"), ("y.dcm", "dicom"), ("x.json", "json"), ("c.nii", "nifti"),
    ]  # fmt: skip
    assert [entry.place for entry in entries[:2]] == [b"a.nii", b"b.zip!0/z.nii"]


def test_the_same_file_given_twice_and_from_above_is_one(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.nii").write_bytes(NIFTI)
    (tmp_path / "sub" / "b.nii").write_bytes(NIFTI)
    one = tmp_path / "sub" / "a.nii"

    for roots in ([one, tmp_path], [tmp_path, one], [one, tmp_path / "sub", tmp_path, one]):
        assert sorted(entry.source.name for entry in discover(roots)) == ["a.nii", "b.nii"]


def test_what_is_found_is_small(tmp_path):
    """200,000 entries at this size are 200 MB, a fifth of what a scan may take."""
    for index in range(500):
        (tmp_path / f"IM{index:06d}").write_bytes(b"x")
    list(discover([tmp_path]))

    tracemalloc.start()
    try:
        held = list(discover([tmp_path]))
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert size < 1000 * len(held)


def test_an_input_that_does_not_exist_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="E_NOT_FOUND"):
        list(discover([tmp_path / "nothing"]))


def test_walking_is_lazy(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(NIFTI)
    entries = discover([tmp_path])

    assert next(entries).source.name == "a"
    (tmp_path / "b").write_bytes(b"changed")
    assert next(entries).code == "S_NOT_AN_IMAGE"
