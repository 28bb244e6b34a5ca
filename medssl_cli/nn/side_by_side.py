"""Images side by side as one grey picture, for the page of a run.

Shapes: X Y Z space (X Y of slices), H W rows and columns of the picture.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def side_by_side(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """One row of images after the other; those of a row share the grey values of its first.

    Args:
        rows: Images [X, Y] or [X, Y, Z], of which the middle slice is shown; all of one size.

    Returns:
        Upright, [H, W] from 0 to 1, on the CPU.
    """
    return torch.cat([torch.cat(_greys([_flat(image) for image in row]), dim=1) for row in rows])


def _greys(images: Sequence[Tensor]) -> list[Tensor]:
    """Images [X, Y] between the least and the largest value of the first, upright."""
    low, high = images[0].amin(), images[0].amax()
    return [((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).T.flip(0) for image in images]


def _flat(image: Tensor) -> Tensor:
    """The middle slice of [X, Y, Z]; [X, Y] as it is."""
    flat = image[..., image.shape[2] // 2] if image.ndim == 3 else image
    return flat.detach().float().cpu()
