"""Files of a cache: written past the page cache where that is possible, and whole wherever it is not."""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.cache.publish import PIECE_BYTES, write_private

SIZES = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 4095, 3 * PIECE_BYTES + 4096]


def data_of(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_there(tmp_path: Path, size: int) -> None:
    write_private(tmp_path / "file", data_of(size))

    assert (tmp_path / "file").read_bytes() == data_of(size)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("refused", [0, 1])
def test_a_file_system_that_knows_no_direct_writes_gets_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """Refused when it is asked for, or with the second piece."""
    calls = 0
    ask, write = fcntl.fcntl, os.write

    def refusing_to_be_asked(descriptor: int, command: int, flags: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "")
        return ask(descriptor, command, flags)

    def refusing_later(descriptor: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.EINVAL, "")
        return write(descriptor, data)

    monkeypatch.setattr(fcntl, "fcntl", ask if refused else refusing_to_be_asked)
    monkeypatch.setattr(os, "write", refusing_later if refused else write)
    write_private(tmp_path / "file", data_of(SIZES[-2]))

    assert (tmp_path / "file").read_bytes() == data_of(SIZES[-2])


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: 2**20]))
    write_private(tmp_path / "file", data_of(SIZES[-2]))

    assert (tmp_path / "file").read_bytes() == data_of(SIZES[-2])


def test_a_full_disk_is_no_reason_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"28|ENOSPC"):
        write_private(tmp_path / "file", data_of(PIECE_BYTES))
