"""VoCo's question asked of every voxel: where in the box does it lie, or how would a crop about it overlap the grid?

A decoder on the feature maps of the random crops answers; base crops and projections stay as they are. Not published.

Shapes: N random crops, D axes, G base crops, X Y Z space (X Y of slices).
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.imaging.geometry import Shape
from medssl_cli.methods.voco.options import DenseOptions
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_decoder
from medssl_cli.nn.places import WEIGHT, smooth_l1

SIMULATED_STARTS: Final = 512
POINTS_PER_AXIS: Final = 8


class DenseQuestion(nn.Module):
    """The decoder and its loss.

    Args:
        backbone: Its maps are decoded; it stays with the method.
        options: See `DenseOptions`.
        base_grid: Cells along x, y, z.
    """

    def __init__(self, backbone: Backbone, options: DenseOptions, base_grid: Shape) -> None:
        super().__init__()
        self.options = options
        self.cells = base_grid[: backbone.spatial_dims]
        number = len(self.cells) if options.target == "coordinates" else torch.Size(self.cells).numel()
        self.decoder = build_decoder(options.decoder, backbone, number)

    def loss(self, maps: list[Tensor], places: Tensor) -> Tensor:
        """Weighted mean over voxels of the distance between answers and truth.

        Args:
            maps: Feature maps of which the first are those of the random crops, fine to coarse.
            places: Places of the random crops' voxels within their boxes, -1 to 1, [N, 3, X, Y, Z].
        """
        told = self.decoder([level[: len(places)] for level in maps]).float()
        true = places[:, : len(self.cells)]
        if self.options.target == "coordinates":
            return self.options.weight * WEIGHT * smooth_l1(told - true).mean()
        shares = overlap_shares(true, self.cells)
        costs = F.kl_div(told.log_softmax(dim=1), shares, reduction="none").sum(dim=1)
        return self.options.weight * costs.mean()


def overlap_shares(places: Tensor, cells: tuple[int, ...]) -> Tensor:
    """Share of a crop about each voxel in each base crop; it is moved into the box where it would stick out.

    Args:
        places: Within the box, -1 to 1, [N, D, ...].
        cells: Cells of the grid along each axis.

    Returns:
        [N, G, ...] that sums to 1 over G; the last axis varies fastest, as in `overlap_fractions`.
    """
    shares = torch.ones_like(places[:, :1])
    for axis, count in enumerate(cells):
        middles = torch.arange(count, device=places.device).view(1, -1, *[1] * (places.ndim - 2))
        centre = ((places[:, axis : axis + 1] + 1) / 2 * count - 0.5).clamp(0, count - 1)
        along = (1 - (centre - middles).abs()).clamp(min=0)
        shares = (shares[:, :, None] * along[:, None]).flatten(1, 2)
    return shares


def place_within_crop_loss(options: DenseOptions, num_starts: Shape, base_grid: Shape, crop_size: Shape) -> float:
    """Weighted loss of the best guess from where in its crop a voxel lies, by a simulation of starts.

    Args:
        options: See `DenseOptions`.
        num_starts: Legal first voxels of a random crop along each axis.
        base_grid: Cells along each axis.
        crop_size: Size of a crop in voxels.
    """
    dims = 2 if crop_size[2] == 1 else 3
    generator = torch.Generator().manual_seed(0)
    cells, filled = base_grid[:dims], torch.tensor(base_grid[:dims]) * torch.tensor(crop_size[:dims])
    uniform = torch.rand(SIMULATED_STARTS, dims, generator=generator)
    starts = (uniform * torch.tensor(num_starts[:dims])).floor()
    spread = (torch.arange(POINTS_PER_AXIS) + 0.5) / POINTS_PER_AXIS
    points = torch.cartesian_prod(*[spread] * dims) * torch.tensor(crop_size[:dims])
    places = (2 * (starts[:, None] + points) / filled - 1).mT
    if options.target == "coordinates":
        middle = places.median(dim=0).values
        return options.weight * WEIGHT * float(smooth_l1(places - middle).mean())
    shares = overlap_shares(places, cells)
    guess = shares.mean(dim=0, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
    return options.weight * float(F.kl_div(guess.log().expand_as(shares), shares, reduction="none").sum(dim=1).mean())
