"""From the coarsest feature map of a network back to its image.

Shapes: B images, C channels, X Y Z space (X Y in 2D).
"""

from typing import Any, Final, cast

from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.decoder import scales_between

NARROWEST: Final = 16
SLOPE: Final = 0.01


class Restorer(nn.Module):
    """At each level a convolution, an instance norm, a leaky ReLU and linear up-sampling; then a linear map.

    Finer feature maps would show what is to be restored, so it takes none.

    Args:
        backbone: Whose coarsest map it takes.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        dims = backbone.spatial_dims
        convolution: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        norm: Any = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
        steps = [(1,) * dims, *backbone.strides] if max(backbone.strides[0]) > 1 else list(backbone.strides)
        self.scales = [tuple(map(float, scale)) for scale in reversed(scales_between(steps))]
        self.levels = nn.ModuleList()
        width = backbone.channels[-1]
        for _ in self.scales:
            narrower = max(width // 2, NARROWEST)
            self.levels.append(
                nn.Sequential(
                    convolution(width, narrower, 3, padding=1), norm(narrower, affine=True), nn.LeakyReLU(SLOPE)
                )
            )
            width = narrower
        self.last = convolution(width, backbone.in_channels, 1)
        self.mode = "bilinear" if dims == 2 else "trilinear"

    def forward(self, coarsest: Tensor) -> Tensor:
        """[B, C, X, Y, Z]."""
        x = coarsest
        for level, scale in zip(self.levels, self.scales, strict=True):
            x = F.interpolate(level(x), scale_factor=scale, mode=self.mode)
        return cast(Tensor, self.last(x))
