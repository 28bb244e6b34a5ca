"""Rows of slices: which slices are shown, and what lies on them."""

import numpy as np
import pytest

from medssl_cli.imaging.volume import Volume
from medssl_cli.report import STRUCTURE_COLOURS
from medssl_cli.report.mosaic import NUM_SLICES, slice_row
from medssl_cli.report.pictures import BACKGROUND
from medssl_cli.tasks.segmentation.page import segmentation_picture

SHAPE = (24, 20, 30)
COLOURS = {1: STRUCTURE_COLOURS[0]}


def block(low: int, high: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[8:16, 6:14, low:high] = 1
    return mask


def panels(voxels: np.ndarray, mask: np.ndarray, **options: object) -> list[np.ndarray]:
    """Pixels of each slice, in the middle of its height, where no words are."""
    row = slice_row(voxels, np.eye(4), mask, COLOURS, window=(0, 1), **options)  # type: ignore[arg-type]
    pixels = np.asarray(row).astype(int)
    columns = ~(pixels == BACKGROUND).all(axis=2).all(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], columns.astype(int), [0]])))
    middle = pixels.shape[0] // 2
    return [pixels[middle - 20 : middle + 20, left:right] for left, right in edges.reshape(-1, 2)]


def test_slices_run_from_the_lowest_to_the_highest_that_shows_something() -> None:
    voxels = np.broadcast_to(np.linspace(0.2, 0.9, SHAPE[2], dtype=np.float32), SHAPE)
    nothing = np.zeros(SHAPE, dtype=np.uint8)

    found = [panel.mean() / 255 for panel in panels(voxels, nothing, focus=block(5, 26))]

    assert len(found) == NUM_SLICES
    expected = [0.2 + 0.7 * height / 29 for height in (5, 9, 13, 17, 21, 25)]
    assert found == pytest.approx(expected, abs=0.02)


def test_what_one_mask_lacks_is_seen_on_the_same_slices() -> None:
    voxels = np.full(SHAPE, 0.5, dtype=np.float32)
    reference, prediction = block(5, 26), block(5, 14)

    def is_coloured(mask: np.ndarray) -> list[bool]:
        return [bool(np.ptp(panel, axis=2).max() > 20) for panel in panels(voxels, mask, focus=reference)]

    assert is_coloured(reference) == [True] * 6
    assert is_coloured(prediction) == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("depth", "number"), [(1, 1), (2, 2), (9, NUM_SLICES)])
def test_a_structure_of_few_slices_shows_all_of_them(depth: int, number: int) -> None:
    voxels = np.full(SHAPE, 0.5, dtype=np.float32)

    assert len(panels(voxels, block(4, 4 + depth), focus=block(4, 4 + depth), margin_mm=3.0)) == number


def test_pictures_of_an_evaluation_have_slices_where_there_are_several() -> None:
    sizes = {}
    for depth in (1, 30):
        mask = block(0, 30)[:, :, :depth]
        image = Volume(np.zeros((1, *mask.shape), dtype=np.float32), np.eye(4), "MR", "a.u.")
        sizes[depth] = segmentation_picture(image, mask, mask, {1: "organ"}).size

    assert sizes[30][1] > 800
    assert sizes[1][1] < 800
