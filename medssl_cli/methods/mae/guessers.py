"""From images with hidden blocks to all of their blocks, through a backbone: with tokens, sparse, or over zeros.

Shapes: B images, N blocks of an image, K visible ones, P voxels of a block, C channels, X' Y' Z' blocks along each
axis.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn

from medssl_cli.methods.mae.options import TokenDecoderOptions
from medssl_cli.methods.mae.sparse import Densifier, make_sparse
from medssl_cli.nn.axes import Axes
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_decoder
from medssl_cli.nn.decoder import Decoder, UNetDecoder
from medssl_cli.nn.hidden_blocks import cut_blocks
from medssl_cli.nn.tokens import (
    NORM_EPSILON,
    TokenBackbone,
    TokenBlock,
    initialise_tokens,
    learnt_token,
    positions,
    require_heads,
)

TOKEN_WIDTHS: Final = {2: 512, 3: 384}
DENSE_NORM: Final = "batch"


class Guesser(nn.Module, ABC):
    """What is thrown away after the training; the backbone is handed to it."""

    @abstractmethod
    def forward(self, backbone: Backbone, images: Tensor, hidden: Tensor) -> Tensor:
        """Guess all blocks.

        Args:
            backbone: The method's.
            images: [B, C, X, Y, Z].
            hidden: Bool [B, X', Y', Z'], as many of each image.

        Returns:
            [B, N, P, C]; what is said of visible blocks is of no use.
        """


class MaskedGuesser(Guesser):
    """An ordinary network sees zeros where blocks are hidden.

    Args:
        backbone: Whose maps the decoder takes.
        options: Options of the decoder.
        size: Voxels of an image along each axis.
        grid: X', Y', Z'.
    """

    def __init__(self, backbone: Backbone, options: Decoder, size: Axes, grid: Axes) -> None:
        super().__init__()
        self.grid = grid
        self.decoder = build_decoder(options, backbone, backbone.in_channels)

    def forward(self, backbone: Backbone, images: Tensor, hidden: Tensor) -> Tensor:
        """See `Guesser.forward`."""
        return cut_blocks(self.decoder(backbone(images, hidden)), self.grid)


class SparseGuesser(Guesser):
    """A network of convolutions sees visible places only; its maps are filled up before they are decoded.

    Args:
        backbone: Backbone of convolutions; its layers are told what is hidden from now on.
        options: Options of the decoder.
        size: Voxels of an image along each axis.
        grid: X', Y', Z'.

    Raises:
        UsageError: `E_RECIPE`, the backbone has other layers.
        ValueError: The options do not go together.
    """

    def __init__(self, backbone: Backbone, options: Decoder, size: Axes, grid: Axes) -> None:
        super().__init__()
        self.grid = grid
        self.visibility = make_sparse(backbone)
        channels, strides = backbone.channels, backbone.strides
        widths = (*(channels[:-1] if options.widths is None else options.widths), channels[-1])
        if len(widths) != len(channels):
            raise ValueError(f"decoder.widths {list(widths[:-1])}: one for each of {len(channels) - 1} levels")
        sizes = [tuple(extent // step for extent, step in zip(size, stride, strict=True)) for stride in strides]
        self.densifier = Densifier(channels, widths, sizes, grid)
        self.decoder = UNetDecoder(
            widths,
            strides,
            backbone.in_channels,
            spatial_dims=len(grid),
            num_res_units=options.num_res_units,
            norm=options.norm or backbone.named_norm or DENSE_NORM,
            activation=options.activation,
            dropout_prob=options.dropout_prob,
        )

    def forward(self, backbone: Backbone, images: Tensor, hidden: Tensor) -> Tensor:
        """See `Guesser.forward`."""
        with self.visibility.of(hidden):
            maps: Sequence[Tensor] = backbone(images, hidden)
        return cut_blocks(self.decoder(self.densifier(maps, hidden)), self.grid)


class TokenGuesser(Guesser):
    """Visible tokens and learnt ones in the places of hidden patches, through a few blocks of attention.

    He et al., section 3, https://arxiv.org/abs/2111.06377.

    Args:
        backbone: Backbone of tokens.
        options: Shape of the decoder.
        grid: Tokens along each axis.
        num_voxels: P.

    Raises:
        ValueError: The options do not go together.
    """

    places: Tensor

    def __init__(self, backbone: TokenBackbone, options: TokenDecoderOptions, grid: Axes, num_voxels: int) -> None:
        super().__init__()
        width = options.width or TOKEN_WIDTHS[len(grid)]
        require_heads(width, options.num_heads)
        self.channels = backbone.in_channels
        self.embed = nn.Linear(backbone.channels[-1], width)
        self.token = nn.Parameter(learnt_token(width))
        self.register_buffer("places", positions(grid, width), persistent=False)
        self.blocks = nn.ModuleList(TokenBlock(width, options.num_heads) for _ in range(options.depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.guess = nn.Linear(width, num_voxels * self.channels)
        initialise_tokens(self)

    def forward(self, backbone: Backbone, images: Tensor, hidden: Tensor) -> Tensor:
        """See `Guesser.forward`."""
        where = (~hidden).flatten(1).nonzero()[:, 1].view(len(images), -1)
        tokens = self.embed(cast(TokenBackbone, backbone).visible_tokens(images, where))
        everywhere = self.token.to(tokens.dtype).expand(len(tokens), len(self.places), -1)
        restored = everywhere.scatter(1, where[..., None].expand(-1, -1, tokens.shape[2]), tokens[:, 1:])
        tokens = torch.cat([tokens[:, :1], restored + self.places.to(tokens.dtype)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        guessed = self.guess(self.norm(tokens[:, 1:]))
        return cast(Tensor, guessed.unflatten(2, (-1, self.channels)))
