"""Vision transformer in 2D and 3D: patches of the image as tokens that all attend to each other.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, https://arxiv.org/abs/2010.11929. Parts have the names and
shapes of timm's `VisionTransformer`, without its learnt positions, which are fixed sines and cosines as in MAE
(https://arxiv.org/abs/2111.06377), so that images of any size are taken.

A transformer has one map, of the stride of its patches. Decoders want finer ones too. They are what earlier blocks
give, as in UNETR (Hatamizadeh et al., WACV 2022, https://arxiv.org/abs/2103.10504), with the numbers of a token laid
out as the cells of a finer map (depth to space: Shi et al., CVPR 2016, https://arxiv.org/abs/1609.05158). So there is
no parameter that a pre-training would leave untouched, and published weights are the whole of the network.

Shapes: B images, N tokens of an image, K tokens that are shown, E embedding, C channels, X Y Z space (X Y in 2D).
"""

from functools import partial
from math import gcd, prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from medssl_cli.base.errors import UsageError
from medssl_cli.nn.axes import Axes, PerAxis, misfit, per_axis
from medssl_cli.nn.backbones import Backbone, hide, numbered_level, run_part, spread_blocks
from medssl_cli.nn.hidden_blocks import cut_blocks, joined_blocks
from medssl_cli.nn.tokens import (
    NORM_EPSILON,
    TokenBackbone,
    TokenBlock,
    initialise_tokens,
    learnt_token,
    positions,
    require_heads,
)


def build(
    in_channels: int,
    spatial_dims: int = 3,
    *,
    patch_size: PerAxis = 8,
    embedding_dim: int = 384,
    depth: int = 12,
    num_heads: int = 6,
    mlp_ratio: float = 4.0,
    finer_maps: int = 2,
    use_checkpoint: bool = False,
) -> Backbone:
    """Build a vision transformer; 384 x 12 x 6 is "small", 768 x 12 x 12 "base", 1024 x 24 x 16 "large".

    Args:
        in_channels: Channels of the image.
        spatial_dims: 2 or 3.
        patch_size: Voxels of a token along all axes or along each; crops are multiples of it.
        embedding_dim: Numbers of a token, a multiple of 4 in 2D, of 6 in 3D.
        depth: Blocks.
        num_heads: Heads of each block's attention.
        mlp_ratio: Width of each block's perceptron in `embedding_dim`.
        finer_maps: Feature maps of half, quarter, ... the stride of the patches, for decoders.
        use_checkpoint: Compute activations twice instead of keeping them: slower, less memory.

    Raises:
        ValueError: Sizes that do not go together.
    """
    patch = per_axis(patch_size, spatial_dims)
    require_heads(embedding_dim, num_heads, mlp_ratio)
    positions((1,) * spatial_dims, embedding_dim)
    if depth <= finer_maps or finer_maps < 0:
        raise ValueError(f"{finer_maps} finer maps come from as many blocks before the last of {depth}")
    return ViT(in_channels, patch, embedding_dim, depth, num_heads, mlp_ratio, finer_maps, use_checkpoint)


