"""What nnU-Net's two encoders are made of; parts have nnU-Net's names without its aliases, so its weights load by name.

nnU-Net: Isensee et al., Nature Methods 2021, https://doi.org/10.1038/s41592-020-01008-z; residual encoders: Isensee et
al., MICCAI 2024, https://arxiv.org/abs/2404.09556.

Shapes: B batch, C channels, X Y Z space (X Y in 2D).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, cast

from torch import Tensor, nn

from medssl_cli.nn.axes import Axes, PerAxis, cumulative, per_axis
from medssl_cli.nn.backbones import Backbone, hide, numbered_level, require_canvas, run_part
from medssl_cli.nn.norms import Norm, norm_layer

NORM: Final = "instance_affine"
NEGATIVE_SLOPE = 0.01


class ConvNorm(nn.Module):
    """Convolution, normalisation and, unless switched off, a leaky ReLU.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Kernel size of the convolution, odd along every axis.
        stride: Stride of the convolution.
        has_bias: Whether the convolution has a bias. The norm subtracts it again; published weights have it all the
            same.
        is_activated: Whether the leaky ReLU follows.
        norm: See `nn.norms`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: PerAxis = 3,
        stride: PerAxis = 1,
        has_bias: bool = True,
        is_activated: bool = True,
        norm: Norm = NORM,
    ) -> None:
        super().__init__()
        convolution: Any = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        kernel, step = per_axis(kernel_size, spatial_dims), per_axis(stride, spatial_dims)
        padding = tuple(size // 2 for size in kernel)
        self.conv = convolution(in_channels, out_channels, kernel, stride=step, padding=padding, bias=has_bias)
        self.norm = norm_layer(norm, out_channels, spatial_dims)
        self.nonlin = nn.LeakyReLU(NEGATIVE_SLOPE) if is_activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, X, Y, Z] to [B, out_channels, X / stride, Y / stride, Z / stride]."""
        return cast(Tensor, self.nonlin(self.norm(self.conv(x))))


class ConvChain(nn.Module):
    """Convolutions one after another; the first has the stride."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        num_convs: int,
        kernel_size: PerAxis = 3,
        stride: PerAxis = 1,
        norm: Norm = NORM,
    ) -> None:
        super().__init__()
        widths = (in_channels, *(out_channels,) * num_convs)
        steps = (stride, *(1,) * (num_convs - 1))
        self.convs = nn.Sequential(
            *(
                ConvNorm(spatial_dims, width_in, width, kernel_size=kernel_size, stride=step, norm=norm)
                for (width_in, width), step in zip(pairwise(widths), steps, strict=True)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, X, Y, Z] to [B, out_channels, X / stride, Y / stride, Z / stride]."""
        return cast(Tensor, self.convs(x))


class ResidualBlock(nn.Module):
    """Two convolutions beside a short cut, which averages where there is a stride and projects where widths differ."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: PerAxis = 3,
        stride: PerAxis = 1,
        norm: Norm = NORM,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"kernel_size": kernel_size, "norm": norm}
        self.conv1 = ConvNorm(spatial_dims, in_channels, out_channels, stride=stride, **shared)
        self.conv2 = ConvNorm(spatial_dims, out_channels, out_channels, is_activated=False, **shared)
        self.nonlin2 = nn.LeakyReLU(NEGATIVE_SLOPE)
        pool: Any = nn.AvgPool2d if spatial_dims == 2 else nn.AvgPool3d
        step = per_axis(stride, spatial_dims)
        short_cut: list[nn.Module] = [pool(step, step)] if max(step) > 1 else []
        if in_channels != out_channels:
            shared["kernel_size"] = 1
            short_cut.append(
                ConvNorm(spatial_dims, in_channels, out_channels, has_bias=False, is_activated=False, **shared)
            )
        self.skip = nn.Sequential(*short_cut)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, X, Y, Z] to [B, out_channels, X / stride, Y / stride, Z / stride]."""
        return cast(Tensor, self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x)))


class ResidualChain(nn.Module):
    """Residual blocks one after another; the first has the stride."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        num_blocks: int,
        kernel_size: PerAxis = 3,
        stride: PerAxis = 1,
        norm: Norm = NORM,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"kernel_size": kernel_size, "norm": norm}
        first = ResidualBlock(spatial_dims, in_channels, out_channels, stride=stride, **shared)
        rest = (ResidualBlock(spatial_dims, out_channels, out_channels, **shared) for _ in range(num_blocks - 1))
        self.blocks = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, X, Y, Z] to [B, out_channels, X / stride, Y / stride, Z / stride]."""
        return cast(Tensor, self.blocks(x))


class StagedEncoder(Backbone):
    """Stages one after another; the output of each is a feature map. The coarsest map is the embedding.

    Args:
        name: Name for messages.
        stages: One module per level.
        channels: Channels of each level.
        strides: Strides of each level relative to the one before, along each axis.
        use_checkpoint: Compute activations twice instead of keeping them.
        stem: Layers before the first stage.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[nn.Module],
        *,
        channels: Sequence[int],
        strides: Sequence[Axes],
        use_checkpoint: bool,
        stem: nn.Module | None = None,
    ) -> None:
        super().__init__(
            channels=channels,
            strides=cumulative(strides),
            embedding_levels=(len(channels) - 1,),
            spatial_dims=len(strides[0]),
        )
        self.name = name
        self.use_checkpoint = use_checkpoint
        self.stem = stem
        self.stages = nn.Sequential(*stages)

    def level_of(self, name: str) -> int | None:
        """See `Backbone.level_of`; the stem is at the level of the first stage."""
        return 0 if name.startswith("stem.") else numbered_level(name, "stages.")

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """See `Backbone.forward`; hidden blocks are 0.

        Raises:
            UsageError: `E_CANVAS`.
        """
        require_canvas(images, self.crop_multiple, self.name)
        x = hide(images, hidden)
        if self.stem is not None:
            x = run_part(self.stem, x, use_checkpoint=self.use_checkpoint)
        maps = []
        for stage in self.stages:
            x = run_part(stage, x, use_checkpoint=self.use_checkpoint)
            maps.append(x)
        return maps


def require_levels(channels: Sequence[int], depths: Sequence[int], what: str) -> None:
    """Check that the options of an encoder describe the same levels.

    Args:
        channels: Channels of each level.
        depths: Convolutions or blocks of each level.
        what: Name of `depths` in the recipe.

    Raises:
        ValueError: They do not go together.
    """
    if not channels or len(channels) != len(depths):
        raise ValueError(f"{len(channels)} channels and {len(depths)} {what}: need one of each per level")
    if min(*channels, *depths) < 1:
        raise ValueError(f"channels and {what} are at least 1")
