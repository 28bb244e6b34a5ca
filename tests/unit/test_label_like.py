"""Whether voxels look like a label map."""

import io

import numpy as np
import pytest
from PIL import Image

from medssl_cli.imaging.label_like import is_black_and_white, is_label_like

RNG = np.random.default_rng(0)
BLOCKS = np.kron(RNG.integers(0, 200, (6, 6, 4)), np.ones((8, 8, 4)))  # 200 classes in blocks of 8
IMAGE = RNG.integers(0, 200, (48, 48, 16))
BINARY = np.zeros((20, 18, 8), np.uint8)
BINARY[3:8, 4:8, 2:4] = 1

VOXELS = {
    "one structure": (BINARY, True),
    "one structure as float": (BINARY.astype(np.float32), True),
    "0 and 255": (BINARY * np.uint8(255), True),
    "values of MM-WHS": (BINARY.astype(np.int16) * 850, True),
    "empty": (np.zeros((5, 5, 5), np.uint8), True),
    "a tiny structure": (np.pad(np.ones((1, 1, 1), np.uint8), 9), True),
    "many classes in blocks": (BLOCKS.astype(np.uint8), True),
    "an image of 8 bits": (IMAGE.astype(np.uint8), False),
    "one plane of an image, on its side": (IMAGE[None, :, :, 0].astype(np.int16), False),
    "an image of 16 bits": (RNG.integers(0, 900, (20, 18, 8)).astype(np.int16), False),
    "negative": (BINARY.astype(np.int16) - 1, False),
    "parts of one": (BINARY * np.float32(0.5), False),
    "too large": (BINARY.astype(np.int32) * 70_000, False),
    "not a number": (np.where(BINARY == 1, np.nan, 0).astype(np.float32), False),
    "a rough voxel between those that are looked at": (
        np.concatenate([np.zeros((600, 600, 2), np.float32), np.full((600, 600, 1), 0.5, np.float32)], axis=2),
        False,
    ),
}


@pytest.mark.parametrize(("voxels", "expected"), VOXELS.values(), ids=list(VOXELS))
def test_whole_numbers_few_of_them_and_equal_neighbours(voxels, expected):
    assert is_label_like(voxels) is expected


def test_a_note_needs_fewer_values_than_a_partner():
    assert not is_label_like(BLOCKS.astype(np.uint8), at_most=16)


def test_a_mask_that_jpeg_has_blurred_is_black_and_white_and_an_x_ray_is_not():
    mask = np.zeros((48, 64), np.uint8)
    mask[5:15, 10:30] = 255
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "JPEG")
    blurred = np.asarray(Image.open(stream))
    ramp = np.linspace(0, 255, 48 * 64).astype(np.uint8).reshape(48, 64)

    assert len(np.unique(blurred)) > 16
    assert is_black_and_white(blurred)
    assert not is_black_and_white(ramp)
    assert not is_black_and_white(np.zeros((8, 8), np.uint8))
    assert not is_black_and_white(mask.astype(np.int16))