class ViT(TokenBackbone):
    """Tokens of patches and a class token through blocks of attention; the last map is pooled.

    Blocks between give the finer maps, at equal distances: of twelve, with two of them, the fourth and the eighth.
    """

    def __init__(
        self,
        in_channels: int,
        patch: Axes,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        finer_maps: int,
        use_checkpoint: bool,
    ) -> None:
        # How many cells of each map lie along a patch, fine to coarse.
        factors = [tuple(gcd(side, 2**halvings) for side in patch) for halvings in range(finer_maps, -1, -1)]
        if any(width % prod(factor) for factor in factors):
            raise ValueError(f"{width} numbers per token do not fill {prod(factors[0])} cells of a finer map")
        strides = [tuple(side // part for side, part in zip(patch, factor, strict=True)) for factor in factors]
        super().__init__(
            channels=[width // prod(factor) for factor in factors],
            strides=strides,
            embedding_levels=(finer_maps,),
            spatial_dims=len(patch),
        )
        self.use_checkpoint = use_checkpoint
        self.factors = factors
        self.taps = [max(1, depth * (level + 1) // (finer_maps + 1)) for level in range(finer_maps + 1)]
        convolution: Any = nn.Conv2d if len(patch) == 2 else nn.Conv3d
        self.patch_embed = nn.ModuleDict({"proj": convolution(in_channels, width, patch, stride=patch)})
        self.cls_token = nn.Parameter(learnt_token(width)[None, None])
        self.blocks = nn.ModuleList(TokenBlock(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        initialise_tokens(self)

    def level_of(self, name: str) -> int | None:
        """See `Backbone.level_of`: what makes tokens of the image is 0, the first block 1."""
        block = numbered_level(name, "blocks.")
        if block is not None:
            return block + 1
        return len(self.blocks) if name.startswith("norm.") else 0

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """See `Backbone.forward`. No token looks at one of which all is hidden; what else is hidden, is 0.

        Raises:
            UsageError: `E_CANVAS`.
        """
        tokens, grid = self.patch_tokens(hide(images, hidden)), self.grid_of(images)
        return self._maps(
            self._with_class(tokens, positions(grid, tokens.shape[2])), grid, _shown(images, hidden, grid)
        )

    def undecayed(self) -> list[nn.Parameter]:
        """The class token."""
        return [self.cls_token]

    def patch_tokens(self, images: Tensor) -> Tensor:
        """See `TokenBackbone.patch_tokens`.

        Raises:
            UsageError: `E_CANVAS`.
        """
        size = tuple(images.shape[2:])
        if (fault := misfit(size, self.crop_multiple)) is not None:
            raise UsageError(
                "E_CANVAS", f"vit cannot take crops of {size} voxels: {fault}", hint="change data.crop_size"
            )
        return cast(Tensor, self.patch_embed["proj"](images).flatten(2).transpose(1, 2))

    def maps_of(self, tokens: Tensor, grid: Axes) -> list[Tensor]:
        """See `TokenBackbone.maps_of`."""
        return self._maps(self._with_class(tokens, positions(grid, tokens.shape[2])), grid, None)

    def visible_tokens(self, images: Tensor, places: Tensor) -> Tensor:
        """See `TokenBackbone.visible_tokens`."""
        tokens, grid = self.patch_tokens(images), self.grid_of(images)
        shown = places[..., None].expand(-1, -1, tokens.shape[2])
        where = positions(grid, tokens.shape[2]).to(tokens).expand_as(tokens)
        return self._states(self._with_class(tokens.gather(1, shown), where.gather(1, shown)), None)[-1]

    def _with_class(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Class token, then tokens with their positions added."""
        first = self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return torch.cat([first, tokens + where.to(tokens)], dim=1)

    def _states(self, tokens: Tensor, is_shown: Tensor | None) -> list[Tensor]:
        """Tokens [B, 1 + N, E] behind the blocks that give a map, all of them normalised alike."""
        found = {}
        for number, block in enumerate(self.blocks, start=1):
            tokens = run_part(partial(block, is_shown=is_shown), tokens, use_checkpoint=self.use_checkpoint)
            if number in self.taps:
                found[number] = self.norm(tokens)
        return [found[number] for number in self.taps]

    def _maps(self, tokens: Tensor, grid: Axes, is_shown: Tensor | None) -> list[Tensor]:
        """Feature maps, fine to coarse."""
        maps = []
        for state, factor in zip(self._states(tokens, is_shown), self.factors, strict=True):
            cells = state[:, 1:].unflatten(2, (prod(factor), -1))
            size = [count * part for count, part in zip(grid, factor, strict=True)]
            maps.append(joined_blocks(cells, grid, size))
        return maps


def _shown(images: Tensor, hidden: Tensor | None, grid: Axes) -> Tensor | None:
    """Which tokens others may look at, the class token first, bool [B, 1 + N]; None for all of them."""
    if hidden is None or not hidden.any():
        return None
    voxels = spread_blocks(hidden, images.shape[2:])[:, None]
    is_shown = ~cut_blocks(voxels, grid).flatten(2).all(dim=2)
    return torch.cat([is_shown.new_ones(len(is_shown), 1), is_shown], dim=1)
