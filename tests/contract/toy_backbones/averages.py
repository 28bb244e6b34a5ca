"""A toy backbone: one convolution on the image, and one on averages of boxes that are half as deep as wide."""

from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.nn.backbones import Backbone, hide

BOX = (4, 4, 2)


def build(in_channels: int, spatial_dims: int = 3, *, width: int = 8) -> Backbone:
    """Build two feature maps of as many channels.

    Args:
        in_channels: Channels of the image.
        spatial_dims: 2 or 3.
        width: Channels of each map.
    """
    return Averages(in_channels, spatial_dims, width)


class Averages(Backbone):
    def __init__(self, in_channels: int, spatial_dims: int, width: int) -> None:
        super().__init__(
            channels=(width, width),
            strides=(1, BOX[:spatial_dims]),
            embedding_levels=(1,),
            spatial_dims=spatial_dims,
        )
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.fine = convolution(in_channels, width, 3, padding=1)
        self.coarse = convolution(width, width, 1)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        fine = self.fine(hide(images, hidden)).relu()
        average = F.avg_pool2d if self.spatial_dims == 2 else F.avg_pool3d
        return [fine, self.coarse(average(fine, self.strides[1])).tanh()]
