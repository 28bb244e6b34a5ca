"""Windows of prepared images: where they lie, what they show, and that they are functions of seed, step and slot."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medssl_cli.cache.arrays import write_array
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.loading import step_loader
from medssl_cli.data.placed_views import PlacedAugmentation, PlacedCrops
from medssl_cli.data.slices import ImageIndex
from medssl_cli.data.windows import WindowDataset, collate_windows
from medssl_cli.imaging.foreground import foreground_box
from medssl_cli.imaging.placement import placement_of
from medssl_cli.imaging.preprocessing import Intensity
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing

AS_IT_IS = Intensity(low=-(10**6), high=10**6, shift=0, scale=1)
SHAPE = (30, 24, 8)
LOW, HIGH = (6, 4, 1), (25, 20, 7)
AFFINE = np.array([[-1.0, 0, 0, 50], [0, 1, 0, -20], [0, 0, 4, 9], [0, 0, 0, 1]])


def item(folder: Path, name: str = "one") -> PreparedItem:
    """A dark image with a bright box, brighter from voxel to voxel."""
    voxels = np.zeros(SHAPE, dtype=np.float32)
    body = tuple(slice(low, high) for low, high in zip(LOW, HIGH, strict=True))
    voxels[body] = 1000 + np.arange(np.prod(SHAPE)).reshape(SHAPE)[body] / 100
    write_array(folder / f"{name}.b2nd", voxels)
    return PreparedItem(name, SHAPE, AFFINE, AS_IT_IS, folder / f"{name}.b2nd", None, {})


def dataset(folder: Path, size: tuple[int, int, int], **law: object) -> WindowDataset:
    items = [item(folder, name) for name in ("one", "two", "three")]
    crops = PlacedCrops(1, size, PlacedAugmentation.model_validate(law), slices_per_volume=4)
    index = ImageIndex([crops.is_flat] * 3, ["MR"] * 3, per_volume=4, balance=0.5, seed=3)
    return WindowDataset(items, index, crops, batch_size=4, seed=5)


def test_the_box_of_the_foreground_is_that_of_what_is_bright() -> None:
    voxels = np.zeros(SHAPE)
    voxels[6:25, 4:20, 1:7] = 100
    voxels[0, 0, 0] = 500  # one bright voxel far outside

    assert foreground_box(voxels) == (LOW, HIGH)
    assert foreground_box(np.full(SHAPE, 7)) == ((0, 0, 0), SHAPE)
    turned = foreground_box(voxels[::-1].transpose(1, 0, 2))
    assert turned == ((4, 30 - 25, 1), (20, 30 - 6, 7))


@pytest.mark.parametrize("size", [(10, 8, 1), (10, 8, 4)])
def test_a_window_shows_the_voxels_that_its_affine_names(size: tuple[int, int, int], tmp_path: Path) -> None:
    windows = dataset(tmp_path, size)
    image = windows._items[0]
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE)[6:25, 4:20, 1:7]
    assert voxels.size

    for step in range(2):
        sample = windows[step, 1]
        to_index = np.linalg.inv(image.affine) @ sample.window.affines[0].numpy()
        first = np.rint(to_index[:3, 3]).astype(int)
        np.testing.assert_allclose(to_index[:3, :3], np.eye(3), atol=1e-9)
        for place in np.ndindex(*sample.image.shape[1:]):
            i, j, k = first + place
            inside = 6 <= i < 25 and 4 <= j < 20 and 1 <= k < 7
            expected = 1000 + np.ravel_multi_index((i, j, k), SHAPE) / 100 if inside else 0
            if all(0 <= at < extent for at, extent in zip((i, j, k), SHAPE, strict=True)):
                assert sample.image[(0, *place)].item() == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize(("box", "low", "high"), [("foreground", LOW, HIGH), ("field", (0, 0, 0), SHAPE)])
def test_the_sides_of_the_reference_box_lie_at_minus_one_and_one(
    box: str, low: tuple[int, ...], high: tuple[int, ...], tmp_path: Path
) -> None:
    window = dataset(tmp_path, (10, 8, 4), box=box)[0, 0].window

    for corner, value in ((low, -1), (high, 1)):
        point = torch.from_numpy(AFFINE @ np.array([*(end - 0.5 for end in corner), 1.0]))
        assert (window.boxes[0] @ point)[:3].tolist() == pytest.approx([value] * 3)
    corner = torch.from_numpy(AFFINE @ np.array([*(end - 0.5 for end in SHAPE), 1.0]))
    assert (window.fields[0] @ corner)[:3].tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
def test_centres_lie_about_the_middle_of_the_box(shift: float, tmp_path: Path) -> None:
    found = dataset(tmp_path, (10, 8, 4), shift=shift).sample(60)

    points = torch.cat([found.centres, torch.ones(60, 1)], dim=1)
    places = (found.boxes @ points[..., None])[:, :3, 0]
    assert places.abs().max() <= 2 * shift + 1e-9
    assert places.abs().max() >= 1.6 * shift
    assert torch.equal(found.affines, dataset(tmp_path, (10, 8, 4), shift=shift).sample(60).affines)


def test_slices_are_named_by_their_numbers(tmp_path: Path) -> None:
    flat = dataset(tmp_path, (10, 8, 1))

    for slot in range(4):
        window = flat[0, slot].window
        height = (torch.linalg.inv(torch.from_numpy(AFFINE)) @ window.affines[0])[2, 3].item()
        assert height == pytest.approx(window.slice_numbers.item())
        assert window.num_slices.item() == 8


def test_processes_share_what_one_reads(tmp_path: Path) -> None:
    windows = dataset(tmp_path, (10, 8, 1))

    def batches(rank: int, size: int) -> list[torch.Tensor]:
        shown = {"first_step": 2, "num_steps": 4, "batch_size": size, "num_workers": 0, "rank": rank}
        return [batch.images for batch in step_loader(windows, collate_windows, **shown)]

    whole, halves = batches(0, 4), [batches(rank, 2) for rank in range(2)]
    assert len(whole) == 2
    for number, images in enumerate(whole):
        assert torch.equal(torch.cat([half[number] for half in halves]), images)


@pytest.mark.parametrize("box", ["foreground", "field"])
def test_the_orientation_of_the_file_changes_no_place(box: str, tmp_path: Path) -> None:
    """One volume stored in two orders of its axes: a point of the body has one place in the reference box."""
    voxels = np.zeros((1, *SHAPE), dtype=np.float32)
    voxels[0, 6:25, 4:20, 1:7] = 100
    turned = voxels[:, :, ::-1].transpose(0, 2, 3, 1)
    to_first = np.array([[0, 0, 1, 0], [-1, 0, 0, SHAPE[1] - 1], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # indices to indices
    point = torch.from_numpy(AFFINE @ np.array([9.0, 11, 3, 1]))
    found = []
    for number, (stored, affine) in enumerate(((voxels, AFFINE), (turned, AFFINE @ to_first))):
        placement = placement_of([Volume(stored, affine, "MR")], Preprocessing(zscore=True))
        prepared = placement.filled(placement.sampled(stored), outside=0)[0]
        path = tmp_path / f"{number}.b2nd"
        write_array(path, prepared)
        known = PreparedItem(str(number), placement.shape, placement.affine, AS_IT_IS, path, None, {})
        crops = PlacedCrops(1, (10, 8, 1), PlacedAugmentation(box=box))
        index = ImageIndex([True], ["MR"], per_volume=4, balance=0.5, seed=3)
        window = WindowDataset([known], index, crops, batch_size=1, seed=5)[0, 0].window
        found.append((window.boxes[0] @ point)[:3])

    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
