"""Feature pyramid: coarse maps, which know what is there, tell fine ones, which know where.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, https://arxiv.org/abs/1612.03144, section 3.

Shapes: B batch, C channels, X Y Z space (X Y in 2D).
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class FeaturePyramid(nn.Module):
    """Maps of one width from the coarsest maps of a backbone, and one of twice the coarsest stride.

    Args:
        channels: Channels of the maps that are used, fine to coarse.
        width: C of every map that comes out.
        spatial_dims: 2 or 3.
    """

    def __init__(self, channels: Sequence[int], width: int, spatial_dims: int = 2) -> None:
        super().__init__()
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.lateral = nn.ModuleList(convolution(number, width, 1) for number in channels)
        self.smooth = nn.ModuleList(convolution(width, width, 3, padding=1) for _ in channels)
        self.further = convolution(width, width, 3, stride=2, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps [B, channels[i], X_i, Y_i, Z_i], fine to coarse, to one map more of [B, C, X_i, Y_i, Z_i]."""
        inner: list[Tensor] = [lateral(level) for lateral, level in zip(self.lateral, maps, strict=True)]
        for place in range(len(inner) - 2, -1, -1):
            finer = inner[place]
            inner[place] = finer + F.interpolate(inner[place + 1], size=finer.shape[2:], mode="nearest")
        smoothed: list[Tensor] = [smooth(level) for smooth, level in zip(self.smooth, inner, strict=True)]
        further: Tensor = self.further(smoothed[-1].relu())
        return [*smoothed, further]
