"""Which place of a network's maps answers for which box, in two ways.

`centre`: the places that lie in a box around its centre, of the map that is for boxes of its size: Tian et al., FCOS,
ICCV 2019, https://arxiv.org/abs/1904.01355, section 3.1, with its later centre sampling.

`overlap`: the places nearest to a box's centre on every map, of which those stay whose anchors overlap it well above
the average of all that were near: Zhang et al., ATSS, CVPR 2020, https://arxiv.org/abs/1912.02424, algorithm 1, without
its rule that a place must lie in the box, which small nodules could not keep. Every box has a place that answers.

Shapes: B batch, M boxes, P places of all maps, D axes of space.
"""

import math
from typing import Final, Literal

import torch
from torch import Tensor

from medssl_cli.data.boxes import IGNORED
from medssl_cli.tasks.detection.decode import Grid

Assignment = Literal["centre", "overlap"]
CENTRE_RADIUS: Final = 1.5
"""Distance from the centre of a box, in strides, within which places answer for it."""
NUM_NEAREST: Final = 8
"""Places of each map that are nearest to a box."""
ANCHOR_SIZE: Final = 2.0
"""Side, in strides, of the box that a place stands for."""


def assign(grid: Grid, boxes: Tensor, how: Assignment = "centre") -> Tensor:
    """Which box each place answers for.

    Args:
        grid: Places of the image.
        boxes: [B, M, 2 D + 1]: corners and class, -1 for no box, -2 for one that counts for nothing.
        how: See above.

    Returns:
        What the places should say, [B, P, 2 D + 1]: distances to the edges, and the class, -1 for background, -2 where
        a place lies in a box that counts for nothing, and answers for no other.
    """
    dims = grid.places.shape[1]
    corners, classes = boxes[..., :-1], boxes[..., -1]
    places = torch.from_numpy(grid.places)[None, :, None]
    edges = torch.cat([places - corners[:, None, :, :dims], corners[:, None, :, dims:] - places], dim=-1)
    costs = _costs_of_centre(grid, edges, corners) if how == "centre" else _costs_of_overlap(grid, corners)
    costs = costs.masked_fill(classes[:, None] < 0, math.inf)
    least, chosen = costs.min(dim=-1)
    is_ignored = ((edges.amin(dim=-1) > 0) & (classes[:, None] == IGNORED)).any(dim=-1)
    background = torch.where(is_ignored, IGNORED, -1.0)
    found = torch.where(least.isinf(), background, torch.gather(classes, 1, chosen))
    picked = torch.gather(edges, 2, chosen[..., None, None].expand(-1, -1, 1, 2 * dims))[:, :, 0]
    return torch.cat([picked, found[..., None]], dim=-1)


def _costs_of_centre(grid: Grid, edges: Tensor, corners: Tensor) -> Tensor:
    """How little a place should answer for a box, [B, P, M]: its volume, infinite where it should not."""
    places, strides, sizes, _ = (torch.from_numpy(part) for part in grid)
    dims = places.shape[1]
    centres = (corners[..., :dims] + corners[..., dims:]) / 2
    away = (places[None, :, None] - centres[:, None]).abs()
    farthest = torch.maximum(edges[..., :dims], edges[..., dims:])
    fits = (edges.amin(dim=-1) > 0) & (away <= CENTRE_RADIUS * strides[None, :, None]).all(dim=-1)
    fits &= (farthest > sizes[None, :, None, 0]).any(dim=-1) & (farthest <= sizes[None, :, None, 1]).all(dim=-1)
    volumes = (corners[..., dims:] - corners[..., :dims]).prod(dim=-1)
    return volumes[:, None].masked_fill(~fits, math.inf)


def _costs_of_overlap(grid: Grid, corners: Tensor) -> Tensor:
    """The same, [B, P, M]: how little the anchor of a place overlaps a box, infinite where it should not answer."""
    places, strides, _, maps = (torch.from_numpy(part) for part in grid)
    dims = places.shape[1]
    centres = (corners[..., :dims] + corners[..., dims:]) / 2
    away = ((places[None, :, None] - centres[:, None]) / strides[None, :, None]).square().sum(dim=-1)
    is_near = torch.zeros_like(away, dtype=torch.bool)
    for number in range(int(maps[-1]) + 1):
        own = (maps == number).nonzero()[:, 0]
        nearest = away[:, own].topk(min(NUM_NEAREST, len(own)), dim=1, largest=False).indices
        is_near.scatter_(1, own[nearest], True)
    overlap = _anchor_overlaps(places, strides * ANCHOR_SIZE / 2, corners)
    near = overlap.masked_fill(~is_near, math.nan)
    count = is_near.sum(dim=1, keepdim=True)
    mean = near.nansum(dim=1, keepdim=True) / count
    spread = ((near - mean).square().nansum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    best = overlap.masked_fill(~is_near, -1).amax(dim=1, keepdim=True)
    is_good = is_near & (overlap >= torch.minimum(mean + spread, best))
    return (1 - overlap).masked_fill(~is_good, math.inf)


def _anchor_overlaps(places: Tensor, half: Tensor, corners: Tensor) -> Tensor:
    """Intersection over union of the anchor of each place and each box, [B, P, M].

    Args:
        places: [P, D].
        half: Half the sides of the anchors, [P, D].
        corners: Corners of the boxes, [B, M, 2 D].
    """
    dims = places.shape[1]
    low = torch.maximum((places - half)[None, :, None], corners[:, None, :, :dims])
    high = torch.minimum((places + half)[None, :, None], corners[:, None, :, dims:])
    common = (high - low).clamp(min=0).prod(dim=-1)
    volumes = (corners[..., dims:] - corners[..., :dims]).prod(dim=-1)[:, None]
    anchors = (2 * half).prod(dim=-1)[None, :, None]
    return common / (volumes + anchors - common)
