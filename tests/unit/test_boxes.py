"""Boxes on pictures and in volumes: drawn where they are, whatever the orientation of the image."""

import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.imaging.volume import Volume
from medssl_cli.report.boxes import SLICE_PX, ShownBox, box_picture, from_below, is_picture
from medssl_cli.report.viewer import scene_of

RED = (250, 10, 20)
COLOURS = {"a": RED}
FLIPS = [np.diag([x, y, z, 1.0]) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]


def grey(shape: tuple[int, int, int], affine: NDArray[np.float64] | None = None) -> Volume:
    return Volume(np.zeros((1, *shape), np.float32), np.eye(4) if affine is None else affine, "MR")


def is_red(picture: Image.Image) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = np.abs(np.asarray(picture.convert("RGB"), dtype=int) - RED).max(axis=2) < 40
    return mask


def extent(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is red."""
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_a_box_on_a_picture_lies_where_it_is_stored() -> None:
    picture = box_picture(grey((90, 48, 1)), [ShownBox("a", (30.0, 12.0, 60.0, 36.0), 0.5)], COLOURS)

    assert picture.size == (900, 480)
    left, _, right, bottom = extent(is_red(picture))
    assert (left, right, bottom) == pytest.approx((300, 600, 360), abs=3)
    assert is_red(picture)[120:360, 299:302].all()  # its left side is one line


def test_what_is_there_has_dashes_and_what_was_found_has_none() -> None:
    corners = (30.0, 12.0, 60.0, 36.0)
    sides = [
        is_red(box_picture(grey((90, 48, 1)), [ShownBox("a", corners, score)], COLOURS))[124:356, 300]
        for score in (None, 0.5)
    ]

    assert 0.4 < sides[0].mean() < 0.7
    assert sides[1].all()


@pytest.mark.parametrize("affine", FLIPS)
def test_of_a_volume_the_slice_through_the_middle_of_a_box_is_seen_from_below(affine: NDArray[np.float64]) -> None:
    """In millimetres the volume goes from 0 to its shape and the box from (4, 9, 1) to (10, 14, 4)."""
    shape, signs, placed = np.array([20, 20, 10]), np.diag(affine)[:3], affine.copy()
    placed[:3, 3] = np.where(signs > 0, 0.5, shape - 0.5)
    ends = np.array([[4.0, 9.0, 1.0], [10.0, 14.0, 4.0]])
    corners = np.sort(np.where(signs > 0, ends, shape - ends), axis=0).reshape(-1).tolist()

    picture = box_picture(grey((20, 20, 10), placed), [ShownBox("a", corners, 0.5)], COLOURS)

    whole = picture.crop((10, 30, 10 + SLICE_PX[0], 30 + SLICE_PX[1]))
    per_mm = SLICE_PX[0] / 20
    expected = np.array([20 - 10, 20 - 14, 20 - 4, 20 - 9]) * per_mm  # the patient's right is on the left, front is up
    assert extent(is_red(whole)) == pytest.approx(expected.tolist(), abs=3)


def test_each_box_is_on_one_slice_and_four_slices_at_most() -> None:
    boxes = [ShownBox("a", (2.0, 2.0, 5.0 * k, 6.0, 6.0, 5.0 * k + 4), 0.5) for k in range(8)]
    volume = grey((20, 20, 40), np.eye(4))

    widths = [box_picture(volume, boxes[:count], COLOURS).size for count in (0, 1, 2, 8)]

    # A slice without a box is alone, others have an enlarged part beside them; four cells in a row.
    cells = [(width - 10) // (SLICE_PX[0] + 10) for width, _ in widths]
    assert cells == [1, 2, 4, 4]
    assert widths[3][1] > 1.8 * widths[2][1]


def test_from_below_keeps_every_voxel_in_its_place() -> None:
    rng = np.random.default_rng(0)
    for affine in FLIPS:
        volume = Volume(rng.normal(size=(1, 4, 5, 6)), affine)
        seen = from_below(volume)
        index = np.array([1, 2, 3, 1])
        moved = np.linalg.inv(seen.affine) @ affine @ index
        assert seen.voxels[0][tuple(moved[:3].astype(int))] == volume.voxels[0, 1, 2, 3]
        assert (np.diag(seen.affine)[:3] == (-1, -1, 1)).all()


def test_pictures_have_a_spacing_and_no_place() -> None:
    assert is_picture(grey((4, 5, 1), np.diag([0.1, 0.2, 1.0, 1.0])))
    assert not is_picture(grey((4, 5, 2)))
    assert not is_picture(grey((4, 5, 1), np.diag([-1.0, -1.0, 1.0, 1.0])))


@pytest.mark.parametrize("affine", FLIPS)
def test_a_scene_has_boxes_over_the_voxels_that_they_hold(affine: NDArray[np.float64]) -> None:
    voxels = np.zeros((1, 24, 20, 16), np.float32)
    voxels[0, 4:8, 6:12, 2:6] = 100
    box = ShownBox("a", (4.0, 6.0, 2.0, 8.0, 12.0, 6.0), 0.5)

    scene = scene_of(Volume(voxels, affine), boxes=[box], window=(0, 100), margin_mm=3)

    (found,) = scene.boxes
    low, high = (np.array(corner).astype(int) for corner in (found.low, found.high))
    assert (high - low).tolist() == [4, 6, 4]
    grey_values = np.frombuffer(zlib.decompress(scene.packed), np.uint8).reshape(3, *scene.shape)[0]
    inside = grey_values[tuple(slice(*ends) for ends in zip(low, high, strict=True))]
    assert (inside == 255).all()
    assert (grey_values == 255).sum() == inside.size
    assert scene.start == tuple(((low + high) // 2).tolist())
