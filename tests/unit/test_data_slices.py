"""Images and stacks of slices: numbers, balance, turns and windows, and what a slice looks like on its square."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medssl_cli.base.errors import GateError
from medssl_cli.cache.arrays import write_array
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.slices import (
    ImageIndex,
    SliceDataset,
    StepPlan,
    collate,
    everything_loader,
    read_slices,
    slice_loader,
)
from medssl_cli.imaging.preprocessing import Intensity
from medssl_cli.imaging.stacks import choose_window

AS_IT_IS = Intensity(low=-(10**6), high=10**6, shift=0, scale=1)


def item(folder: Path, name: str, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> PreparedItem:
    """An image whose slice k has the value k everywhere, and 100 more at one corner."""
    voxels = np.broadcast_to(np.arange(shape[2]), shape).astype(np.int16).copy()
    voxels[0, 0] += 100
    write_array(folder / f"{name}.b2nd", voxels)
    return PreparedItem(name, shape, np.diag([*spacing, 1.0]), AS_IT_IS, folder / f"{name}.b2nd", None, {})


def index(num_pictures: int, num_volumes: int, *, balance: float = 0.5, per_volume: int = 4) -> ImageIndex:
    are_volumes = [False] * num_pictures + [True] * num_volumes
    groups = ["DX"] * num_pictures + ["CT"] * num_volumes
    return ImageIndex(are_volumes, groups, per_volume=per_volume, balance=balance, seed=3)


def test_every_image_has_one_number_and_is_found_by_it() -> None:
    images = index(3, 2)

    found = [images.find(place) for place in range(len(images))]

    assert found == [(0, 0, 1), (1, 0, 1), (2, 0, 1), *((3, part, 4) for part in range(4)),
                     *((4, part, 4) for part in range(4))]  # fmt: skip


@pytest.mark.parametrize(("balance", "shares"), [(1.0, (90, 40)), (0.0, (65, 65)), (0.5, (78, 52))])
def test_modalities_are_drawn_in_balanced_shares(balance: float, shares: tuple[int, int]) -> None:
    images = index(90, 10, balance=balance)

    drawn = Counter(images.place_of(draw) < 90 for draw in range(images.epoch_length))

    assert (drawn[True], drawn[False]) == shares


def test_a_few_images_are_not_worn_out() -> None:
    images = index(1000, 1, balance=0.0, per_volume=2)

    drawn = Counter(images.place_of(draw) for draw in range(images.epoch_length))

    assert max(drawn[place] for place in (1000, 1001)) == 4  # instead of half of all draws


def test_over_epochs_all_images_of_a_group_are_shown_equally_often() -> None:
    images = index(30, 2, balance=0.5)

    drawn = Counter(images.place_of(draw) for draw in range(7 * images.epoch_length))

    for group in (range(30), range(30, 38)):
        counts = [drawn[place] for place in group]
        assert max(counts) - min(counts) <= 1


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 2**31))
def test_a_window_lies_in_the_volume_and_its_slices_equally_far_apart(slices: int, most: int, seed: int) -> None:
    window = choose_window(slices, most, np.random.default_rng(seed))

    assert 0 <= window[0] <= window[-1] < slices
    assert 1 <= len(window) <= most
    assert len(window) == min(most, slices) or window.step > 1


@given(st.integers(1, 300), st.integers(1, 64))
def test_without_chance_a_window_covers_the_volume(slices: int, most: int) -> None:
    window = choose_window(slices, most, None)

    assert window[0] < window.step
    assert slices - window[-1] <= window.step


def test_turns_are_shared_and_count_their_own_kind() -> None:
    plan = StepPlan(batch_size=8, volume_batch_size=2, every=3)

    assert [plan.turn(step) for step in range(7)] == [
        (False, 0), (False, 1), (True, 0), (False, 2), (False, 3), (True, 1), (False, 4),
    ]  # fmt: skip
    assert [plan.size(step) for step in range(3)] == [8, 8, 2]
    assert [plan.shown(step, are_volumes=True) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert [plan.shown(step, are_volumes=False) for step in range(7)] == [0, 1, 2, 2, 3, 4, 4]
    assert StepPlan(8).turn(5) == (False, 5)
    assert StepPlan(8, 2, 1).turn(5) == (True, 5)


def dataset(folder: Path) -> tuple[SliceDataset, ImageIndex, StepPlan]:
    items = [item(folder, f"picture{n}", (12, 12, 1), (1, 1, 1)) for n in range(5)]
    items += [item(folder, f"volume{n}", (12, 12, 5 + 6 * n), (1, 1, 2.5)) for n in range(3)]
    images = index(5, 3)
    plan = StepPlan(batch_size=4, volume_batch_size=2, every=2)
    return SliceDataset(items, images, plan, max_slices=6, seed=1), images, plan


@pytest.mark.parametrize("num_workers", [0, 1])
def test_processes_share_what_one_sees(num_workers: int, tmp_path: Path) -> None:
    data, _, plan = dataset(tmp_path)

    whole = list(slice_loader(data, plan, range(4), num_workers=0))
    parts = [
        list(slice_loader(data, plan, range(4), num_workers=num_workers, rank=rank, num_processes=2)) for rank in (0, 1)
    ]

    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert batch.are_volumes == (step % 2 == 1)
        assert torch.equal(torch.cat([share.places for share in shares]), batch.places)
        slices = [share.images[row][share.is_present[row]] for share in shares for row in range(len(share.images))]
        expected = [images[present] for images, present in zip(batch.images, batch.is_present, strict=True)]
        assert all(torch.equal(one, other) for one, other in zip(slices, expected, strict=True))


def test_places_in_mm_belong_to_the_slices(tmp_path: Path) -> None:
    data, _, _ = dataset(tmp_path)

    for seed in range(20):
        stack = data.volume(2, np.random.default_rng(seed))
        shown = stack.images[:, 0, 6, 6]  # the number of the slice
        torch.testing.assert_close(stack.positions_mm, 2.5 * shown)


def test_a_range_shows_its_own_slices(tmp_path: Path) -> None:
    data, images, _ = dataset(tmp_path)

    for place in range(5, len(images)):
        number, part, parts = images.find(place)
        slices = 5 + 6 * (number - 5)
        shown = {int(data.image(place, np.random.default_rng(seed)).images[0, 0, 6, 6]) for seed in range(30)}
        assert all(int(part * slices / parts) <= each <= (part + 1) * slices / parts for each in shown)


def test_shorter_stacks_are_padded(tmp_path: Path) -> None:
    data, _, _ = dataset(tmp_path)

    batch = collate([data.volume(place, None) for place in (0, 2)])

    assert batch.is_present.sum(1).tolist() == [5, 6]
    assert (batch.images[0, 5] == 0).all()
    assert batch.are_volumes


def test_everything_is_shown_once_and_a_few_twice(tmp_path: Path) -> None:
    data, images, _ = dataset(tmp_path)

    seen = [
        batch.places
        for rank in (0, 1)
        for batch in everything_loader(data, images, 3, are_volumes=False, num_workers=0, rank=rank, num_processes=2)
    ]

    counts = Counter(torch.cat(seen).tolist())
    assert set(counts) == set(range(len(images)))
    assert sum(counts.values()) == 18  # the next multiple of both batches
    assert all(len(batch) == 3 for batch in seen)


def test_a_damaged_image_is_refused(tmp_path: Path) -> None:
    broken = item(tmp_path, "broken", (12, 12, 4), (1, 1, 1))
    data = bytearray(broken.image.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    broken.image.write_bytes(data)

    with pytest.raises(GateError):
        read_slices(broken, range(4))
