"""A series that grew is stored anew; the smaller version stays, marked, whichever came first."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.cache.store import Cache
from medssl_cli.imaging.volume import Volume
from tests.small_cache import AFFINE, record_of

WHOLE = np.random.default_rng(0).integers(-1000, 1000, (1, 6, 5, 12)).astype(np.int16)


def slices(first: int, last: int, voxels: np.ndarray = WHOLE) -> Volume:
    """Slices first to last of one stack, at their place."""
    affine = AFFINE.copy()
    affine[:3, 3] += AFFINE[:3, 2] * first
    return Volume(voxels[..., first:last], affine, "CT", "HU")


def add(cache: Cache, volume: Volume, series: str = "S") -> str:
    record = record_of(cache, volume, "P", series)
    with cache.writing():
        cache.add(volume, record)
    return record.item_id


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open_or_create(tmp_path / "cache")


@pytest.mark.parametrize("part", [(0, 8), (4, 12), (3, 9)], ids=["first slices", "last slices", "middle"])
@pytest.mark.parametrize("is_small_first", [True, False])
def test_the_smaller_version_is_superseded_in_either_order(cache, part, is_small_first):
    volumes = [slices(*part), slices(0, 12)]
    ids = [cache.item_id(volume) for volume in volumes]
    for volume in volumes if is_small_first else volumes[::-1]:
        add(cache, volume)

    assert [record.item_id for record in cache.records()] == [ids[1]]
    assert {row.item_id for row in cache.rows()} == {ids[1]}
    assert {record.item_id: record.superseded_by for record in cache.records(include_superseded=True)} == {
        ids[0]: ids[1],
        ids[1]: None,
    }
    assert np.array_equal(cache.read_image(cache.record(ids[0])).voxels, volumes[0].voxels)
    assert list(cache.verify()) == [None, None]


def test_nothing_is_written_when_either_comes_again(cache):
    for part in ((0, 8), (0, 12)):
        add(cache, slices(*part))
    before = {path: path.stat().st_mtime_ns for path in cache.root.glob("items/**/*")}

    for part in ((0, 8), (0, 12)):
        add(cache, slices(*part))

    assert {path: path.stat().st_mtime_ns for path in cache.root.glob("items/**/*")} == before


def test_a_kill_between_image_and_mark_is_made_good_by_the_next_ingest(cache, monkeypatch):
    add(cache, slices(0, 8))
    with monkeypatch.context() as killed:
        killed.setattr(Cache, "_supersede", lambda *arguments: None)
        add(cache, slices(0, 12))
    assert len(cache.records()) == 2

    add(cache, slices(0, 12))

    assert len(cache.records()) == 1


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=lambda order: "".join(map(str, order)))
def test_of_three_versions_only_the_largest_counts(cache, order):
    volumes = [slices(0, 4), slices(0, 8), slices(0, 12)]
    for index in order:
        add(cache, volumes[index])

    assert [record.shape[2] for record in cache.records()] == [12]


def other_voxels() -> Volume:
    changed = WHOLE.copy()
    changed[0, 3, 3, 5] += 1
    return slices(0, 8, changed)


def moved() -> Volume:
    volume = slices(0, 8)
    affine = volume.affine.copy()
    affine[0, 3] += 0.5
    return Volume(volume.voxels, affine, "CT", "HU")


@pytest.mark.parametrize(
    "other",
    [other_voxels(), moved(), Volume(WHOLE[..., ::-1][..., :8].copy(), AFFINE, "CT", "HU")],
    ids=["one other voxel", "half a millimetre away", "another part of a 4D series"],
)
def test_images_that_do_not_hold_each_other_both_count(cache, other):
    add(cache, slices(0, 12))
    add(cache, other)

    assert len(cache.records()) == 2


def test_another_series_is_never_a_version(cache):
    add(cache, slices(0, 8), "S")
    add(cache, slices(0, 12), "T")

    assert len(cache.records()) == 2


def test_a_label_can_still_be_added_to_a_superseded_item(cache):
    small = add(cache, slices(0, 8))
    add(cache, slices(0, 12))

    assert cache.add_label(small, "seg", Volume(np.ones((1, 6, 5, 8), np.uint8), slices(0, 8).affine), {1: "a"})
    assert set(cache.record(small).labels) == {"seg"}
