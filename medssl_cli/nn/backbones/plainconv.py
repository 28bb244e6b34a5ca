"""nnU-Net's plain encoder: a few convolutions per level. By default the shape of the published `VoComni_nnunet`.

nnU-Net: Isensee et al., Nature Methods 2021, https://doi.org/10.1038/s41592-020-01008-z. Parts have the names of
nnU-Net's `PlainConvUNet` without the leading `encoder.` and without its aliases.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.nnunet import ConvChain, StagedEncoder, require_levels


def build(
    in_channels: int,
    spatial_dims: int = 3,
    *,
    channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
    strides: Sequence[int] = (1, 2, 2, 2, 2, 2),
    num_convs: Sequence[int] = (2, 2, 2, 2, 2, 2),
    use_checkpoint: bool = False,
) -> Backbone:
    """Build nnU-Net's plain encoder; its embedding is the coarsest map's mean.

    Args:
        in_channels: Channels of the image.
        spatial_dims: 2 or 3.
        channels: Channels of each level, fine to coarse.
        strides: Down-sampling of each level relative to the one before, the same along all axes.
        num_convs: Convolutions of each level.
        use_checkpoint: Compute activations twice instead of keeping them: slower, less memory.

    Raises:
        ValueError: The lists do not go together.
    """
    require_levels(channels, strides, num_convs, "num_convs")
    stages = [
        nn.Sequential(ConvChain(spatial_dims, width_in, width, num_convs=count, stride=stride))  # nnU-Net: `stages.S.0`
        for (width_in, width), stride, count in zip(pairwise((in_channels, *channels)), strides, num_convs, strict=True)
    ]
    return StagedEncoder("plainconv", stages, channels=channels, strides=strides, use_checkpoint=use_checkpoint)
