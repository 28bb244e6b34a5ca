"""Release gate G9: the same images and key give the same items, byte for byte, however they lie and whoever works.

The catalog is left out: it is derived from the items, and SQLite lays out its pages by the order of writing.
"""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from medssl_cli.cache.audit import audit_cache
from medssl_cli.formats.policy import Policy
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from tests.canaries import Canaries, plant_pictures, plant_series, plant_volumes

NUM_IMAGES = 15
pytestmark = pytest.mark.filterwarnings("ignore")
Tree = dict[str, bytes]


def key_file(folder: Path) -> Path:
    path = folder / "site.key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Series of every kind, one with repeated files, one compressed, one in parts; volumes with labels; pictures."""
    root = tmp_path_factory.mktemp("sources")
    canaries = Canaries()
    few = canaries.dataset({0x0010})
    series = root / "dicom"
    for modality in ("CT", "MR", "PT", "DX", "enhanced"):
        plant_series(series, modality, canaries, few)
    compressed = plant_series(series, "CT", canaries, few, lowest_mm=50)
    for path in compressed:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    shutil.copyfile(compressed[0], compressed[0].with_name("again.dcm"))
    phases = plant_series(series, "MR", canaries, few, lowest_mm=200)
    for path in phases:
        dataset = pydicom.dcmread(path)
        for echo in (1, 2):
            dataset.EchoNumbers, dataset.EchoTime = echo, 10 * echo
            dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}.{echo}"
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.PixelData = np.full(30, echo * 7, "<u2").tobytes()
            dataset.save_as(path.with_name(f"{echo} {path.name}"))
        path.unlink()
    files = root / "files"
    plant_volumes(files / "volumes", canaries)
    plant_pictures(files / "pictures", canaries)
    plant_labelled_scan(files / "pairs")
    return root


def plant_labelled_scan(folder: Path) -> None:
    """A volume and a label map of the same name."""
    voxels = np.random.default_rng(0).integers(-900, 900, (6, 5, 4)).astype(np.int16)
    for name, values in (("images", voxels), ("labels", (voxels > 0).astype(np.uint8))):
        (folder / name).mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2, 2, 1])), folder / name / "p7.nii.gz")


def shuffled(sources: Path, target: Path, seed: int) -> list[Path]:
    """The same files, written in another order; DICOM files with other names in other folders, which mean nothing."""
    order = random.Random(seed)
    paths = sorted(path for path in sources.rglob("*") if path.is_file())
    order.shuffle(paths)
    for number, path in enumerate(paths):
        if path.is_relative_to(sources / "dicom"):
            place = target / f"dicom-{number % (seed + 2)}" / order.choice("abc") / f"{order.getrandbits(40)}"
        else:
            place = target / path.relative_to(sources)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    roots = sorted(target.iterdir())
    order.shuffle(roots)
    return roots


def items_after(paths: Sequence[Path], folder: Path, *, workers: int, times: int = 1) -> Tree:
    """Names and bytes of the items that an ingest makes, or several in a row."""
    policy = Policy(burned_in="accept", split_4d=True)
    options = IngestOptions(workers=workers, key_file=key_file(folder), policy=policy)
    for _ in range(times):
        report = ingest(paths, folder / "cache", options)
        assert report.counts["quarantined"] == 0
    assert not audit_cache(folder / "cache").problems
    items = folder / "cache" / "items"
    return {str(path.relative_to(items)): path.read_bytes() for path in items.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def expected(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Items of one worker and the files as they were made."""
    return items_after(sorted(sources.iterdir()), tmp_path_factory.mktemp("expected"), workers=1)


def test_there_is_something_to_compare(expected: Tree) -> None:
    assert sum(name.endswith("image.b2nd") for name in expected) == NUM_IMAGES
    assert len(expected) > 2 * NUM_IMAGES


@pytest.mark.parametrize(("workers", "seed"), [(1, 1), (2, 2), (4, 3)])
def test_neither_workers_nor_names_nor_order_change_a_byte(
    sources: Path, expected: Tree, tmp_path: Path, workers: int, seed: int
) -> None:
    (tmp_path / "in").mkdir()
    paths = shuffled(sources, tmp_path / "in", seed)

    found = items_after(paths, tmp_path, workers=workers)

    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_runs_in_a_row_change_nothing(sources: Path, expected: Tree, tmp_path: Path) -> None:
    assert items_after(sorted(sources.iterdir()), tmp_path, workers=2, times=3) == expected


def test_what_comes_in_two_halves_is_what_comes_at_once(sources: Path, expected: Tree, tmp_path: Path) -> None:
    paths = sorted(sources.iterdir(), reverse=True)

    items_after(paths[:1], tmp_path, workers=2)

    assert items_after(paths[1:], tmp_path, workers=2) == expected
