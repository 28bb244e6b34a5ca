"""Where boxes lie once their image was mirrored, turned and scaled.

Shapes: N images, K boxes of an image, D dimensions.
"""

import itertools
from typing import Protocol

import torch
from torch import Tensor


class Movements(Protocol):
    """What of the changes of an image moves its boxes; see `data.augmentation.Changes`."""

    @property
    def is_flipped(self) -> Tensor | None:
        """Which of the axes x, y, z are mirrored, bool [N, 3]."""

    @property
    def quarter_turns(self) -> Tensor | None:
        """Rotations by 90 degrees in the x-y plane, [N]."""

    @property
    def moved(self) -> Tensor | None:
        """Numbers of the images that turn or scale, [M]."""

    @property
    def matrices(self) -> Tensor:
        """Matrices of these, from changed to original coordinates, [M, 3, 3]."""


def move_boxes(boxes: Tensor, changes: Movements, size: tuple[int, ...]) -> Tensor:
    """The smallest upright boxes around flipped, turned and scaled ones, as they lie on the image.

    Args:
        boxes: [N, K, 2 D], low and high corners, in voxel edges.
        changes: Changes of images of D dimensions.
        size: Voxels along each axis.
    """
    dims = len(size)
    extent = torch.tensor(size, dtype=boxes.dtype)
    sides = itertools.product(*((axis, axis + dims) for axis in range(dims)))
    corners = torch.stack([boxes[..., list(corner)] for corner in sides], dim=2) / extent * 2 - 1
    if changes.is_flipped is not None:
        corners = torch.where(changes.is_flipped[:, None, None, :dims], -corners, corners)
    if changes.quarter_turns is not None and size[0] == size[1]:
        for turns in range(1, 4):
            x, y = corners[..., 0], corners[..., 1]
            turned = torch.cat([torch.stack([-y, x], dim=-1), corners[..., 2:]], dim=-1)
            corners = torch.where((changes.quarter_turns >= turns)[:, None, None, None], turned, corners)
    if changes.moved is not None:
        back = torch.linalg.inv(changes.matrices[:, 3 - dims :, 3 - dims :].to(boxes.dtype)).flip(1, 2)
        corners[changes.moved] = torch.einsum("bij,bmcj->bmci", back, corners[changes.moved])
    places = ((corners + 1) / 2).clamp(0, 1) * extent
    return torch.cat([places.amin(dim=2), places.amax(dim=2)], dim=-1)


def areas_of(boxes: Tensor) -> Tensor:
    """Areas of boxes [..., 2 D], or their volumes."""
    dims = boxes.shape[-1] // 2
    return (boxes[..., dims:] - boxes[..., :dims]).prod(dim=-1)
