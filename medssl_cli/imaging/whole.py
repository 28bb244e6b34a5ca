"""Images as a network sees them that is shown all of an image at once: pictures, volumes, or stacks of slices.

Shapes: C channels, X Y Z space, S slices of the stack.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import spacing_mm
from medssl_cli.imaging.placement import ChannelImages, GridPlacement
from medssl_cli.imaging.preprocessing import channel_images, network_input
from medssl_cli.imaging.stacks import as_stack
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing


@dataclass(frozen=True)
class WholeInput:
    """What a network sees of one example, as a batch of one.

    Args:
        arrays: `[1, C, X, Y]` of a picture, `[1, C, X, Y, Z]` of a volume; `[1, C, X, Y, S]` of a stack with which
            slices are there, bool `[1, S]`, and their positions in mm, `[1, S]`.
        placement: Where it lies in the first channel's image.
    """

    arrays: tuple[NDArray[Any], ...]
    placement: GridPlacement


def whole_input(
    images: Volume | ChannelImages, preprocessing: Preprocessing, *, num_slices: int | None = None
) -> WholeInput:
    """All of an example as network input.

    Args:
        images: One per channel; a single one needs no sequence.
        preprocessing: Preprocessing with a size to fit: (x, y) for pictures and slices, (x, y, z) for volumes.
        num_slices: S, for networks of stacks.

    Raises:
        ValueError: A network of pictures is shown a volume.
    """
    seen = network_input(channel_images(images), preprocessing)
    if num_slices is not None:
        stack = as_stack(seen.voxels, spacing_mm(seen.placement.affine)[2], num_slices)
        return WholeInput(tuple(np.asarray(part)[None] for part in stack), seen.placement)
    if preprocessing.fit is None or len(preprocessing.fit) == 3:
        return WholeInput((seen.voxels[None],), seen.placement)
    if seen.voxels.shape[3] != 1:
        raise ValueError(f"{seen.voxels.shape[3]} slices are no picture")
    return WholeInput((seen.voxels[None, ..., 0],), seen.placement)
