"""Prepared images: made once, shared by recipes that differ in intensity only, made anew when their source changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.cache import prepared, preparing
from medssl_cli.cache.arrays import read_array
from medssl_cli.cache.audit import audit_cache
from medssl_cli.cache.prepared import PreparedItem, prepare
from medssl_cli.cache.store import Cache
from medssl_cli.cache.verify import drop_entry
from medssl_cli.data.crops import CropDataset
from medssl_cli.data.examples import Example
from medssl_cli.data.slices import read_slices
from medssl_cli.data.whole import read_whole
from medssl_cli.imaging.placement import brought_to
from medssl_cli.imaging.preprocessing import intensity_of, network_input
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Channel, Preprocessing
from tests.placements import gridded, preprocessed
from tests.toy_cache import toy_cache

SPACING = (3.0, 3.0, 3.0)
NATIVE = Preprocessing(window_hu=(-100.0, 300.0))
COARSE = Preprocessing(window_hu=(-100.0, 300.0), spacing_mm=SPACING)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return toy_cache(tmp_path / "cache", num_patients=2, size=12)


def files(cache: Cache) -> dict[str, int]:
    """Everything below prepared/, with the time of its last change."""
    root = cache.root / "prepared"
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in sorted(root.rglob("*")) if p.is_file()}


def voxel_files(cache: Cache) -> list[str]:
    return [name for name in files(cache) if name.endswith(".b2nd")]


def prepared_of(cache: Cache, preprocessing: Preprocessing, label_set: str | None = "seg") -> list[PreparedItem]:
    return prepare(cache, cache.records(), preprocessing, label_set=label_set, num_workers=1)


def test_an_item_on_the_wanted_grid_is_used_where_it_lies(cache: Cache) -> None:
    items = prepared_of(cache, NATIVE)

    for item, record in zip(items, cache.records(), strict=True):
        assert item.image == cache.image_path(record)
        assert item.label == cache.label_path(record, "seg")
        assert item.shape == record.shape
        assert np.array_equal(item.affine, record.affine_array)
    assert voxel_files(cache) == []


@pytest.mark.parametrize("preprocessing", [COARSE, Preprocessing(zscore=True, spacing_mm=SPACING)], ids=["hu", "z"])
def test_what_is_stored_is_what_preprocessing_says(cache: Cache, preprocessing: Preprocessing) -> None:
    for item, record in zip(prepared_of(cache, preprocessing), cache.records(), strict=True):
        image, label = cache.read_image(record), cache.read_label(record, "seg")
        expected = preprocessed(image, preprocessing)

        stored = read_array(item.image)

        assert stored.dtype == np.float32
        assert item.shape == expected.shape == stored.shape
        assert np.array_equal(item.affine, expected.affine)
        assert item.intensity == intensity_of(gridded(image, preprocessing).voxels, preprocessing)
        assert np.array_equal(item.intensity.apply(stored), expected.voxels[0])
        assert item.label is not None
        assert np.array_equal(read_array(item.label), gridded(label, preprocessing, is_label=True).voxels[0])


def test_points_are_voxels_of_their_class(cache: Cache) -> None:
    for item in prepared_of(cache, COARSE):
        assert item.label is not None
        label = read_array(item.label)
        assert set(item.points) == set(np.unique(label)) - {0}
        assert len(item.points) >= 1
        for value, points in item.points.items():
            assert len(points) == min(int((label == value).sum()), preparing.MAX_POINTS_PER_CLASS)
            assert all(label[tuple(point)] == value for point in points)


def test_points_of_a_large_structure_are_few_and_spread_over_it(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "MAX_POINTS_PER_CLASS", 5)

    for item in prepared_of(cache, NATIVE):
        assert item.label is not None
        everywhere = np.argwhere(read_array(item.label) == 1)
        points = item.points[1]
        assert len({tuple(point) for point in points}) == len(points) == 5
        assert np.array_equal(points[[0, -1]], everywhere[[0, -1]])


def test_a_second_call_writes_nothing(cache: Cache) -> None:
    first = prepared_of(cache, COARSE)
    before = files(cache)
    assert len(before) == 2 * 4  # per item: image, label, points and the record that makes them count

    second = prepared_of(cache, COARSE)

    assert files(cache) == before
    assert [item.image for item in second] == [item.image for item in first]
    assert [item.intensity for item in second] == [item.intensity for item in first]


def test_recipes_that_differ_in_intensity_share_the_voxels(cache: Cache) -> None:
    first = prepared_of(cache, COARSE, label_set=None)
    before = {name: time for name, time in files(cache).items() if name.endswith(".b2nd")}
    assert len(before) == 2

    second = prepared_of(cache, Preprocessing(window_hu=(0.0, 50.0), spacing_mm=SPACING), label_set=None)
    third = prepared_of(cache, Preprocessing(zscore=True, spacing_mm=SPACING), label_set=None)

    assert {name: files(cache)[name] for name in voxel_files(cache)} == before
    assert [item.image for item in first] == [item.image for item in second] == [item.image for item in third]
    assert len({items[0].intensity for items in (first, second, third)}) == 3


def test_pre_training_and_fine_tuning_share_the_image(cache: Cache) -> None:
    unlabelled = prepared_of(cache, COARSE, label_set=None)
    before = files(cache)

    labelled = prepared_of(cache, COARSE)

    assert [item.image for item in labelled] == [item.image for item in unlabelled]
    assert all(item.label is None and item.points == {} for item in unlabelled)
    assert {name: time for name, time in files(cache).items() if name in before} == before


def test_another_spacing_is_another_folder(cache: Cache) -> None:
    first = prepared_of(cache, COARSE, label_set=None)

    second = prepared_of(cache, Preprocessing(zscore=True, spacing_mm=(4.0, 4.0, 4.0)), label_set=None)

    assert {item.image.parents[1] for item in first}.isdisjoint(item.image.parents[1] for item in second)


def test_a_replaced_label_is_prepared_anew(cache: Cache) -> None:
    prepared_of(cache, COARSE)
    record = cache.records()[0]
    emptied = np.zeros(record.shape, np.uint8)
    emptied[:4] = 2
    drop_entry(cache.item_directory(record.item_id), "label-seg.json")
    with cache.writing():
        assert cache.add_label(record.item_id, "seg", Volume(emptied[None], record.affine_array), {1: "a", 2: "b"})

    item = next(item for item in prepared_of(cache, COARSE) if item.item_id == record.item_id)

    assert item.label is not None
    label = Volume(emptied[None], record.affine_array)
    assert np.array_equal(read_array(item.label), gridded(label, COARSE, is_label=True).voxels[0])
    assert set(item.points) == {2}


def test_what_was_deleted_is_made_again(cache: Cache) -> None:
    import shutil

    first = prepared_of(cache, COARSE)
    expected = [read_array(item.image) for item in first]
    shutil.rmtree(cache.root / "prepared")

    again = prepared_of(cache, COARSE)

    assert all(np.array_equal(read_array(item.image), voxels) for item, voxels in zip(again, expected, strict=True))


def test_progress_counts_up_to_all_items(cache: Cache) -> None:
    told: list[tuple[int, int]] = []

    prepare(cache, cache.records(), COARSE, num_workers=1, progress=lambda done, total: told.append((done, total)))

    assert told == [(1, 2), (2, 2)]


def test_a_damaged_image_is_an_error_and_the_others_stay(cache: Cache) -> None:
    good, bad = cache.records()
    cache.image_path(bad).write_bytes(b"nothing of the kind")

    with pytest.raises(GateError, match="E_CACHE_CORRUPT"):
        prepared_of(cache, COARSE)

    assert any(good.item_id in name for name in voxel_files(cache))
    assert not any(bad.item_id in name for name in files(cache))


def test_child_processes_prepare_the_same_files(cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone = [read_array(item.image) for item in prepared_of(cache, COARSE)]
    other = toy_cache(tmp_path / "other", num_patients=2, size=12)
    monkeypatch.setattr(prepared, "INLINE_LIMIT", 0)

    items = prepare(other, other.records(), COARSE, label_set="seg", num_workers=2)

    found = [read_array(item.image) for item in items]
    assert sorted(voxels.tobytes() for voxels in found) == sorted(voxels.tobytes() for voxels in alone)


TWO = (Channel(name="flair", zscore=True), Channel(name="t1", window_hu=(0.0, 200.0)))
GEOMETRIES: dict[str, dict[str, Any]] = {
    "native": {},
    "spacing": {"spacing_mm": SPACING},
    "fit": {"fit": (16, 24, 16)},
    "foreground": {"foreground_crop": True},
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Cache, Example]:
    """Two images of one patient: one of `toy_cache`, and one with other axes, fewer slices and a label map."""
    cache = toy_cache(tmp_path / "pair", num_patients=1, size=12)
    (first,) = cache.records()
    rng = np.random.default_rng(0)
    affine = np.array([[0, -2.0, 0, 22], [2.0, 0, 0, 0], [0, 0, 4.0, 1], [0, 0, 0, 1]])
    other = Volume(rng.integers(0, 200, (1, 12, 12, 6)).astype(np.int16), affine, "CT", "HU")
    record = first.model_copy(
        update={
            "item_id": cache.item_id(other),
            "series_key": cache.pseudonyms.of("series", "other"),
            "shape": other.shape,
            "affine": tuple(map(tuple, affine.tolist())),
            "labels": {},
        }
    )
    with cache.writing():
        assert cache.add(other, record)
        label = (other.voxels > 100).astype(np.uint8)
        assert cache.add_label(record.item_id, "marks", Volume(label, affine), {1: "bright"})
    return cache, Example((first, cache.record(record.item_id)))


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_images_of_an_example_are_prepared_on_one_grid(pair: tuple[Cache, Example], geometry: dict[str, Any]) -> None:
    cache, example = pair
    preprocessing = Preprocessing(channels=TWO, **geometry)
    first, other = (cache.read_image(record) for record in example.items)

    (item,) = prepare(cache, [example], preprocessing, label_set="marks", num_workers=1)

    expected = network_input([first, other], preprocessing)
    found = [channel.intensity.apply(read_array(channel.image)) for channel in item.channels]
    np.testing.assert_array_equal(np.stack(found), expected.voxels)
    assert item.item_id == example.items[0].item_id
    assert np.array_equal(item.affine, expected.placement.affine)
    label = brought_to(first, cache.read_label(example.items[1], "marks"), is_label=True)
    assert item.label is not None
    assert np.array_equal(read_array(item.label), expected.placement.labels(label.voxels)[0])
    assert set(item.points) == {1}
    crop = CropDataset([item], item.shape, batch_size=1, seed=0)[0, 0]
    np.testing.assert_array_equal(crop.image, expected.voxels)
    whole = read_whole(item, item.shape)
    np.testing.assert_array_equal(whole.numpy(), expected.voxels)
    middle = item.shape[2] // 2
    slices = read_slices(item, range(middle, middle + 1))
    np.testing.assert_array_equal(slices[0].numpy(), expected.voxels[..., middle])


def test_views_of_an_example_are_its_own_and_pass_the_audit(pair: tuple[Cache, Example]) -> None:
    cache, example = pair
    preprocessing = Preprocessing(channels=TWO, spacing_mm=SPACING)
    alone = prepare(cache, [example.items[1]], COARSE, label_set="marks", num_workers=1)[0]
    before = files(cache)

    item = prepare(cache, [example], preprocessing, label_set="marks", num_workers=1)[0]
    reverse = prepare(cache, [Example(example.items[::-1])], preprocessing, num_workers=1)[0]

    assert {name: time for name, time in files(cache).items() if name in before} == before
    images = {channel.image for each in (alone, item, reverse) for channel in each.channels}
    assert len(images) == 5
    assert audit_cache(cache.root).problems == {}
    ids = {record.item_id for record in example.items}
    assert {name.split("/")[-1][:26] for name in files(cache)} == ids  # so that they go when the item goes


def test_channels_that_are_not_there_are_refused(cache: Cache) -> None:
    with pytest.raises(UsageError, match="names 2 channels"):
        prepared_of(cache, Preprocessing(channels=TWO))
