"""Windows of images that are nowhere on disk, for methods whose views know where they lie."""

import numpy as np
import torch

from medssl_cli.data.placed_views import PlacedCrops, PlacedWindows
from medssl_cli.data.windows import to_sides

AFFINE = np.array([[0.0, -1.5, 0.0, 20.0], [1.5, 0.0, 0.0, -7.0], [0.0, 0.0, 4.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
"""Of an image whose first axis runs towards anterior and whose second runs towards left."""


def windows_of(
    crops: PlacedCrops, batch: int = 2, *, affine: np.ndarray = AFFINE, margin: int = 3, num_slices: int = 9
) -> PlacedWindows:
    """Windows in the middles of images that are a little larger; the reference box is a little smaller.

    Args:
        crops: Views that are cut from them.
        batch: How many.
        affine: Of the images.
        margin: Voxels of the images around the window within the slices, and in a volume across them too.
        num_slices: Of the images of flat views, of which each shows another one.
    """
    window = np.array(crops.window, dtype=np.float64)
    size = window + 2 * margin
    start = np.full(3, float(margin))
    if crops.is_flat:
        size[2] = num_slices
    parts = []
    for number in range(batch):
        if crops.is_flat:
            start[2] = number % num_slices
        step = np.eye(4)
        step[:3, 3] = start
        centre = affine @ np.append(start + (window - 1) / 2, 1)
        back = np.linalg.inv(affine)
        low = np.minimum(2.0, (size - 1) / 2)
        sides = to_sides(low, size - low) @ back, to_sides(np.zeros(3), size) @ back
        parts.append((affine @ step, centre[:3], *sides))
    affines, centres, boxes, fields = (torch.from_numpy(np.stack(each)) for each in zip(*parts, strict=True))
    numbers = torch.arange(batch) % num_slices if crops.is_flat else torch.zeros(batch).long()
    return PlacedWindows(affines, centres, boxes, fields, numbers, torch.full((batch,), int(size[2])))
