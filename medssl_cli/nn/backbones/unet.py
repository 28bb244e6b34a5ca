"""The encoder half of a 3D U-Net: small, fast on a CPU, and the default of the segmentation recipes.

U-Net: Ronneberger et al., MICCAI 2015, https://arxiv.org/abs/1505.04597; residual units: Zhang et al., IEEE GRSL 2018,
https://arxiv.org/abs/1711.10684. A first stride of 2 leaves no work at full resolution, most of the cost in 3D.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul

from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from torch import Tensor, nn

from medssl_cli.nn.backbones import Backbone


def build(
    in_channels: int,
    spatial_dims: int = 3,
    *,
    channels: Sequence[int] = (32, 64, 128, 256),
    strides: Sequence[int] = (1, 2, 2, 2),
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
        strides: Down-sampling of each level relative to the one before; the first is relative to the image.
        num_res_units: Convolutions in each level's residual unit; 0 for one plain convolution per level.
        norm: "instance", "batch" or another of MONAI's layer names.
        activation: MONAI's name of the non-linearity.
        dropout_prob: Probability of dropping a channel after each convolution.

    Returns:
        A backbone with one feature map per level.

    Raises:
        ValueError: Channels and strides do not go together.
    """
    if len(channels) != len(strides) or not channels:
        raise ValueError(f"{len(channels)} channels and {len(strides)} strides: a U-Net needs one of each per level")
    if min(channels) < 1 or min(strides) < 1 or num_res_units < 0:
        raise ValueError("channels and strides are at least 1, num_res_units at least 0")
    levels = []
    for (width_in, width), stride in zip(pairwise((in_channels, *channels)), strides, strict=True):
        options = {
            "strides": stride,
            "norm": norm,
            "act": activation,
            "dropout": dropout_prob or None,
            "bias": norm not in ("instance", "batch"),  # these norms subtract the mean, and with it any bias
        }
        if num_res_units > 0:
            levels.append(ResidualUnit(spatial_dims, width_in, width, subunits=num_res_units, **options))
        else:
            levels.append(Convolution(spatial_dims, width_in, width, **options))
    return UNetEncoder(levels, channels=tuple(channels), strides=tuple(accumulate(strides, mul)))


class UNetEncoder(Backbone):
    """A chain of levels; the output of each is a feature map. Its coarsest map is the embedding."""

    def __init__(self, levels: list[nn.Module], *, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__(
            channels=channels, strides=strides, embedding_levels=(len(channels) - 1,), crop_multiple=strides[-1]
        )
        self.levels = nn.ModuleList(levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps
