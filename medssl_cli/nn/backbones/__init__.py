"""Networks that turn an image into feature maps; one file per network, found by its name.

A file `<name>.py` defines `build(in_channels, spatial_dims=3, **options) -> Backbone`. Nothing else needs to know it.

Shape legend: B batch, C channels, X Y Z space (X Y for 2D backbones).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from medssl_cli.errors import UsageError


class Backbone(nn.Module, ABC):
    """What pre-training teaches and every task starts from: image in, feature maps out.

    Args:
        channels: Channels of each feature map, fine to coarse.
        strides: Input voxels per feature cell along each axis, one per map, rising.
        embedding_levels: Indices of the maps that are pooled into an embedding.
        crop_multiple: Input sizes must be multiples of this.

    Raises:
        ValueError: The description contradicts itself.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        embedding_levels: tuple[int, ...],
        crop_multiple: int,
    ) -> None:
        super().__init__()
        if not channels or len(channels) != len(strides):
            raise ValueError(f"{len(channels)} channels and {len(strides)} strides: need one of each per feature map")
        if list(strides) != sorted(set(strides)):
            raise ValueError(f"strides {strides} do not rise from fine to coarse")
        if not embedding_levels or not set(embedding_levels) <= set(range(len(channels))):
            raise ValueError(f"embedding levels {embedding_levels} are not among the {len(channels)} feature maps")
        self.channels = channels
        self.strides = strides
        self.embedding_levels = embedding_levels
        self.crop_multiple = crop_multiple

    @property
    def spatial_dims(self) -> int:
        """2 or 3, by its convolutions."""
        return 3 if any(isinstance(module, nn.Conv3d) for module in self.modules()) else 2

    @property
    def embedding_dim(self) -> int:
        """Length of the embedding that `embed` returns."""
        return sum(self.channels[level] for level in self.embedding_levels)

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the feature maps.

        Args:
            x: Images [B, C, X, Y, Z]; each spatial size is a multiple of `crop_multiple`.

        Returns:
            One map per level, fine to coarse: [B, channels[i], X / strides[i], Y / strides[i], Z / strides[i]].
        """

    def embed(self, x: Tensor) -> Tensor:
        """Describe each image by one vector: the mean over space of each embedding level's map, concatenated.

        Args:
            x: Images [B, C, X, Y, Z].

        Returns:
            Embeddings [B, embedding_dim].
        """
        return self.pool(self(x))

    def pool(self, maps: list[Tensor]) -> Tensor:
        """Embeddings [B, embedding_dim] of images whose feature maps are known already."""
        return torch.cat([maps[level].flatten(2).mean(dim=2) for level in self.embedding_levels], dim=1)


def require_canvas(x: Tensor, multiple: int, name: str) -> None:
    """Refuse images that a backbone with instance norms cannot take.

    Args:
        x: Images [B, C, X, Y, Z].
        multiple: What every size must be a multiple of; the coarsest map then has size / `multiple` cells.
        name: Of the backbone.

    Raises:
        UsageError: `E_CANVAS`, a size is no multiple, or the coarsest map has one cell: nothing to normalise over.
    """
    size = tuple(x.shape[2:])
    if any(extent % multiple for extent in size) or all(extent == multiple for extent in size):
        raise UsageError(
            "E_CANVAS",
            f"{name} cannot take crops of {size} voxels: every size must be a multiple of {multiple}, "
            f"one of them at least {2 * multiple}",
            hint="change data.crop_size, or use a backbone with fewer levels",
        )
