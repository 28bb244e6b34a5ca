"""Views that know where they lie, against points that are followed one by one."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medssl_cli.base.errors import UsageError
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.placed_views import (
    PlacedAugmentation,
    PlacedCrops,
    PlacedWindows,
    ViewPlaces,
    cut_placed,
    draw_affines,
    features_at,
    sampled,
)
from medssl_cli.data.views import ViewRequest, make_views
from tests.placed_windows import AFFINE, windows_of

PLAIN = {"gamma_range": (1.0, 1.0), "contrast": 0.0, "brightness": 0.0, "noise_std": 0.0}
STILL = PlacedAugmentation(zoom=(1.0, 1.0), rotate_degrees=0, tilt_degrees=0, **PLAIN)
FREE = PlacedAugmentation(rotate_degrees=25, tilt_degrees=12, apart=0.2, **PLAIN)
SQUARES = np.diag([1.5, 1.5, 1.5, 1.0])
FLAT, VOLUME = (12, 8, 1), (10, 6, 8)
each_size = pytest.mark.parametrize("size", [FLAT, VOLUME])


def draws(seed: int = 0, shard: tuple[int, int] = (0, 1)) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), *shard)


def heights(windows: PlacedWindows, shape: tuple[int, int, int]) -> Tensor:
    """Windows that show, as three channels, where in the world each of their voxels lies."""
    index = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij"), dim=-1)
    points = index.flatten(0, 2) @ windows.affines[:, :3, :3].mT + windows.affines[:, None, :3, 3]
    return points.mT.unflatten(2, shape).float()


def centres_of(places: ViewPlaces) -> Tensor:
    """RAS mm of all voxel centres of views, [N, X * Y * Z, 3], index by index."""
    index = torch.tensor(list(np.ndindex(*places.size)), dtype=torch.float64)
    ones = torch.ones(len(index), 1, dtype=torch.float64)
    return (torch.cat([index, ones], dim=1) @ places.affines.mT)[..., :3]


@each_size
def test_a_view_shows_what_lies_where_its_affine_says(size: tuple[int, int, int]) -> None:
    crops = PlacedCrops(2, size, FREE)
    windows = windows_of(crops, 3, affine=SQUARES)

    views, places = cut_placed(heights(windows, crops.window), windows, crops, draws())

    assert places.is_shown.all()
    shown = views.flatten(2).mT.double()
    expected = centres_of(places)
    axes = 2 if size[2] == 1 else 3  # a turned view of one slice shows that slice
    torch.testing.assert_close(shown[..., :axes], expected[..., :axes], atol=1e-3, rtol=0)


@each_size
def test_nothing_drawn_is_the_middle_of_the_window_as_it_is(size: tuple[int, int, int]) -> None:
    crops = PlacedCrops(1, size, STILL)
    windows = windows_of(crops, 2)
    images = torch.rand(2, 1, *crops.window, generator=torch.Generator().manual_seed(1))

    views, _ = cut_placed(images, windows, crops, draws())

    middle = images
    for axis, (extent, whole) in enumerate(zip(size, crops.window, strict=True)):
        middle = middle.narrow(2 + axis, (whole - extent) // 2, extent)
    torch.testing.assert_close(views, middle[..., 0] if size[2] == 1 else middle, atol=1e-5, rtol=1e-5)


def test_a_turn_and_a_zoom_put_pixels_where_vector_1_has_them() -> None:
    """20 degrees, zoom 1.25, shift (0.1, -0.2) of a view that would cover a field of 4 x 4 pixels of 1 mm."""
    angle, zoom = math.radians(20), 1.25
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:2, :2] = turn / zoom
    middle = torch.tensor([1.5, 1.5], dtype=torch.float64) + torch.tensor([0.1, -0.2]) * 2
    affine[:2, 3] = middle - affine[:2, :2] @ torch.tensor([1.5, 1.5], dtype=torch.float64)
    crops = PlacedCrops(1, (4, 4, 1), STILL)
    box = torch.diag(torch.tensor([0.5, 0.5, 2.0, 1.0], dtype=torch.float64))
    box[:3, 3] = torch.tensor([-0.75, -0.75, 0.0])
    one = torch.ones(1).long()
    windows = PlacedWindows(torch.eye(4)[None].double(), torch.zeros(1, 3), box[None], box[None], 0 * one, one)

    found = ViewPlaces(affine[None], crops.size, windows, torch.ones(1, 4, 4, dtype=torch.bool)).in_box()

    assert found[0, 0, 0, :2].tolist() == pytest.approx([-0.25860349, -0.96902766], abs=1e-6)
    assert found[0, 3, 0, :2].tolist() == pytest.approx([0.86902767, -0.55860349], abs=1e-6)


def test_turns_are_turns_in_millimetres() -> None:
    """Of a grid with unequal spacing a turned view keeps its right angles, and its sides their millimetres."""
    spacing = np.diag([1.0, 3.0, 2.0, 1.0])
    crops = PlacedCrops(4, (8, 6, 1), PlacedAugmentation(zoom=(1, 1), rotate_degrees=90, **PLAIN))

    linear = draw_affines(windows_of(crops, 8, affine=spacing), crops, draws())[:, :3, :3]

    found = linear.mT @ linear
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.0, 9.0, 4.0])).double().expand_as(found))
    assert linear[:, 1, 0].abs().max() > 0.9  # and they do turn


@pytest.mark.parametrize(("spacing", "normal"), [((1.0, 1.0, 2.5), 2), ((5.0, 1.0, 1.0), 0), ((1.0, 1.0, 1.0), None)])
def test_thick_slices_stay_in_their_planes(spacing: tuple[float, ...], normal: int | None) -> None:
    crops = PlacedCrops(1, (8, 8, 8), PlacedAugmentation(rotate_degrees=30, tilt_degrees=30, zoom=(1, 1), **PLAIN))
    affines = draw_affines(windows_of(crops, 20, affine=np.diag([*spacing, 1.0])), crops, draws())

    directions = affines[:, :3, :3] / torch.tensor(spacing)
    leaves = [(directions[:, axis, axis] - 1).abs().max() > 1e-6 for axis in range(3)]
    assert leaves == [axis != normal for axis in range(3)]


def test_zooms_cover_their_range_evenly_on_a_logarithmic_scale() -> None:
    crops = PlacedCrops(50, (8, 8, 1), PlacedAugmentation(zoom=(0.5, 2.0), rotate_degrees=0))
    steps = draw_affines(windows_of(crops, 20, affine=SQUARES), crops, draws())[:, 0, 0] / 1.5

    assert 0.5 <= steps.min() < 0.52
    assert 1.92 < steps.max() <= 2.0
    assert abs(steps.log().mean()) < 0.05


@pytest.mark.parametrize(("flip_prob", "signs"), [(0.0, {1.0}), (1.0, {-1.0}), (0.5, {1.0, -1.0})])
def test_left_and_right_change_places_only_where_it_is_asked_for(flip_prob: float, signs: set[float]) -> None:
    crops = PlacedCrops(1, (8, 8, 1), STILL.model_copy(update={"flip_prob": flip_prob}))
    affines = draw_affines(windows_of(crops, 30, affine=SQUARES), crops, draws())

    assert set(affines[:, 0, 0].sign().tolist()) == signs
    assert set(affines[:, 2, 2].sign().tolist()) == {1.0}  # a slice is not turned over


@each_size
def test_processes_draw_what_one_draws(size: tuple[int, int, int]) -> None:
    crops = PlacedCrops(2, size, PlacedAugmentation(apart=0.1))
    windows = windows_of(crops, 4)
    images = torch.rand(4, 1, *crops.window, generator=torch.Generator().manual_seed(1))

    whole, places = cut_placed(images, windows, crops, draws())
    halves = []
    for rank in range(2):
        own = slice(2 * rank, 2 * rank + 2)
        part = PlacedWindows(*(getattr(windows, name)[own] for name in windows.__dataclass_fields__))
        halves.append(cut_placed(images[own], part, crops, draws(shard=(rank, 2))))

    views = torch.cat([half.unflatten(0, (2, 2)) for half, _ in halves], dim=1).flatten(0, 1)
    affines = torch.cat([half.affines.unflatten(0, (2, 2)) for _, half in halves], dim=1).flatten(0, 1)
    torch.testing.assert_close(views, whole)
    torch.testing.assert_close(affines, places.affines)


@each_size
def test_the_same_points_have_the_same_features_in_both_views(size: tuple[int, int, int]) -> None:
    """Views of one image of which each voxel is where it lies: matched points agree."""
    law = PlacedAugmentation(zoom=(0.8, 1.2), rotate_degrees=30, apart=0.1, **PLAIN)
    crops = PlacedCrops(2, size, law)
    windows = windows_of(crops, 2, affine=SQUARES)
    views, places = cut_placed(heights(windows, crops.window), windows, crops, draws(2))
    seeds = torch.rand(4, 20, 3, generator=torch.Generator().manual_seed(3)) - 0.5
    seeds[..., 2] *= size[2] > 1

    points = places.to_world(seeds)

    torch.testing.assert_close(places.to_view(points), seeds.double())
    there = points.unflatten(0, (2, 2)).flip(0).flatten(0, 1)  # the points of view 1 in view 2 and the reverse
    axes = 2 if size[2] == 1 else 3
    for at in (points, there):
        seen = features_at(views, places.to_view(at)).double()
        inside = (places.to_view(at).abs() < 0.75).all(dim=2)
        assert inside.float().mean() > 0.5
        torch.testing.assert_close(seen[inside][:, :axes], at[inside][:, :axes], atol=1e-3, rtol=0)
    assert places.in_field(points).all()
    assert not places.in_field(points + 1000).any()


def test_what_lies_beyond_the_image_or_the_window_is_not_shown() -> None:
    crops = PlacedCrops(1, (8, 8, 1), STILL)
    windows = windows_of(crops, 1, affine=SQUARES, margin=0)  # the image is the window, 10 x 10
    far = PlacedWindows(windows.affines, windows.centres + torch.tensor([4.5, 0, 0]), *list(vars(windows).values())[2:])

    _, places = cut_placed(torch.rand(1, 1, *crops.window), far, crops, draws())

    assert crops.window == (10, 10, 1)
    assert places.is_shown[0].sum(dim=1).tolist() == [8] * 6 + [0] * 2  # 3 voxels to the side, of which there was one


@pytest.mark.parametrize("size", [(12, 8, 1), (10, 6, 8), (6, 20, 4)])
def test_windows_are_large_enough_for_every_view(size: tuple[int, int, int]) -> None:
    law = PlacedAugmentation(zoom=(0.6, 1.0), rotate_degrees=35, tilt_degrees=20, apart=0.3)
    crops = PlacedCrops(30, size, law)

    _, places = cut_placed(torch.zeros(20, 1, *crops.window), windows_of(crops, 20, affine=SQUARES), crops, draws())

    assert places.is_shown.all()


def test_intensities_change_and_places_do_not() -> None:
    still, changing = PlacedCrops(1, FLAT, FREE), PlacedCrops(1, FLAT, FREE.model_copy(update={"contrast": 0.5}))
    windows = windows_of(still, 3)
    images = torch.rand(3, 1, *still.window, generator=torch.Generator().manual_seed(1))
    before = images.clone()

    plain, places = cut_placed(images, windows, still, draws())
    changed, same = cut_placed(images, windows, changing, draws())

    torch.testing.assert_close(changed.mean(dim=(2, 3)), plain.mean(dim=(2, 3)))  # contrast is about the mean
    assert not torch.allclose(changed, plain)
    assert torch.equal(places.affines, same.affines)
    assert torch.equal(images, before)


def test_a_resampled_image_keeps_its_border() -> None:
    images = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 1)
    shift = torch.eye(4).double()[None]
    shift[0, 0, 3] = 2

    assert sampled(images, shift, (4, 1, 1))[0, 0, :, 0, 0].tolist() == pytest.approx([2, 3, 3, 3])


def test_windows_of_another_size_are_refused() -> None:
    crops = PlacedCrops(1, FLAT, STILL)
    request = ViewRequest(FLAT, placed=crops)

    with pytest.raises(UsageError, match="boxes of"):
        make_views(request, torch.zeros(1, 1, 5, 5, 1), draws(), windows=windows_of(crops, 1, affine=AFFINE))


def test_ranges_begin_with_their_least_value() -> None:
    with pytest.raises(ValidationError, match="least, largest"):
        PlacedAugmentation(zoom=(1.2, 0.8))
