"""From an image to the grid that a network sees and back: images, label maps, masks, boxes and probabilities."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from medssl_cli.imaging.geometry import Affine, reorient_to_ras
from medssl_cli.imaging.placement import (
    GridPlacement,
    move_boxes,
    on_one_grid,
    placement_of,
    restore_probabilities,
)
from medssl_cli.imaging.preprocessing import intensity_of, network_input
from medssl_cli.imaging.restoring import restore_labels, restore_masks
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Channel, IntensityRule, Preprocessing
from tests.orientations import reorient_like

SPACING = (1.0, 1.5, 2.0)
GEOMETRIES = {
    "native": {},
    "spacing": {"spacing_mm": (0.5, 0.75, 2.0)},
    "fit x y": {"fit": (24, 40)},
    "fit x y z": {"fit": (20, 40, 40)},
    "stretch": {"stretch": (24, 42, 9)},
    "foreground, stretch": {"foreground_crop": True, "stretch": (16, 7, 12)},
    "foreground": {"foreground_crop": True},
    "foreground, spacing": {"foreground_crop": True, "spacing_mm": (0.5, 0.75, 2.0)},
    "foreground, fit x y": {"foreground_crop": True, "fit": (20, 30)},
    "foreground, fit x y z": {"foreground_crop": True, "fit": (32, 30, 30)},
}
each_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


def rule(**geometry: object) -> Preprocessing:
    return Preprocessing.model_validate({"window_hu": (0.0, 100.0), **geometry})


def orientations() -> Iterator[Affine]:
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        affine = np.zeros((4, 4))
        for world in range(3):
            affine[world, order[world]] = signs[world] * SPACING[world]
        affine[:, 3] = (10, -20, 30, 1)
        yield affine


def image(affine: Affine | None = None, shape: tuple[int, int, int] = (12, 14, 9)) -> Volume:
    """A block of 100 in darkness of 5: voxels 2 to 9, 4 to 10 and 3 to 6 of the axes of RAS."""
    ras = np.full((1, *shape), 5, np.int16)
    ras[0, 2:10, 4:11, 3:7] = 100
    affine = np.diag([*SPACING, 1.0]) if affine is None else affine
    return Volume(np.ascontiguousarray(reorient_like(ras, affine)), affine, "MR")


@each_geometry
def test_a_mask_goes_there_and_comes_back_exactly(geometry: dict[str, object]) -> None:
    """Where voxels are halved or stay: nothing is lost, whatever the order and direction of the stored axes."""
    for affine in orientations():
        source = image(affine)
        truth = (source.voxels == 100).astype(np.uint8)
        placement = placement_of([source], rule(**geometry))

        there = placement.labels(truth)[0]
        logits = np.stack([there == 0, there == 1]).astype(np.float32)

        assert np.array_equal(restore_labels(logits, placement), truth[0])
        masks = restore_masks(logits - 0.5, placement)
        assert np.array_equal(masks[1], truth[0] == 1)
        inside = restore_probabilities(np.ones_like(logits), placement)
        assert set(np.unique(inside)) <= {0.0, 1.0}
        assert inside[0][truth[0] == 1].all()
        assert inside.all() == (not geometry.get("foreground_crop", False))


@each_geometry
def test_boxes_go_there_and_come_back_and_hold_the_same(geometry: dict[str, object]) -> None:
    for affine in orientations():
        source = image(affine)
        placement = placement_of([source], rule(**geometry))
        places = np.argwhere(source.voxels[0] == 100)
        box = np.array([[places.min(axis=0) - 0.5, places.max(axis=0) + 0.5]])

        there = move_boxes(box, placement.to_grid)

        seen = np.argwhere(placement.labels((source.voxels == 100).astype(np.uint8))[0])
        np.testing.assert_allclose(there[0, 0], seen.min(axis=0) - 0.5, atol=0.51)
        np.testing.assert_allclose(there[0, 1], seen.max(axis=0) + 0.5, atol=0.51)
        np.testing.assert_allclose(move_boxes(there, placement.to_source), box, atol=1e-9)


@each_geometry
def test_all_48_ways_to_store_an_image_give_the_network_the_same(geometry: dict[str, object]) -> None:
    inputs = [network_input([image(affine)], rule(**geometry)) for affine in orientations()]

    for each in inputs:
        np.testing.assert_array_equal(each.voxels, inputs[0].voxels)
        assert each.voxels.dtype == np.float32
        assert each.voxels.shape == (1, *each.placement.shape)


def test_a_fitted_image_lies_in_the_middle_of_its_lowest_value() -> None:
    seen = network_input([image()], rule(fit=(42, 42))).voxels[0]

    # 12 x 14 voxels of 1 x 1.5 mm are 12 x 21 mm: 24 of 42 voxels wide.
    assert seen.shape == (42, 42, 9)
    assert seen[:9] == pytest.approx(0.05)
    assert seen[33:] == pytest.approx(0.05)
    assert seen[15:27, 16:30, 4] == pytest.approx(1)


def test_statistics_are_of_the_image_whatever_it_is_fitted_to() -> None:
    source = image()
    seen = [
        network_input([source], Preprocessing(zscore=True, fit=fit)).voxels for fit in ((9, 9), (42, 42), (96, 96, 96))
    ]

    expected = intensity_of(source.voxels, IntensityRule(zscore=True))
    low, high = expected.apply(np.array([5, 100]))
    for voxels in seen:
        assert voxels.min() == pytest.approx(low, abs=1e-5)
        assert voxels.max() <= high + 1e-5


def test_percentiles_become_zero_and_one() -> None:
    values = np.arange(201, dtype=np.int16).reshape(1, 201, 1, 1)  # of 1 to 200, 5 and 95 % lie at 10.95 and 190.05

    seen = network_input([Volume(values, np.eye(4))], Preprocessing(percentiles=(5, 95))).voxels.ravel()

    assert seen[0] == seen[10] == 0
    assert seen[191] == seen[200] == 1
    assert seen[100] == pytest.approx((100 - 10.95) / 179.1)


def test_the_foreground_is_the_box_of_what_is_above_the_lowest_value() -> None:
    placement = placement_of([image()], rule(foreground_crop=True))

    assert (placement.box_start, placement.box_shape) == ((2, 4, 3), (8, 7, 4))
    assert placement.affine[:3, 3] == pytest.approx((2 * 1.0, 4 * 1.5, 3 * 2.0))
    everything = placement_of([Volume(np.full((1, 4, 3, 2), 7), np.eye(4))], rule(foreground_crop=True))
    assert everything.is_identity


def test_a_limit_of_the_foreground_replaces_the_lowest_value() -> None:
    """Darkness of 5 is foreground above 4, and nothing is above 100: then the whole image stays."""
    whole = ((0, 0, 0), (12, 14, 9))
    expected = {4: whole, 5: ((2, 4, 3), (8, 7, 4)), 99.5: ((2, 4, 3), (8, 7, 4)), 100: whole}

    for above, box in expected.items():
        placement = placement_of([image()], rule(foreground_crop=True, foreground_above=above))
        assert (placement.box_start, placement.box_shape) == box
    unsigned = Volume(image().voxels.astype(np.uint16), np.diag([*SPACING, 1.0]))
    assert placement_of([unsigned], rule(foreground_crop=True, foreground_above=-175)).box_shape == (12, 14, 9)


def test_stretching_fills_the_size_whatever_the_proportions() -> None:
    seen = network_input([image()], rule(stretch=(24, 42, 9)))

    assert seen.voxels.shape == (1, 24, 42, 9)
    assert np.diag(seen.placement.affine)[:3] == pytest.approx((1.0 / 2, 1.5 / 3, 2.0))
    assert (seen.voxels > 0.9).sum() == pytest.approx(8 * 7 * 4 * 6, rel=0.25)


def test_the_foreground_of_an_example_holds_that_of_each_channel() -> None:
    other = np.zeros((1, 12, 14, 9), np.int16)
    other[0, 11, 0, 8] = 1
    two = [image(), Volume(other, np.diag([*SPACING, 1.0]))]

    placement = placement_of(two, rule(foreground_crop=True))

    assert (placement.box_start, placement.box_shape) == ((2, 0, 3), (10, 11, 6))


def test_each_channel_has_a_rule_of_its_own_and_lies_on_the_grid_of_the_first() -> None:
    first = image()
    stored = next(affine for affine in orientations() if affine[0, 2] < 0)  # other axes, the same voxels
    turned = Volume(np.ascontiguousarray(reorient_like(first.voxels, stored)), stored)
    turned.affine[:3, 3] -= reorient_to_ras(turned.voxels, stored)[1][:3, 3]
    coarse = Volume(np.full((1, 3, 3, 3), 50, np.float32), np.diag([9.0, 9.0, 9.0, 1.0]))
    channels = (
        Channel(name="flair", window_hu=(0, 100)),
        Channel(name="t1", window_hu=(0, 200)),
        Channel(name="t2", zscore=True),
    )

    seen = network_input([first, turned, coarse], Preprocessing(channels=channels, spacing_mm=(2.0, 2.0, 2.0)))

    assert seen.voxels.shape == (3, *seen.placement.shape)
    np.testing.assert_allclose(seen.voxels[0], 2 * seen.voxels[1], rtol=1e-6)
    assert seen.voxels[2] == pytest.approx(0)
    with pytest.raises(ValueError, match="channels"):
        network_input([first], Preprocessing(channels=channels))


def test_images_of_an_example_come_to_one_grid() -> None:
    first = image()
    shifted = Volume(first.voxels.copy(), first.affine.copy())
    shifted.affine[0, 3] += 1.0  # one voxel towards the right

    one, other = on_one_grid([first, shifted])

    assert one is first
    np.testing.assert_allclose(other.voxels[0, 1:], first.voxels[0, :-1])
    assert np.array_equal(other.affine, first.affine)


def test_padding_is_background_of_a_label_map_and_counts_for_nothing_on_the_way_back() -> None:
    placement = placement_of([image()], rule(fit=(42, 42)))

    there = placement.labels(np.ones((1, 12, 14, 9), np.uint8))[0]

    assert there[9:33].all()
    assert not there[:9].any()
    assert not there[33:].any()
    logits = np.zeros((2, 42, 42, 9), np.float32)
    logits[1] = np.where(there, 1, -1)
    assert restore_labels(logits, placement).all()


def test_a_grid_of_one_voxel_has_a_way_back() -> None:
    placement = placement_of([image()], rule(spacing_mm=(500.0, 500.0, 500.0)))

    assert placement.shape == (1, 1, 1)
    assert isinstance(placement, GridPlacement)
    logits = np.array([0, 1], np.float32).reshape(2, 1, 1, 1)
    assert restore_labels(logits, placement).all()
