"""Finding files: every entry is seen once, judged by its content, and none can block or lead outside."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.errors import UsageError
from medssl_cli.formats.discover import discover, sniff
from medssl_cli.formats.gzip_strict import gzip_bytes
from medssl_cli.formats.nifti import encode_nifti

NIFTI = encode_nifti(np.zeros((2, 2, 2), dtype=np.uint8), np.eye(4))
DICOM = bytes(128) + b"DICM" + bytes(100)


def found(root: Path) -> dict[str, tuple[str, str]]:
    return {entry.path.name: (entry.kind, entry.code) for entry in discover([root])}


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
        (b"\xff\xd8\xff\xe0", "a.jpg", ("other", "S_NOT_AN_IMAGE")),
        (b"\0\x05\x16\x07" + bytes(60), "._a.nii.gz", ("other", "S_NOT_AN_IMAGE")),
        (b"damaged", "a.nii", ("nifti", "")),
        (gzip.compress(b"a" * 600, mtime=0), "a.tar.gz", ("other", "S_ARCHIVE")),
        (b"PK\x03\x04rest", "a.zip", ("other", "S_ARCHIVE")),
        (bytes(257) + b"ustar", "a.tar", ("other", "S_ARCHIVE")),
        (b' {"labels": {}}', "dataset.json", ("json", "")),
        (b"not json", "a.json", ("other", "S_NOT_AN_IMAGE")),
    ],
)
def test_content_decides(content, name, expected):
    assert sniff(content, name) == expected


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

    assert sorted(os.fsencode(entry.path.name) for entry in discover([tmp_path])) == sorted(names)


def test_overlapping_inputs_are_seen_once_and_the_order_is_stable(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.nii", "a.nii", "b/c.nii"):
        (tmp_path / name).write_bytes(NIFTI)

    paths = [entry.path.name for entry in discover([tmp_path, tmp_path / "b", tmp_path / "a.nii", tmp_path])]

    assert paths == ["a.nii", "c.nii", "z.nii"]


def test_an_unreadable_folder_is_one_refused_entry(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.nii").write_bytes(NIFTI)
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "closed":
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr("medssl_cli.formats.discover.os.scandir", guarded)

    assert found(tmp_path) == {"closed": ("other", "E_PERMISSION"), "a.nii": ("nifti", "")}


def test_an_input_that_does_not_exist_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="E_NOT_FOUND"):
        list(discover([tmp_path / "nothing"]))


def test_walking_is_lazy(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(NIFTI)
    entries = discover([tmp_path])

    assert next(entries).path.name == "a"
    (tmp_path / "b").write_bytes(b"changed")
    assert next(entries).code == "S_NOT_AN_IMAGE"
