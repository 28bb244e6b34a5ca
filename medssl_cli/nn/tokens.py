"""Networks of tokens: what vision transformers and the decoders over them are made of.

Parts have the names and shapes of timm's `VisionTransformer`, so published weights load by name.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, https://arxiv.org/abs/2010.11929.

Shapes: B images, N tokens of an image in C order, K tokens that are shown, E embedding, C channels, X Y Z space (X Y in
2D), X' Y' Z' tokens along each axis.
"""

from abc import abstractmethod
from math import prod
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.nn.axes import Axes
from medssl_cli.nn.backbones import Backbone

LONGEST_WAVE: Final = 10_000.0
TOKEN_STD: Final = 0.02
NORM_EPSILON: Final = 1e-6


class TokenBackbone(Backbone):
    """A backbone that sees an image through tokens only, of which a method may leave some out or put others in place.

    The last feature map has one cell per token.
    """

    def grid_of(self, images: Tensor) -> Axes:
        """Tokens along each axis of images [B, C, X, Y, Z]."""
        size = images.shape[2:]
        return tuple(extent // side for extent, side in zip(size, self.strides[-1], strict=True))

    @abstractmethod
    def patch_tokens(self, images: Tensor) -> Tensor:
        """Tokens [B, N, E] of the patches of images [B, C, X, Y, Z], before their positions are added."""

    @abstractmethod
    def maps_of(self, tokens: Tensor, grid: Axes) -> list[Tensor]:
        """Feature maps, as `forward` gives them, of tokens [B, N, E] without their positions."""

    @abstractmethod
    def visible_tokens(self, images: Tensor, places: Tensor) -> Tensor:
        """The encoder's output for some of the tokens, computed as if there were no others.

        Args:
            images: [B, C, X, Y, Z].
            places: Places of the tokens that are shown, int64 [B, K].

        Returns:
            Class token, then tokens in the order of `places`, [B, 1 + K, E].
        """


def positions(grid: Axes, width: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed sine and cosine positions of tokens.

    A token's place i along an axis gives sin(i w_j), then cos(i w_j), with w_j = 10000^(-j / n). In 2D, as in MAE
    (https://arxiv.org/abs/2111.06377), n is E / 4, and the last axis comes first. In 3D n is E / 6: x, y, z.

    Args:
        grid: X', Y', Z'.
        width: E, a multiple of twice the number of axes.
        dtype: Data type of the result.

    Returns:
        [N, E].

    Raises:
        ValueError: The width cannot be divided.
    """
    dims = len(grid)
    if width % (2 * dims):
        raise ValueError(f"{width} numbers per token cannot tell positions in {dims}D: need a multiple of {2 * dims}")
    number = width // (2 * dims)
    rates = LONGEST_WAVE ** (-torch.arange(number, dtype=dtype) / number)
    parts = []
    for axis in (1, 0) if dims == 2 else range(dims):
        angles = torch.arange(grid[axis], dtype=dtype)[:, None] * rates
        wave = torch.cat([angles.sin(), angles.cos()], dim=1)
        shape = [grid[axis] if other == axis else 1 for other in range(dims)]
        parts.append(wave.view(*shape, -1).expand(*grid, -1))
    return torch.cat(parts, dim=-1).reshape(prod(grid), width)


class TokenAttention(nn.Module):
    """Attention of all tokens to each other, in several heads.

    Args:
        width: E.
        num_heads: Heads; they divide E.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, is_shown: Tensor | None = None) -> Tensor:
        """Tokens [B, N, E] to [B, N, E]; `is_shown`, bool [B, N], says which of them others may look at."""
        batch, number, width = tokens.shape
        parts = self.qkv(tokens).reshape(batch, number, 3, self.num_heads, width // self.num_heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if is_shown is None else is_shown[:, None, None]
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return cast(Tensor, self.proj(attended.transpose(1, 2).reshape(batch, number, width)))


class Perceptron(nn.Module):
    """Two linear maps of each token, with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, E] to [B, N, E]."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(tokens))))


class TokenBlock(nn.Module):
    """Attention, then a perceptron, each beside a shortcut and behind a norm.

    Args:
        width: E.
        num_heads: Heads of the attention.
        mlp_ratio: Width of the perceptron's hidden layer in E.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = TokenAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = Perceptron(width, int(width * mlp_ratio))

    def forward(self, tokens: Tensor, is_shown: Tensor | None = None) -> Tensor:
        """[B, N, E] to [B, N, E]; see `TokenAttention`."""
        tokens = tokens + self.attn(self.norm1(tokens), is_shown)
        return cast(Tensor, tokens + self.mlp(self.norm2(tokens)))


@torch.no_grad()
def initialise_tokens(module: nn.Module) -> None:
    """Xavier-uniform linear maps (convolutions of patches are linear maps too), without offsets, as in MAE."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.xavier_uniform_(part.weight.view(len(part.weight), -1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def learnt_token(width: int) -> Tensor:
    """The start of a learnt token [E]: normal with a standard deviation of 0.02."""
    return TOKEN_STD * torch.randn(width)


def require_heads(width: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
    """Refuse widths that heads cannot share.

    Raises:
        ValueError: They do not go together.
    """
    if num_heads < 1 or width < 1 or width % num_heads or int(width * mlp_ratio) < 1:
        raise ValueError(f"{num_heads} heads cannot share {width} numbers per token")
