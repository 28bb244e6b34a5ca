"""Room for what an ingest would store is asked for before the first image is written."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import Exit, StorageError
from medssl_cli.cache.store import Cache
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.ingest import space
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from tests.dicom_factory import ct_series

Usage = namedtuple("Usage", "total used free")
SERIES_BYTES = 60 * 50 * 5 * 12 // 8  # 12 bits are stored of each pixel


@pytest.fixture
def free(monkeypatch):
    """How many bytes the disk has left."""

    def set_to(num_bytes: int) -> None:
        monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: Usage(10**12, 0, num_bytes))

    return set_to


def run(source: Path):
    return ingest([source], source.parent / "cache", IngestOptions(workers=1, reread=True))


def test_an_ingest_without_hope_ends_before_it_stores_anything(tmp_path, free):
    ct_series(tmp_path / "in", size=(60, 50))
    free(SERIES_BYTES // 10 - 1)

    with pytest.raises(StorageError, match="E_NO_SPACE: the images need 0 MiB at the very least") as refused:
        run(tmp_path / "in")

    assert refused.value.exit_code == Exit.IO
    assert Cache.open(tmp_path / "cache").records() == []
    free(SERIES_BYTES // 10)
    assert run(tmp_path / "in").num_images == 1


def test_what_is_there_already_needs_no_room(tmp_path, free):
    ct_series(tmp_path / "in", size=(60, 50))
    run(tmp_path / "in")
    free(0)

    assert run(tmp_path / "in").counts["duplicate"] == 5


def test_files_count_with_their_length(tmp_path, free):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.nii.gz"
    write_nifti(path, np.arange(1000, dtype=np.int16).reshape(10, 10, 10), np.eye(4))
    free(path.stat().st_size // 10 - 1)

    with pytest.raises(StorageError, match="E_NO_SPACE"):
        run(tmp_path / "in")
