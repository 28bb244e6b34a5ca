"""The commit protocol: complete under its final name or not there at all, and nothing left behind."""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medssl_cli.base import files
from medssl_cli.base.errors import Exit, StorageError, UsageError
from medssl_cli.base.files import (
    TEMPORARY_PREFIX,
    is_alive,
    make_output_folder,
    private_files,
    publish_directory,
    remove_temporaries,
    replace_file,
    require_place_for_file,
    sha256_file,
    sha256_json,
    storage_errors,
    temporary_directory,
    write_atomic,
    write_json,
)

FILE, FOLDER = "0123456789ab", "ba9876543210"

FILE_SIZE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from medssl_cli.base.errors import StorageError
from medssl_cli.base.files import write_atomic

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_atomic(Path(sys.argv[1]), b"x" * 100_000)
except StorageError as error:
    sys.exit(f"{error.code} {error.message}")
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def dead_process() -> int:
    """The number of a process that has ended and been waited for."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.fixture
def living_process() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child.pid
    child.communicate(b"\n")


def test_a_file_replaces_the_old_one_whole_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "a"

    write_atomic(path, b"a long first version")
    write_atomic(path, b"second")

    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_outputs_follow_the_umask_of_the_user_and_all_else_is_private(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with private_files():
            make_output_folder(tmp_path / "new" / "out")
            (tmp_path / "by-a-library").touch()
            write_atomic(tmp_path / "new" / "out" / "mask", b"", is_output=True)
            write_atomic(tmp_path / "item", b"")
            (tmp_path / "spool").mkdir()
        write_atomic(tmp_path / "outside", b"", is_output=True)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)

    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    folder = mode | (mode & 0o444) >> 2
    assert modes == {
        "new": folder, "out": folder, "mask": mode, "outside": mode, "by-a-library": 0o600, "item": 0o600,
        "spool": 0o700,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "dangling link", "link to a pipe", "folder"])
def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "output", tmp_path / "target"
    target.write_bytes(b"precious")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    else:
        path.symlink_to(target if kind == "link" else tmp_path / "nowhere")
    before = path.lstat()

    for write in (write_atomic, write_json):
        with pytest.raises(UsageError, match="E_OUTPUT_SPECIAL"):
            write(path, b"" if write is write_atomic else {})

    assert path.lstat() == before
    assert target.read_bytes() == b"precious"
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


def test_a_device_is_named_as_such_and_not_touched() -> None:
    before = Path(os.devnull).lstat()

    with pytest.raises(UsageError, match="a device"):
        require_place_for_file(Path(os.devnull))

    assert Path(os.devnull).lstat() == before


def test_a_link_that_appears_while_the_file_is_written_is_not_replaced(tmp_path: Path) -> None:
    temporary, path = tmp_path / "temporary", tmp_path / "output"
    temporary.write_bytes(b"new")
    path.symlink_to(tmp_path / "target")

    with pytest.raises(UsageError, match="E_OUTPUT_SPECIAL"):
        replace_file(temporary, path)

    assert path.is_symlink()


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failure_at_any_step_leaves_the_old_version_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")

    def refuse(*args: object) -> None:
        if step == "write":
            os.close(int(str(args[0])))  # what a failing stream does with the descriptor that it was given
        raise OSError(number, "refused")

    if step == "replace":
        monkeypatch.setattr(Path, "replace", refuse)
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        monkeypatch.setattr(os, "fdopen", refuse)
    with pytest.raises(StorageError, match=errno.errorcode[number]) as caught:
        write_atomic(path, b"new")
    monkeypatch.undo()

    assert caught.value.code == "E_IO"
    assert caught.value.exit_code == Exit.IO
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_file_that_the_system_cuts_short_never_appears(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    done = subprocess.run([sys.executable, "-c", FILE_SIZE_LIMIT, str(tmp_path / "a")], capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr.strip() == "E_IO cannot write a (EFBIG)"
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_is_named_with_the_artefact_and_not_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught, storage_errors("an item"), Path("/dev/full").open("wb", 0) as stream:
        stream.write(b"x")

    assert str(caught.value) == "E_IO: cannot write an item (ENOSPC)"


def test_a_missing_folder_is_an_io_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="ENOENT"):
        write_atomic(tmp_path / "missing" / "a", b"")


def test_json_is_canonical_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, "é"]})

    text = (tmp_path / "a.json").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": [1.5, "é"], "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert names(tmp_path) == ["a.json"]


def test_a_directory_is_published_whole(tmp_path: Path) -> None:
    temporary = temporary_directory(tmp_path)
    (temporary / "part").write_bytes(b"1")
    assert temporary.name.startswith(TEMPORARY_PREFIX)
    assert temporary.stat().st_mode & 0o777 == 0o700

    assert publish_directory(temporary, tmp_path / "final")

    assert names(tmp_path) == ["final"]
    assert (tmp_path / "final" / "part").read_bytes() == b"1"


def test_of_two_writers_the_first_wins_and_the_second_leaves_nothing(tmp_path: Path) -> None:
    first, second = temporary_directory(tmp_path), temporary_directory(tmp_path)
    for number, temporary in enumerate((first, second)):
        (temporary / "part").write_text(str(number))

    outcomes = [publish_directory(temporary, tmp_path / "final") for temporary in (second, first)]

    assert outcomes == [True, False]
    assert (tmp_path / "final" / "part").read_text() == "1"
    assert names(tmp_path) == ["final"]


def test_what_dead_processes_left_is_removed_and_what_living_ones_write_stays(
    tmp_path: Path, dead_process: int, living_process: int
) -> None:
    for process in (dead_process, living_process, os.getpid()):
        (tmp_path / f"{TEMPORARY_PREFIX}{process}-{FILE}").touch()
        (tmp_path / f"{TEMPORARY_PREFIX}{process}-{FOLDER}").mkdir()
        (tmp_path / f"{TEMPORARY_PREFIX}{process}-{FOLDER}" / "part").touch()
    (tmp_path / "final").touch()

    removed = remove_temporaries(tmp_path)

    assert removed == 2
    living = (living_process, os.getpid())
    kept = {f"{TEMPORARY_PREFIX}{process}-{kind}" for process in living for kind in (FILE, FOLDER)}
    assert set(names(tmp_path)) == kept | {"final"}


@pytest.mark.parametrize("name", ["nobody", "2024-scans", "{dead}-0123456789ab.nii.gz", "{dead}-0123456789AB"])
def test_what_only_begins_like_a_temporary_belongs_to_somebody_else(
    tmp_path: Path, dead_process: int, name: str
) -> None:
    folder = tmp_path / (TEMPORARY_PREFIX + name.format(dead=dead_process))
    folder.mkdir()
    (folder / "thesis.txt").touch()

    assert remove_temporaries(tmp_path) == 0
    assert (folder / "thesis.txt").is_file()


def test_temporaries_are_removed_one_folder_deep_only(tmp_path: Path, dead_process: int) -> None:
    deep = tmp_path / "items" / f"{TEMPORARY_PREFIX}{dead_process}-{FOLDER}"
    deep.mkdir(parents=True)

    assert remove_temporaries(tmp_path) == 0
    assert deep.is_dir()


def test_a_process_that_has_ended_and_not_been_waited_for_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie

    assert not is_alive(child.pid)
    assert is_alive(os.getpid())
    assert is_alive(os.getppid())
    child.wait()


def test_a_directory_that_cannot_be_synced_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_descriptor: int) -> None:
        raise OSError(errno.EINVAL, "not on this file system")

    monkeypatch.setattr(os, "fsync", unsupported)
    files.sync_directory(tmp_path)

    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "damaged")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="damaged"):
        files.sync_directory(tmp_path)


def test_digests_are_those_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")

    # FIPS 180-4, example B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a") == expected
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": "1"})
