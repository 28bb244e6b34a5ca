"""Networks that turn an image into feature maps; one file per network, found by its name.

A file `<name>.py` defines `build(in_channels, spatial_dims=3, **options) -> Backbone`. Nothing else needs to know it.
`docs/guides/add-a-backbone.md` walks through one.

Shape legend: B batch, C channels, X Y Z space (X Y for 2D backbones), X' Y' Z' blocks of an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medssl_cli.base.errors import UsageError
from medssl_cli.nn.axes import Axes, PerAxis, misfit, per_axis


class Backbone(nn.Module, ABC):
    """What pre-training teaches and every task starts from: image in, feature maps out.

    Args:
        channels: Channels of each feature map, fine to coarse.
        strides: Input voxels per feature cell, one entry per map: one number for all axes, or one per axis. From map
            to map they fall along no axis and rise along at least one.
        embedding_levels: Indices of the maps that are pooled into an embedding.
        crop_multiple: Input sizes must be multiples of this, along all axes or along each; the strides of the coarsest
            map if None.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: The description contradicts itself.
    """

    named_norm: str | None = None
    """Norm that a recipe names for it, which a decoder follows; None where it has that of its kind."""
    channels: tuple[int, ...]
    strides: tuple[Axes, ...]
    embedding_levels: tuple[int, ...]
    crop_multiple: Axes
    spatial_dims: int
    in_channels: int = 1
    """Number of channels of the images; whoever builds the backbone says so."""

    def __init__(
        self,
        *,
        channels: Sequence[int],
        strides: Sequence[PerAxis],
        embedding_levels: Sequence[int],
        crop_multiple: PerAxis | None = None,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        if not channels or len(channels) != len(strides):
            raise ValueError(f"{len(channels)} channels and {len(strides)} strides: need one of each per feature map")
        if not embedding_levels or not set(embedding_levels) <= set(range(len(channels))):
            raise ValueError(f"embedding levels {embedding_levels} are not among the {len(channels)} feature maps")
        self.channels = tuple(channels)
        self.strides = tuple(per_axis(stride, spatial_dims) for stride in strides)
        self.embedding_levels = tuple(embedding_levels)
        self.crop_multiple = self.strides[-1] if crop_multiple is None else per_axis(crop_multiple, spatial_dims)
        self.spatial_dims = spatial_dims
        for fine, coarse in pairwise(self.strides):
            if fine == coarse or any(below < above for above, below in zip(fine, coarse, strict=True)):
                raise ValueError(f"strides {self.strides} do not rise from fine to coarse")

    @property
    def embedding_dim(self) -> int:
        """Length of the embedding that `embed` returns."""
        return sum(self.channels[level] for level in self.embedding_levels)

    @abstractmethod
    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """Compute the feature maps.

        Args:
            images: [B, C, X, Y, Z]; each spatial size is a multiple of `crop_multiple`.
            hidden: Which blocks of each image a masked method hides, bool [B, X', Y', Z']; see `hide`. What images
                show there changes no feature. None hides nothing.

        Returns:
            One map per level, fine to coarse: [B, channels[i], X / strides[i][0], Y / strides[i][1],
            Z / strides[i][2]].
        """

    def level_of(self, name: str) -> int | None:
        """At which level a parameter is, 0 the one nearest to the image; None where the network does not tell.

        Rates of learning may fall from level to level, see `recipe.Transfer`. Levels may be more than feature maps.

        Args:
            name: Name of the parameter.
        """
        return None

    def embed(self, images: Tensor) -> Tensor:
        """Describe each image by one vector: the mean over space of each embedding level's map, concatenated.

        Args:
            images: [B, C, X, Y, Z].

        Returns:
            Embeddings [B, embedding_dim].
        """
        return self.pool(self(images))

    def pool(self, maps: list[Tensor]) -> Tensor:
        """Embeddings [B, embedding_dim] of images whose feature maps are known already."""
        return torch.cat([maps[level].flatten(2).mean(dim=2) for level in self.embedding_levels], dim=1)


def numbered_level(name: str, part: str) -> int | None:
    """The number behind `part` where a parameter's name begins with it: 2 of `stages.2.conv`; None if it does not."""
    number = name.removeprefix(part).partition(".")[0]
    return int(number) if name.startswith(part) and number.isdecimal() else None


def hide(images: Tensor, hidden: Tensor | None) -> Tensor:
    """Images that are 0 in their hidden blocks, whatever was there, as networks of convolutions see them.

    Args:
        images: [B, C, X, Y, Z].
        hidden: True for each block to hide, bool [B, X', Y', Z']: the image is cut into X' x Y' x Z' blocks of equal
            size, so that X' divides X, Y' divides Y and Z' divides Z. None hides nothing.

    Raises:
        ValueError: The blocks do not make up the images.
    """
    if hidden is None:
        return images
    size, blocks = images.shape[2:], hidden.shape[1:]
    is_grid = len(hidden) == len(images) and len(blocks) == len(size)
    if hidden.dtype != torch.bool or not is_grid or any(a % b for a, b in zip(size, blocks, strict=True)):
        raise ValueError(
            f"hidden is {hidden.dtype} {tuple(hidden.shape)}: images {tuple(images.shape)} need bool [B, X', Y', Z'] "
            "whose sizes divide theirs"
        )
    return images.masked_fill(spread_blocks(hidden, size)[:, None], 0)


def spread_blocks(hidden: Tensor, size: Sequence[int]) -> Tensor:
    """What is said of blocks, [B, X', Y', Z'], for each voxel of images of a size that they make up, [B, X, Y, Z]."""
    for axis, (extent, count) in enumerate(zip(size, hidden.shape[1:], strict=True), start=1):
        hidden = hidden.repeat_interleave(extent // count, dim=axis)
    return hidden


def run_part(part: Callable[[Tensor], Any], x: Tensor, *, use_checkpoint: bool) -> Tensor:
    """Output of a part of a network; with a checkpoint its activations are computed twice instead of kept."""
    if use_checkpoint and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(part, x, use_reentrant=False))
    return cast(Tensor, part(x))


def require_canvas(images: Tensor, multiple: Axes, name: str) -> None:
    """Refuse images that a backbone with instance norms cannot take.

    Args:
        images: [B, C, X, Y, Z].
        multiple: What the size along each axis must be a multiple of; the coarsest map has size / `multiple` cells.
        name: Name of the backbone.

    Raises:
        UsageError: `E_CANVAS`, a size is no multiple, or the coarsest map has one cell: nothing to normalise over.
    """
    size = tuple(images.shape[2:])
    fault = misfit(size, multiple)
    if fault is None and size == multiple:
        fault = "the coarsest feature map would be one cell, of which a norm has no variance"
    if fault is not None:
        raise UsageError(
            "E_CANVAS",
            f"{name} cannot take crops of {size} voxels: {fault}",
            hint="change data.crop_size, or use a backbone with fewer levels",
        )
