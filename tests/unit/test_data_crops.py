"""Training crops: a function of (seed, step, slot) and of nothing else."""

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medssl_cli.cache.arrays import write_array
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.crops import (
    Crop,
    CropBatch,
    CropDataset,
    Share,
    StepSampler,
    collate,
    crop_loader,
    crop_start,
    item_of,
    read_crop,
)
from medssl_cli.imaging.preprocessing import Intensity

CROP = (4, 3, 5)
AS_IT_IS = Intensity(low=-(10**6), high=10**6, shift=0, scale=1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def prepared(
    folder: Path,
    name: str = "a",
    shape: tuple[int, int, int] = (9, 8, 7),
    *,
    dtype: str = "int16",
    intensity: Intensity = AS_IT_IS,
    offset: int = 0,
) -> PreparedItem:
    """An image whose voxel value is its own place, and a label map that says the same modulo 3."""
    voxels = np.arange(math.prod(shape)).reshape(shape) + offset
    label = (voxels % 3).astype(np.uint8)
    write_array(folder / f"{name}.b2nd", voxels.astype(dtype))
    write_array(folder / f"{name}-label.b2nd", label)
    points = {value: np.argwhere(label == value).astype(np.int32) for value in (1, 2)}
    return PreparedItem(
        name, shape, np.eye(4), intensity, folder / f"{name}.b2nd", folder / f"{name}-label.b2nd", points
    )


@pytest.mark.parametrize(("num_items", "batch_size"), [(1, 1), (5, 2), (7, 3), (4, 9)])
def test_every_epoch_shows_every_item_once(num_items: int, batch_size: int) -> None:
    num_samples = 12 * num_items * batch_size
    shown = [
        item_of(*divmod(sample, batch_size), batch_size=batch_size, num_items=num_items, seed=3)
        for sample in range(num_samples)
    ]

    epochs = [shown[first : first + num_items] for first in range(0, num_samples, num_items)]

    assert all(sorted(epoch) == list(range(num_items)) for epoch in epochs)
    if num_items >= 5:
        assert len(set(map(tuple, epochs))) > 1  # each epoch in its own order


def test_another_seed_is_another_order() -> None:
    orders = {tuple(item_of(step, 0, batch_size=1, num_items=20, seed=seed) for step in range(20)) for seed in range(5)}

    assert len(orders) == 5


def test_a_sample_is_a_function_of_seed_step_and_slot(tmp_path: Path) -> None:
    items = [prepared(tmp_path, name, offset=100 * index) for index, name in enumerate("abc")]

    def samples(seed: int, order: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[bytes, bytes, str]]:
        dataset = CropDataset(items, CROP, batch_size=4, seed=seed, foreground_prob=0.5)
        found = {}
        for index in order:
            image, label, item_id, _ = dataset[index]
            assert label is not None
            found[index] = (image.tobytes(), label.tobytes(), item_id)
        return found

    forwards = [(step, slot) for step in range(5) for slot in range(4)]
    first = samples(0, forwards)

    assert samples(0, forwards[::-1]) == first  # whatever was asked for before
    assert samples(1, forwards) != first
    assert len(set(first.values())) > 10


def test_image_and_label_are_the_same_box(tmp_path: Path) -> None:
    dataset = CropDataset([prepared(tmp_path)], CROP, batch_size=1, seed=0, foreground_prob=0.5)

    for step in range(20):
        image, label, item_id, _ = dataset[step, 0]
        assert item_id == "a"
        assert image.shape == (1, *CROP)
        assert image.dtype == np.float32
        assert np.array_equal(image[0].astype(int) % 3, label)
        # A box of the image: along each axis the places differ by that axis's stride in (9, 8, 7).
        assert [np.unique(np.diff(image[0], axis=axis)).tolist() for axis in range(3)] == [[56], [7], [1]]


def test_crops_reach_every_place_equally_often(tmp_path: Path) -> None:
    item = prepared(tmp_path)
    random = rng()

    starts = Counter(crop_start(item, CROP, random, foreground_prob=0)[0] for _ in range(6000))

    # 9 - 4 + 1 = 6 starts along x, each 1000 times give or take 5 sqrt(6000 * 1/6 * 5/6).
    assert sorted(starts) == list(range(6))
    assert all(abs(count - 1000) < 5 * math.sqrt(6000 * 5 / 36) for count in starts.values())


def test_foreground_crops_contain_a_voxel_of_a_random_class(tmp_path: Path) -> None:
    rare = np.array([[8, 7, 6]], dtype=np.int32)  # the last voxel of the image
    common = np.argwhere(np.ones((2, 8, 7))).astype(np.int32)
    item = PreparedItem("a", (9, 8, 7), np.eye(4), AS_IT_IS, tmp_path, None, {1: common, 5: rare})
    random = rng()

    starts = [crop_start(item, CROP, random, foreground_prob=1) for _ in range(400)]

    shows_rare = [start == (5, 5, 2) for start in starts]  # the only crop that holds the last voxel
    assert 150 < sum(shows_rare) < 250  # one class in two, 200 give or take 5 sqrt(100)
    assert all(is_rare or start[0] <= 1 for is_rare, start in zip(shows_rare, starts, strict=True))
    assert all(0 <= x <= 5 and 0 <= y <= 5 and 0 <= z <= 2 for x, y, z in starts)  # the crop stays inside


def test_without_points_foreground_crops_are_random_crops(tmp_path: Path) -> None:
    item = PreparedItem("a", (9, 8, 7), np.eye(4), AS_IT_IS, tmp_path, None, {})

    first = [crop_start(item, CROP, rng(seed), foreground_prob=1) for seed in range(9)]

    assert first == [crop_start(item, CROP, rng(seed), foreground_prob=0) for seed in range(9)]


@pytest.mark.parametrize(("size", "start"), [(8, 0), (7, -1), (6, -1), (5, -2), (1, -4)])
def test_an_image_smaller_than_the_crop_lies_in_its_middle(tmp_path: Path, size: int, start: int) -> None:
    item = PreparedItem("a", (size, 8, 8), np.eye(4), AS_IT_IS, tmp_path, None, {})

    found = crop_start(item, (8, 8, 8), rng(), foreground_prob=0)

    assert found == (start, 0, 0)
    before, after = -start, 8 - size + start
    assert 0 <= before - after <= 1


def test_padding_repeats_the_border_or_a_value() -> None:
    array = np.array([1, 2, 3], dtype=np.int16).reshape(3, 1, 1)

    def read(pad_value: float | None) -> list[float]:
        crop = read_crop(array, (-2, 0, 0), (6, 1, 1), pad_value=pad_value)
        assert crop.shape == (6, 1, 1)
        return crop.ravel().tolist()

    assert read(None) == [1, 1, 1, 2, 3, 3]
    assert read(0) == [0, 0, 1, 2, 3, 0]
    assert read(-7.5) == [-7.5, -7.5, 1, 2, 3, -7.5]


def test_a_label_keeps_its_dtype_through_padding() -> None:
    crop = read_crop(np.ones((1, 1, 1), np.uint8), (-1, 0, 0), (3, 1, 1), pad_value=0)

    assert crop.dtype == np.uint8


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_air_outside_of_an_image_is_the_low_end_whatever_the_dtype(tmp_path: Path, dtype: str) -> None:
    window = Intensity(low=-175, high=250, shift=-175, scale=1 / 425)
    item = prepared(tmp_path, shape=(2, 2, 2), dtype=dtype, intensity=window)
    dataset = CropDataset([item], (4, 2, 2), batch_size=1, seed=0, pad_with_low=True)

    image = dataset[0, 0].image

    assert np.array_equal(image[0, [0, 3]], np.zeros((2, 2, 2), np.float32))  # -175 HU becomes 0
    np.testing.assert_allclose(image[0, 1:3].ravel(), (np.arange(8) + 175) / 425, rtol=1e-5)


def test_labels_outside_of_an_image_are_background(tmp_path: Path) -> None:
    dataset = CropDataset([prepared(tmp_path, shape=(2, 2, 2))], (4, 2, 2), batch_size=1, seed=0)

    label = dataset[0, 0].label

    assert label is not None
    assert label[[0, 3]].sum() == 0
    assert label[1:3].ravel().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_processes_share_a_step_without_overlap_and_begin_where_told() -> None:
    ranks = [list(StepSampler(3, 5, 2, rank=rank)) for rank in range(2)]

    assert ranks == [[[(3, 0), (3, 1)], [(4, 0), (4, 1)]], [[(3, 2), (3, 3)], [(4, 2), (4, 3)]]]
    assert len(StepSampler(3, 5, 2)) == 2


def test_batches_are_stacked_with_or_without_labels(tmp_path: Path) -> None:
    items = [prepared(tmp_path, name) for name in "ab"]
    dataset = CropDataset(items, CROP, batch_size=2, seed=0)

    batch = collate([dataset[0, 0], dataset[0, 1]])

    assert (batch.images.shape, batch.images.dtype) == ((2, 1, *CROP), torch.float32)
    assert batch.labels is not None
    assert (batch.labels.shape, batch.labels.dtype) == ((2, *CROP), torch.int64)
    assert sorted(batch.item_ids) == ["a", "b"]
    assert collate([Crop(np.zeros((1, *CROP), np.float32), None, "a", (1.0, 1.0, 1.0))]).labels is None


def test_resuming_gives_the_batches_that_were_still_to_come(tmp_path: Path) -> None:
    dataset = CropDataset([prepared(tmp_path, name) for name in "abc"], CROP, batch_size=2, seed=0)

    whole = list(crop_loader(dataset, first_step=0, num_steps=6, batch_size=2, num_workers=0))
    rest = list(crop_loader(dataset, first_step=4, num_steps=6, batch_size=2, num_workers=0))

    assert (len(whole), len(rest)) == (6, 2)
    for before, after in zip(whole[4:], rest, strict=True):
        assert torch.equal(before.images, after.images)
        assert before.item_ids == after.item_ids


def test_labelled_crops_come_beside_the_batch_the_same_for_any_start_and_number_of_processes(tmp_path: Path) -> None:
    plain = [replace(prepared(tmp_path, f"p{index}"), label=None) for index in range(3)]
    dataset = CropDataset(plain, CROP, batch_size=4, seed=0)
    labelled = CropDataset([prepared(tmp_path, f"l{index}") for index in range(2)], (2, 2, 2), batch_size=2, seed=1)

    def batches(first: int, size: int, rank: int) -> list[tuple[CropBatch, CropBatch]]:
        share = Share(labelled, 2 // size)
        loader = crop_loader(
            dataset, first_step=first, num_steps=3, batch_size=4 // size, num_workers=0, rank=rank, labelled=share
        )
        return [(batch, batch.labelled) for batch in loader]

    whole = batches(0, 1, 0)

    assert len(whole) == 3
    for step, (batch, beside) in enumerate(whole):
        assert batch.labels is None
        for slot in range(4):
            assert np.array_equal(batch.images[slot], dataset[step, slot].image)
        for slot in range(2):
            crop = labelled[step, slot]
            assert np.array_equal(beside.images[slot], crop.image)
            assert np.array_equal(np.asarray(beside.labels)[slot], np.asarray(crop.label))
    (later, later_beside), (same, same_beside) = batches(2, 1, 0)[0], whole[2]
    assert torch.equal(later.images, same.images)
    assert torch.equal(later_beside.images, same_beside.images)
    for one, *halves in zip(whole, batches(0, 2, 0), batches(0, 2, 1), strict=True):
        for kind in (0, 1):
            assert torch.equal(torch.cat([half[kind].images for half in halves]), one[kind].images)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end a process with its parent")
@pytest.mark.parametrize(("parent", "said"), [("os.getppid()", b"at work\n"), ("os.getpid()", b"")])
def test_a_reader_whose_parent_is_gone_already_ends(parent: str, said: bytes) -> None:
    """torch takes whoever adopted it for its parent, and would wait for work for ever."""
    code = f"import os; from medssl_cli.data.loading import _serve; _serve(0, parent={parent}); print('at work')"

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0 if said else 1, said, b"")


def test_neighbouring_crops_are_of_one_image_and_an_epoch_shows_each_image_once(tmp_path: Path) -> None:
    items = [prepared(tmp_path, name, offset=1000 * place) for place, name in enumerate("abcdef")]
    dataset = CropDataset(items, (4, 4, 4), batch_size=6, seed=1, crops_per_image=3)

    drawn = [[dataset[step, slot] for slot in range(6)] for step in range(3)]

    names = [[crop.item_id for crop in step] for step in drawn]
    assert all(len(set(step[:3])) == len(set(step[3:])) == 1 for step in names)
    assert Counter(name for step in names for name in step) == dict.fromkeys({item.item_id for item in items}, 3)
    assert len({crop.image.tobytes() for step in drawn for crop in step}) > 6
