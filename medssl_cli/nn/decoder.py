"""From the feature maps of any backbone back to the resolution of its input.

Shape legend: B batch, C channels, X Y Z space (X Y in 2D).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, Self

import torch
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from pydantic import Field, model_validator
from torch import Tensor, nn

from medssl_cli.base.strict import PositiveInt, Probability, Strict
from medssl_cli.nn.axes import Axes, PerAxis, kernels_per_level, per_axis
from medssl_cli.nn.norms import WITHOUT_BIAS, monai_norm

UNET_SCORES: Final = "scores."
"""What names of tensors of the last layer of a `UNetDecoder` begin with."""


class Decoder(Strict):
    """Shape of a decoder; see `UNetDecoder`, and `SwinUNETRDecoder`, whose shape is fixed.

    Args:
        name: `unet` is our own; `swinunetr` is that of MONAI's SwinUNETR, which published weights come with.
        kernel_sizes: Kernel sizes of the convolutions of each level but the coarsest, fine to coarse, along all axes or
            along each, such as `[[3, 3, 1], 3, 3]` for thick slices.
        norm: Another than `backbone.norm`, which it follows; `instance` where the recipe names neither.
    """

    name: Literal["unet", "swinunetr"] = "unet"
    widths: tuple[PositiveInt, ...] | None = None
    kernel_sizes: PositiveInt | tuple[PositiveInt | tuple[PositiveInt, ...], ...] = 3
    num_res_units: Annotated[int, Field(ge=0)] = 0
    norm: str | None = None
    activation: str = "prelu"
    dropout_prob: Probability = 0.0

    @model_validator(mode="after")
    def _fixed(self) -> Self:
        if self.name == "swinunetr" and self.model_fields_set != {"name"}:
            raise ValueError("the decoder swinunetr has the shape of published weights: give its name alone")
        return self


class DecodingOptions(Strict):
    """What a method says that learns a decoder beside the encoder.

    Args:
        decoder: Shape of the decoder.
        keep_decoder: Keep the decoder beside the encoder, for tasks whose decoder has the same shape.
    """

    decoder: Decoder = Decoder()
    keep_decoder: bool = False

    def kept(self, decoder: nn.Module) -> dict[str, nn.Module]:
        """The decoder, if it is to outlive the training."""
        return {"decoder": decoder} if self.keep_decoder else {}


class VoxelDecoder(nn.Module, ABC):
    """What every decoder offers: features level by level, and scores of the finest.

    Args:
        widths: Channels of the features that `features` returns, fine to coarse.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)

    @abstractmethod
    def features(self, maps: list[Tensor]) -> list[Tensor]:
        """What the decoder makes of the maps of a backbone: one tensor per level but the coarsest, fine to coarse."""

    @abstractmethod
    def score(self, finest: Tensor) -> Tensor:
        """Logits [B, out_channels, X, Y, Z], at the resolution of the images, of the finest features."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Score every class in every voxel.

        Args:
            maps: Feature maps of the backbone, fine to coarse.

        Returns:
            Logits [B, out_channels, X, Y, Z] at the resolution of the backbone's input.
        """
        return self.score(self.features(maps)[0])


