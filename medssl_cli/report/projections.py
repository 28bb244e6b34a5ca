"""Pictures of radiographs and other images without a place in the patient: as they are stored."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.report.pictures import automatic_window


def projection(
    pixels: NDArray[np.generic],
    spacing_mm: Sequence[float],
    *,
    max_size_px: tuple[int, int],
    window: tuple[float, float] | None = None,
) -> Image.Image:
    """Draw an image with its proportions in millimetres.

    Args:
        pixels: `[X, Y]`; y runs downwards.
        spacing_mm: Along x and y.
        max_size_px: Width and height.
        window: Intensities shown as black and white; by default the 1st and 99.5th percentile.
    """
    low, high = window or automatic_window(pixels)
    grey = np.clip((pixels.T.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)
    width, height = (count * step for count, step in zip(pixels.shape, spacing_mm, strict=True))
    scale = min(max_size_px[0] / width, max_size_px[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray((grey * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
