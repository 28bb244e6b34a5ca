"""nnU-Net's plain encoder: a few convolutions per level. By default the shape of the published `VoComni_nnunet`.

nnU-Net: Isensee et al., Nature Methods 2021, https://doi.org/10.1038/s41592-020-01008-z. Parts have the names of
nnU-Net's `PlainConvUNet` without the leading `encoder.` and without its aliases.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from medssl_cli.nn.axes import PerAxis, kernels_per_level, per_level
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.nnunet import NORM, ConvChain, StagedEncoder, require_levels
from medssl_cli.nn.norms import Norm


def build(
    in_channels: int,
    spatial_dims: int = 3,
    *,
    channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
    strides: Sequence[PerAxis] = (1, 2, 2, 2, 2, 2),
    kernel_sizes: int | Sequence[PerAxis] = 3,
    num_convs: Sequence[int] = (2, 2, 2, 2, 2, 2),
    norm: Norm = NORM,
    use_checkpoint: bool = False,
) -> Backbone:
    """Build nnU-Net's plain encoder; its embedding is the coarsest map's mean.

    Args:
        in_channels: Channels of the image.
        spatial_dims: 2 or 3.
        channels: Channels of each level, fine to coarse.
        strides: Down-sampling of each level relative to the one before, along all axes or along each.
        kernel_sizes: Kernel sizes of the convolutions of each level, along all axes or along each; odd, at most 7.
        num_convs: Convolutions of each level.
        norm: See `nn.norms`; a decoder has the same, where it is named. Published weights need the default.
        use_checkpoint: Compute activations twice instead of keeping them: slower, less memory.

    Raises:
        ValueError: The lists do not go together.
    """
    require_levels(channels, num_convs, "num_convs")
    steps = per_level(strides, len(channels), spatial_dims, "strides")
    kernels = kernels_per_level(kernel_sizes, len(channels), spatial_dims)
    widths = pairwise((in_channels, *channels))
    stages = [
        nn.Sequential(  # nnU-Net: `stages.S.0`
            ConvChain(spatial_dims, width_in, width, num_convs=count, kernel_size=kernel, stride=step, norm=norm)
        )
        for (width_in, width), step, kernel, count in zip(widths, steps, kernels, num_convs, strict=True)
    ]
    return StagedEncoder("plainconv", stages, channels=channels, strides=steps, use_checkpoint=use_checkpoint)
