"""Scans on media that cannot be written, and a cache that cannot: what needs no writing works, the rest says why."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dicom_factory import ct_series
from tests.environment import ENVIRONMENT

IN_A_MOUNT_SPACE = ["unshare", "-rm", "sh", "-c"]
MAKE_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'

if shutil.which("unshare") is None or subprocess.run([*IN_A_MOUNT_SPACE, "true"], capture_output=True).returncode:
    pytest.skip("this user may not mount anything", allow_module_level=True)


def medssl(read_only: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """A command for which one folder is a read-only mount."""
    script = f'{MAKE_READ_ONLY} && shift && exec "$@"'
    command = [*IN_A_MOUNT_SPACE, script, "sh", read_only, sys.executable, "-m", "medssl_cli", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Scans, and a cache that was filled while the scans could not be written."""
    root = tmp_path_factory.mktemp("read-only")
    ct_series(root / "in")
    done = medssl(root / "in", "ingest", root / "in", "--cache", root / "caches" / "old")
    assert done.returncode == 0, done.stderr
    return root


def test_scans_on_a_read_only_mount_are_taken_and_nothing_is_left_beside_them(place):
    assert len(list((place / "in").iterdir())) == 5
    assert len(list((place / "caches" / "old").glob("items/*/*/item.json"))) == 1


@pytest.mark.parametrize("command", [("ls",), ("verify",), ("export",)], ids=lambda command: command[0])
def test_a_cache_on_a_read_only_mount_can_be_read(place, tmp_path, command):
    target = (tmp_path / "out",) if command == ("export",) else ()

    done = medssl(place / "caches", "cache", *command, *target, "--cache", place / "caches" / "old")

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["old", "new"])
def test_an_ingest_into_a_read_only_cache_says_why_not(place, name):
    done = medssl(place / "caches", "ingest", place / "in", "--cache", place / "caches" / name)

    assert done.returncode == 74
    assert "E_IO: cannot write the cache (EROFS)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_needs_no_writing(place):
    done = medssl(place / "caches", "ingest", place / "in", "--cache", place / "caches" / "new", "--dry-run")

    assert done.returncode == 0, done.stderr
