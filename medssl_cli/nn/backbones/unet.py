"""The encoder half of a 3D U-Net: small, fast on a CPU, and the default of the segmentation recipes.

U-Net: Ronneberger et al., MICCAI 2015, https://arxiv.org/abs/1505.04597; residual units: Zhang et al., IEEE GRSL 2018,
https://arxiv.org/abs/1711.10684. A first stride of 2 leaves no work at full resolution, most of the cost in 3D.
"""

from collections.abc import Sequence
from itertools import pairwise

from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from torch import Tensor, nn

from medssl_cli.nn.axes import Axes, PerAxis, cumulative, kernels_per_level, per_level
from medssl_cli.nn.backbones import Backbone, hide, numbered_level
from medssl_cli.nn.norms import WITHOUT_BIAS, monai_norm


def build(
    in_channels: int,
    spatial_dims: int = 3,
    *,
    channels: Sequence[int] = (32, 64, 128, 256),
    strides: Sequence[PerAxis] = (1, 2, 2, 2),
    kernel_sizes: int | Sequence[PerAxis] = 3,
    num_res_units: int = 2,
    norm: str = "instance",
    activation: str = "prelu",
    dropout_prob: float = 0.0,
) -> Backbone:
    """Build a U-Net encoder.

    Args:
        in_channels: Channels of the image.
        spatial_dims: 2 or 3.
        channels: Channels of each level, fine to coarse.
        strides: Down-sampling of each level relative to the one before, along all axes or along each; the first is
            relative to the image.
        kernel_sizes: Kernel sizes of the convolutions of each level, along all axes or along each; odd, at most 7.
        num_res_units: Convolutions in each level's residual unit; 0 for one plain convolution per level.
        norm: See `nn.norms`; another of MONAI's layer names does as well. A decoder has the same, where it is named.
        activation: MONAI's name of the non-linearity.
        dropout_prob: Probability of dropping a channel after each convolution.

    Returns:
        A backbone with one feature map per level.

    Raises:
        ValueError: Channels and strides do not go together.
    """
    if not channels or min(channels) < 1 or num_res_units < 0:
        raise ValueError("channels are at least 1, and of at least one level; num_res_units is at least 0")
    steps = per_level(strides, len(channels), spatial_dims, "strides")
    kernels = kernels_per_level(kernel_sizes, len(channels), spatial_dims)
    levels = []
    widths = pairwise((in_channels, *channels))
    for (width_in, width), step, kernel in zip(widths, steps, kernels, strict=True):
        options = {
            "strides": step,
            "kernel_size": kernel,
            "norm": monai_norm(norm, width),
            "act": activation,
            "dropout": dropout_prob or None,
            "bias": norm not in WITHOUT_BIAS,
        }
        if num_res_units > 0:
            levels.append(ResidualUnit(spatial_dims, width_in, width, subunits=num_res_units, **options))
        else:
            levels.append(Convolution(spatial_dims, width_in, width, **options))
    return UNetEncoder(levels, channels=channels, strides=cumulative(steps))


class UNetEncoder(Backbone):
    """A chain of levels; the output of each is a feature map. Its coarsest map is the embedding."""

    def __init__(self, levels: list[nn.Module], *, channels: Sequence[int], strides: Sequence[Axes]) -> None:
        super().__init__(
            channels=channels,
            strides=strides,
            embedding_levels=(len(channels) - 1,),
            spatial_dims=len(strides[0]),
        )
        self.levels = nn.ModuleList(levels)

    def level_of(self, name: str) -> int | None:
        """See `Backbone.level_of`."""
        return numbered_level(name, "levels.")

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """See `Backbone.forward`; hidden blocks are 0."""
        x = hide(images, hidden)
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps
