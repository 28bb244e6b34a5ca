"""ResNet: the trunk of the 2D methods, with the parameter names that published weights have.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385, with the stride of
a bottleneck on its 3x3 convolution, as SwAV, DeepCluster-V2, VISSL and LVM-Med have it. MONAI has a ResNet too, but
weights are exchanged by torchvision's names (`layer1.0.conv1.weight`), which these modules have.

Shapes: B batch, C channels, X Y pixels (and Z with three spatial dimensions).
"""

from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor, nn

from medssl_cli.nn.backbones import Backbone, hide, numbered_level
from medssl_cli.nn.norms import GROUPS, NORMS, norm_layer
from medssl_cli.nn.norms import Norm as NormName

BLOCKS: Final = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_FROM: Final = 50
EXPANSION: Final = 4
STRIDES: Final = (4, 8, 16, 32)

Convolution = type[nn.Conv2d | nn.Conv3d]
Norm = Callable[[int], nn.Module]


def build(
    in_channels: int,
    spatial_dims: int = 2,
    *,
    depth: int = 50,
    width: int = 64,
    norm: NormName = "batch",
    zero_init: bool = False,
    inflation: Literal["mean", "centre"] = "mean",
) -> Backbone:
    """Build a ResNet without its classifier.

    Args:
        in_channels: Channels of the image.
        spatial_dims: 2 or 3.
        depth: 18, 34, 50 or 101 layers.
        width: Channels of the first level; the published networks have 64.
        norm: See `nn.norms`; "batch" as published. Blocks need a learnt scale: "instance" is "instance_affine" here. A
            decoder has the same, where it is named.
        zero_init: Start every block as the identity, by a last norm with scale 0.
        inflation: How kernels of a 2D encoder become those of a 3D one, if `--init` names one; see `inflate`.

    Returns:
        A backbone with four feature maps, of which the last is the embedding.

    Raises:
        ValueError: An option is not one of those above.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth {depth} is not one of {', '.join(map(str, BLOCKS))}")
    if inflation not in ("mean", "centre"):
        raise ValueError(f"inflation {inflation} is neither mean nor centre")
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims {spatial_dims} is neither 2 nor 3")
    if width < 1 or (norm == "group" and width % GROUPS):
        raise ValueError(f"width {width} is not a positive multiple of {GROUPS}, which norm: group needs")
    convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    network = ResNet(in_channels, depth, width, convolution, _norm(norm, spatial_dims))
    network.initialise(zero_init=zero_init)
    return network


def inflate(kernel: Tensor, thickness: int, how: Literal["mean", "centre"]) -> Tensor:
    """A kernel for volumes from one for pictures.

    Args:
        kernel: [C_out, C_in, X, Y].
        thickness: Z.
        how: `mean` spreads it evenly over Z, so that a volume of equal slices gives the answer of the slice; `centre`
            puts it in the middle, so that every slice gives the answer that it gave alone.

    Returns:
        [C_out, C_in, X, Y, Z].
    """
    if how == "mean":
        return (kernel / thickness)[..., None].repeat(1, 1, 1, 1, thickness)
    volume = kernel.new_zeros(*kernel.shape, thickness)
    volume[..., thickness // 2] = kernel
    return volume


class ResNet(Backbone):
    """Stem, then four levels of residual blocks; the output of each level is a feature map.

    Sizes need not be multiples of the coarsest stride: as in torchvision, odd sizes are rounded up.

    Args:
        in_channels: Channels of the image.
        depth: See `BLOCKS`.
        width: Channels of the first level before any expansion.
        convolution: Convolution of two or three dimensions.
        norm: Makes a normalisation of so many channels.
    """

    def __init__(self, in_channels: int, depth: int, width: int, convolution: Convolution, norm: Norm) -> None:
        is_deep = depth >= BOTTLENECK_FROM
        expansion = EXPANSION if is_deep else 1
        channels = tuple(width * 2**level * expansion for level in range(4))
        spatial_dims = 2 if issubclass(convolution, nn.Conv2d) else 3
        super().__init__(channels=channels, strides=STRIDES, embedding_levels=(3,), spatial_dims=spatial_dims)
        pool = nn.MaxPool2d if spatial_dims == 2 else nn.MaxPool3d
        self.conv1 = convolution(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = pool(3, stride=2, padding=1)
        block = Bottleneck if is_deep else BasicBlock
        before = width
        for level, (number, after) in enumerate(zip(BLOCKS[depth], channels, strict=True)):
            inner, stride = width * 2**level, 1 if level == 0 else 2
            blocks = [block(convolution, norm, before, inner, after, stride)]
            blocks += [block(convolution, norm, after, inner, after, 1) for _ in range(number - 1)]
            self.add_module(f"layer{level + 1}", nn.Sequential(*blocks))
            before = after

    def level_of(self, name: str) -> int | None:
        """See `Backbone.level_of`; the stem is 0, the first stage 1."""
        return 0 if name.startswith(("conv1.", "bn1.")) else numbered_level(name, "layer")

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """See `Backbone.forward`; hidden blocks are 0."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(hide(images, hidden)))))
        maps = []
        for level in range(len(STRIDES)):
            x = self.get_submodule(f"layer{level + 1}")(x)
            maps.append(x)
        return maps

    @torch.no_grad()
    def initialise(self, *, zero_init: bool) -> None:
        """As He et al., Delving Deep into Rectifiers, https://arxiv.org/abs/1502.01852, for the outputs."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init and isinstance(module, BasicBlock | Bottleneck):
                last = module.get_submodule("bn3" if isinstance(module, Bottleneck) else "bn2")
                nn.init.zeros_(last.get_parameter("weight"))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        convolution: Convolution of two or three dimensions.
        norm: Makes a normalisation.
        before: Channels that come in.
        inner: Channels between.
        after: Channels that go out.
        stride: Stride of the first convolution.
    """

    def __init__(self, convolution: Convolution, norm: Norm, before: int, inner: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(before, inner, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(inner)
        self.conv2 = convolution(inner, after, 3, padding=1, bias=False)
        self.bn2 = norm(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(convolution, norm, before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, X, Y] to [B, after, X / stride, Y / stride]."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        result: Tensor = self.relu(branch.add_(x if self.downsample is None else self.downsample(x)))
        return result


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution beside a shortcut.

    Args:
        convolution: Convolution of two or three dimensions.
        norm: Makes a normalisation.
        before: Channels that come in.
        inner: Channels between.
        after: Channels that go out.
        stride: Stride of the 3x3 convolution.
    """

    def __init__(self, convolution: Convolution, norm: Norm, before: int, inner: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(before, inner, 1, bias=False)
        self.bn1 = norm(inner)
        self.conv2 = convolution(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(inner)
        self.conv3 = convolution(inner, after, 1, bias=False)
        self.bn3 = norm(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(convolution, norm, before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, X, Y] to [B, after, X / stride, Y / stride]."""
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        result: Tensor = self.relu(branch.add_(x if self.downsample is None else self.downsample(x)))
        return result


def _shortcut(convolution: Convolution, norm: Norm, before: int, after: int, stride: int) -> nn.Sequential | None:
    if before == after and stride == 1:
        return None
    return nn.Sequential(convolution(before, after, 1, stride=stride, bias=False), norm(after))


def _norm(name: NormName, spatial_dims: int) -> Norm:
    if name not in NORMS:
        raise ValueError(f"norm {name} is not one of {', '.join(NORMS)}")
    own: NormName = "instance_affine" if name == "instance" else name
    return lambda channels: norm_layer(own, channels, spatial_dims)
