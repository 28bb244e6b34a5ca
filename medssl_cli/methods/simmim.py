"""SimMIM: hide large cells of an image, and let one linear map of the features say what was there.

Xie et al., SimMIM: A Simple Framework for Masked Image Modeling, CVPR 2022, https://arxiv.org/abs/2111.09886. All
tokens go through the network, hidden ones replaced by a learnt vector, so that networks with a grid (Swin) work too.

Shapes: B images of this process, N cells of an image, P voxels of a cell, C channels, X Y Z space (X Y in 2D).

Differences from the paper and the released code:

- Any backbone. Of `vit` hidden tokens are replaced by the learnt vector, as published; others see zeros in hidden
  cells. A network that pools several levels into its embedding, such as `swinunetr`, has one linear map for each of
  them, and the sum of what they say is the guess; published is the coarsest level alone.
- The denominator is the number of hidden voxels, without the 1e-5 of the released code.
- In 3D cells are 16 voxels wide, in 2D 32 as published, or the coarsest stride where that is larger.
- Hidden cells that are constant, or lie partly outside the field of view, take no part: padding.
- Views are zoomed by 0.8 to 1.25 (published: areas of 0.67 to 1) and not flipped; intensities change a little.
"""

from math import ceil, prod
from typing import Annotated, Any, Final

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl_cli.base.errors import UsageError
from medssl_cli.base.strict import PositiveInt
from medssl_cli.methods import HidingMethod, Losses, RestoringOptions, Views
from medssl_cli.nn.axes import Axes, per_axis
from medssl_cli.nn.backbones import Backbone, spread_blocks
from medssl_cli.nn.distributed import synchronise_norms
from medssl_cli.nn.hidden_blocks import (
    block_grid,
    cut_blocks,
    guess_pictures,
    guess_spread,
    joined_blocks,
    mean_over,
    telling_blocks,
)
from medssl_cli.nn.measured import MeasuredBaselines
from medssl_cli.nn.tokens import TokenBackbone, learnt_token

CELL: Final = {2: 32, 3: 16}
ROUNDING: Final = 1e-9
MEDIAN: Final = "median"


class Options(RestoringOptions):
    """What is hidden.

    Args:
        ratio: Share of the cells that is hidden, rounded up.
        block: Voxels of a hidden cell along all axes or along each; none takes 32 in 2D and 16 in 3D, or the coarsest
            stride of the backbone where that is more.
    """

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6
    block: PositiveInt | tuple[PositiveInt, ...] | None = None


def absolute_loss(guessed: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Mean absolute distance over the cells that count; SimMIM, section 3.4.

    Args:
        guessed: [B, N, P, C].
        targets: [B, N, P, C].
        counts: Which cells count in which channel, bool [B, N, C].

    Returns:
        Scalar whose mean over processes is the mean over all that counts. The best constant is the median.
    """
    return mean_over((guessed.float() - targets.float()).abs().mean(dim=2), counts)


class Method(HidingMethod):
    """Guessing hidden cells of views of `crop_size` voxels.

    Args:
        backbone: Backbone of two or three spatial dimensions.
        options: See `Options`.
        crop_size: Voxels (x, y, z) of a view, z 1 in 2D.

    Raises:
        UsageError: `E_RECIPE`, options, backbone and crop do not go together.
    """

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        dims = backbone.spatial_dims
        coarsest = backbone.strides[-1]
        block = options.block or tuple(max(CELL[dims], step) for step in coarsest)
        try:
            self.blocks = block_grid(self.size, per_axis(block, dims))
        except ValueError as error:
            raise UsageError("E_RECIPE", f"method simmim: {error}", hint="change method.block") from error
        self.num_hidden = ceil(options.ratio * prod(self.blocks) - ROUNDING)
        if self.num_hidden >= prod(self.blocks):
            raise UsageError("E_RECIPE", f"method simmim: all {prod(self.blocks)} cells of a view would be hidden")
        self.token: nn.Parameter | None = None
        if isinstance(backbone, TokenBackbone):
            if any(
                extent % (count * step) for extent, count, step in zip(self.size, self.blocks, coarsest, strict=True)
            ):
                raise UsageError("E_RECIPE", f"method simmim: cells are no multiples of patches of {list(coarsest)}")
            self.token = nn.Parameter(learnt_token(backbone.channels[-1]))
        convolution: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        self.heads = nn.ModuleDict(
            {
                str(level): convolution(
                    backbone.channels[level], prod(backbone.strides[level]) * backbone.in_channels, 1
                )
                for level in backbone.embedding_levels
            }
        )
        self.measured = MeasuredBaselines((MEDIAN,))
        synchronise_norms(self)

    def loss(self, views: Views, progress: float) -> Losses:
        """Mean absolute distance over hidden cells."""
        [images] = views.images
        hidden, is_inside = self.hidden(views)
        targets = cut_blocks(images.float(), self.blocks)
        counts = telling_blocks(targets, flat_below=0.0) & (is_inside & hidden).flatten(1)[..., None]
        guessed = cut_blocks(self.guess(images, hidden), self.blocks)
        loss = absolute_loss(guessed, targets, counts)
        if self.measured.is_open():
            constant = targets.flatten(1, 2).median(dim=1).values[:, None, None].expand_as(targets)
            self.measured.add({MEDIAN: absolute_loss(constant, targets, counts)})
        shown = {"output_spread": guess_spread(guessed, targets, counts)}
        return Losses(loss, {"restoration": loss.detach()}, shown)

    def guess(self, images: Tensor, hidden: Tensor) -> Tensor:
        """What images show, [B, C, X, Y, Z], seen without the hidden cells [B, X', Y', Z']."""
        backbone = self.backbone
        if isinstance(backbone, TokenBackbone) and self.token is not None:
            grid = backbone.grid_of(images)
            tokens = backbone.patch_tokens(images)
            is_hidden = spread_blocks(hidden, grid).flatten(1)[..., None]
            maps = backbone.maps_of(torch.where(is_hidden, self.token.to(tokens.dtype), tokens), grid)
        else:
            maps = backbone(images, hidden)
        guesses = [self._laid_out(head(maps[int(level)])) for level, head in self.heads.items()]
        return torch.stack(guesses).sum(dim=0)

    def _laid_out(self, told: Tensor) -> Tensor:
        """Voxels [B, C, X, Y, Z] of the numbers of each cell of a map, [B, P * C, x, y, z]."""
        grid: Axes = tuple(told.shape[2:])
        numbers = told.flatten(2).transpose(1, 2).unflatten(2, (-1, self.backbone.in_channels))
        return joined_blocks(numbers, grid, self.size)

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Pictures of what some views show, of what of it is visible, and of what is guessed of the rest."""
        [images] = views.images
        hidden, _ = self.hidden(views)
        return guess_pictures(images.float(), self.guess(images, hidden).float(), hidden)
