"""The expanding half of SwinUNETR, under the names and in the shapes of published weights.

SwinUNETR: Hatamizadeh et al., BrainLes 2021, https://arxiv.org/abs/2201.01266. Parts have the names and shapes of
`monai.networks.nets.SwinUNETR`, so that with the backbone `swinunetr` all tensors of a whole network load by name.

Shapes: B batch, C channels, X Y Z space (X Y in 2D).
"""

from collections.abc import Sequence
from typing import Final, cast

from monai.networks.blocks import UnetOutBlock, UnetrUpBlock
from torch import Tensor, nn

from medssl_cli.nn.axes import PerAxis, per_axis
from medssl_cli.nn.decoder import VoxelDecoder, scales_between

SCORES: Final = "out."
"""What names of tensors of the last layer begin with."""


class SwinUNETRDecoder(VoxelDecoder):
    """Up-sampling, then a residual block with the finer map, at each level; then one score per class.

    The finest level of `n` is `decoder1`, the coarsest `decoder{n}`; those of SwinUNETR are 5.

    Args:
        channels: Channels of the feature maps, fine to coarse; each level has those of its map.
        strides: Input voxels per feature cell of each map; 1 of the finest.
        out_channels: Classes, background included.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: The finest map is coarser than the image, or strides do not rise by whole factors.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[PerAxis], out_channels: int, *, spatial_dims: int = 3
    ) -> None:
        steps = [per_axis(stride, spatial_dims) for stride in strides]
        if max(steps[0]) > 1 or len(steps) < 2:
            raise ValueError("the decoder swinunetr needs a backbone with feature maps of strides that begin with 1")
        super().__init__(channels[:-1])
        for level, scale in reversed(list(enumerate(scales_between(steps)))):
            block = UnetrUpBlock(
                spatial_dims,
                channels[level + 1],
                channels[level],
                kernel_size=3,
                upsample_kernel_size=scale,
                norm_name="instance",
                res_block=True,
            )
            self.add_module(f"decoder{level + 1}", cast(nn.Module, block))
        self.out = cast(nn.Module, UnetOutBlock(spatial_dims, channels[0], out_channels))

    def features(self, maps: list[Tensor]) -> list[Tensor]:
        """See `VoxelDecoder.features`."""
        *skips, x = maps
        found = []
        for level, skip in reversed(list(enumerate(skips, start=1))):
            x = self.get_submodule(f"decoder{level}")(x, skip)
            found.append(x)
        return found[::-1]

    def score(self, finest: Tensor) -> Tensor:
        """See `VoxelDecoder.score`."""
        logits: Tensor = self.out(finest)
        return logits