class UNetDecoder(VoxelDecoder):
    """The expanding half of a U-Net: up-sample, join the next finer map, convolve; then one score per class.

    Up-sampling is a transposed convolution, which exports to ONNX with any input size. Where the finest map is coarser
    than the image, the last up-sampling gives the scores directly, with windows that overlap: nothing else is computed
    at full resolution.

    Args:
        channels: Channels of the feature maps, fine to coarse.
        strides: Input voxels per feature cell of each map, along all axes or along each. Along each axis one divides
            the next, and along at least one axis they rise.
        out_channels: Classes, background included.
        spatial_dims: 2 or 3.
        widths: Channels of the decoder at each level but the coarsest, fine to coarse; those of the maps if None.
        kernel_sizes: Kernel sizes of the convolutions of each level but the coarsest, along all axes or along each;
            odd, at most 7.
        num_res_units: Convolutions in each level's residual unit; 0 for one plain convolution per level.
        norm: See `nn.norms`; another of MONAI's layer names does as well.
        activation: MONAI's name of the non-linearity.
        dropout_prob: Probability of dropping a channel after each convolution.

    Raises:
        ValueError: Channels, strides, kernels and widths do not go together.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[PerAxis],
        out_channels: int,
        *,
        spatial_dims: int = 3,
        widths: Sequence[int] | None = None,
        kernel_sizes: int | Sequence[PerAxis] = 3,
        num_res_units: int = 0,
        norm: str = "instance",
        activation: str = "prelu",
        dropout_prob: float = 0.0,
    ) -> None:
        widths = tuple(channels[:-1] if widths is None else widths)
        super().__init__((*widths, channels[-1])[: max(1, len(widths))] if channels else ())
        if not channels or len(channels) != len(strides) or len(widths) != len(channels) - 1:
            raise ValueError(
                f"{len(channels)} channels, {len(strides)} strides, {len(widths)} widths: need n, n and n - 1 of them"
            )
        steps = [per_axis(stride, spatial_dims) for stride in strides]
        kernels = kernels_per_level(kernel_sizes, len(widths), spatial_dims)
        scales = scales_between(steps)
        below = (*widths[1:], channels[-1]) if widths else ()
        shared = {"act": activation, "dropout": dropout_prob or None, "bias": norm not in WITHOUT_BIAS}
        up_samplings: list[nn.Module] = []
        levels: list[nn.Module] = []
        for coarse_width, width, skip, scale, kernel in zip(below, widths, channels, scales, kernels, strict=False):
            up_samplings.append(_transposed(spatial_dims, coarse_width, width, scale))
            own = {**shared, "kernel_size": kernel, "norm": monai_norm(norm, width)}
            if num_res_units > 0:
                level = ResidualUnit(spatial_dims, width + skip, width, subunits=num_res_units, **own)
            else:
                level = Convolution(spatial_dims, width + skip, width, **own)
            levels.append(level)
        self.up_samplings = nn.ModuleList(up_samplings)
        self.levels = nn.ModuleList(levels)
        self.scores = _scores(spatial_dims, (*widths, channels[-1])[0], out_channels, steps[0])

    def features(self, maps: list[Tensor]) -> list[Tensor]:
        """See `VoxelDecoder.features`; of a single map, the map."""
        *skips, x = maps
        found = []
        for up_sampling, level, skip in zip(
            reversed(self.up_samplings), reversed(self.levels), reversed(skips), strict=True
        ):
            x = level(torch.cat((skip, up_sampling(x)), dim=1))
            found.append(x)
        return found[::-1] or [x]

    def score(self, finest: Tensor) -> Tensor:
        """See `VoxelDecoder.score`."""
        logits: Tensor = self.scores(finest)
        return logits


def scales_between(strides: Sequence[Axes]) -> list[Axes]:
    """How many cells of each map lie along one of the next coarser map, along each axis.

    Raises:
        ValueError: The strides do not rise by whole factors.
    """
    return [_scale(fine, coarse) for fine, coarse in pairwise(strides)]


def _scale(fine: Axes, coarse: Axes) -> Axes:
    """How many cells of a map lie along one of the next coarser map, along each axis."""
    if fine == coarse or any(below % above for above, below in zip(fine, coarse, strict=True)):
        raise ValueError(f"strides must rise, each a multiple of the one before: {coarse} follows {fine}")
    return tuple(below // above for above, below in zip(fine, coarse, strict=True))


def _transposed(spatial_dims: int, in_channels: int, out_channels: int, scale: Axes) -> nn.Module:
    """Up-sampling by whole factors with windows that do not overlap."""
    layer: Any = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
    up_sampling: nn.Module = layer(in_channels, out_channels, kernel_size=scale, stride=scale)
    return up_sampling


def _scores(spatial_dims: int, in_channels: int, out_channels: int, scale: Axes) -> nn.Module:
    """The last layer: a linear map per voxel, or an up-sampling with windows that overlap by half (odd scale: not)."""
    if max(scale) == 1:
        linear = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        return linear(in_channels, out_channels, kernel_size=1)
    window = tuple(factor if factor % 2 else 2 * factor for factor in scale)
    padding = tuple(0 if factor % 2 else factor // 2 for factor in scale)
    layer: Any = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
    scores: nn.Module = layer(in_channels, out_channels, kernel_size=window, stride=scale, padding=padding)
    return scores
