"""nnU-Net's residual encoder, ResEnc: by default the shape of nnU-Net's presets M and L for images with cubic voxels.

Residual encoders: Isensee et al., MICCAI 2024, https://arxiv.org/abs/2404.09556. Parts have the names of nnU-Net's
`ResidualEncoderUNet` without the leading `encoder.` and without its aliases.
"""

from collections.abc import Sequence
from itertools import pairwise

from medssl_cli.nn.axes import PerAxis, kernels_per_level, per_level
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.nnunet import NORM, ConvChain, ResidualChain, StagedEncoder, require_levels
from medssl_cli.nn.norms import Norm


def build(
    in_channels: int,
    spatial_dims: int = 3,
    *,
    channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
    strides: Sequence[PerAxis] = (1, 2, 2, 2, 2, 2),
    kernel_sizes: int | Sequence[PerAxis] = 3,
    num_blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
    norm: Norm = NORM,
    use_checkpoint: bool = False,
) -> Backbone:
    """Build nnU-Net's residual encoder; its embedding is the coarsest map's mean.

    Args:
        in_channels: Channels of the image.
        spatial_dims: 2 or 3.
        channels: Channels of each level, fine to coarse.
        strides: Down-sampling of each level relative to the one before, along all axes or along each.
        kernel_sizes: Kernel sizes of the convolutions of each level, along all axes or along each; odd, at most 7.
        num_blocks: Residual blocks of each level.
        norm: See `nn.norms`; a decoder has the same, where it is named. Published weights need the default.
        use_checkpoint: Compute activations twice instead of keeping them: slower, less memory.

    Raises:
        ValueError: The lists do not go together.
    """
    require_levels(channels, num_blocks, "num_blocks")
    steps = per_level(strides, len(channels), spatial_dims, "strides")
    kernels = kernels_per_level(kernel_sizes, len(channels), spatial_dims)
    stem = ConvChain(spatial_dims, in_channels, channels[0], num_convs=1, kernel_size=kernels[0], norm=norm)
    widths = pairwise((channels[0], *channels))
    stages = [
        ResidualChain(spatial_dims, width_in, width, num_blocks=count, kernel_size=kernel, stride=step, norm=norm)
        for (width_in, width), step, kernel, count in zip(widths, steps, kernels, num_blocks, strict=True)
    ]
    return StagedEncoder("resenc", stages, channels=channels, strides=steps, use_checkpoint=use_checkpoint, stem=stem)
