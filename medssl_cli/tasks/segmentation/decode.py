"""From a network's logits on tiles to a label map on the image's own grid."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.segment import segment_volume
from medssl_cli.imaging.tiling import Predict
from medssl_cli.imaging.volume import Volume
from medssl_cli.recipe import TaskRecipe

Segment = Callable[[Volume], NDArray[np.uint8]]
"""An image to a label map on its own grid."""


def segmenter(predict: Predict, recipe: TaskRecipe, *, is_mirrored: bool) -> Segment:
    """A network as a function of whole images.

    Args:
        predict: The network on tiles, `[B, C, *tile]` to logits `[B, K, *tile]`.
        recipe: That it was trained by.
        is_mirrored: Average over the flips of `inference.mirror_axes`.
    """
    return partial(
        segment_volume,
        predict,
        preprocessing=recipe.data.preprocessing,
        tile=recipe.tile_size,
        overlap=recipe.inference.overlap,
        mirror_axes=recipe.inference.mirror_axes if is_mirrored else (),
    )
