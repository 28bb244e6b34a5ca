"""nnU-Net's names and plans for our two encoders of its kind.

nnU-Net keeps most tensors under three names: a block's parts once more under `all_modules`, the encoder once more
under `decoder.encoder`. Its arrays are [Z, Y, X].
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from torch import Tensor, nn

from medssl_cli.nn.axes import Axes, kernels_per_level, per_level
from medssl_cli.nn.nnunet import NEGATIVE_SLOPE, ConvChain
from medssl_cli.nn.norms import NORM_EPSILON
from medssl_cli.recipe import Data, Named

CHANNELS: Final = (32, 64, 128, 256, 320, 320)
STRIDES: Final = (1, 2, 2, 2, 2, 2)


@dataclass(frozen=True)
class _Kind:
    """What differs between the two networks."""

    network: str
    depths: str
    key: str
    default: tuple[int, ...]
    num_decoder_convs: int


NNUNET: Final = {
    "plainconv": _Kind("PlainConvUNet", "num_convs", "n_conv_per_stage", (2, 2, 2, 2, 2, 2), 2),
    "resenc": _Kind("ResidualEncoderUNet", "num_blocks", "n_blocks_per_stage", (1, 3, 4, 6, 6, 6), 1),
}


def fresh_decoder(backbone: Named, out_channels: int) -> dict[str, Tensor]:
    """A decoder of nnU-Net that has learnt nothing: what makes an encoder's file complete.

    Args:
        backbone: "plainconv" or "resenc", three-dimensional.
        out_channels: Classes, background included.

    Returns:
        By nnU-Net's names without aliases, drawn from torch's own generator; one last layer per level.
    """
    channels, strides, kernels = _levels(backbone)
    dims = len(strides[0])
    transposed: Any = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
    convolution = nn.Conv2d if dims == 2 else nn.Conv3d
    up_samplings, stages, scores = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
    num_convs = NNUNET[backbone.name].num_decoder_convs
    for (fine, coarse), stride, kernel in reversed(
        list(zip(pairwise(channels), strides[1:], kernels[:-1], strict=True))
    ):
        up_samplings.append(transposed(coarse, fine, stride, stride))
        stages.append(ConvChain(dims, 2 * fine, fine, num_convs=num_convs, kernel_size=kernel))
        scores.append(convolution(fine, out_channels, 1))
    network = nn.ModuleDict({"stages": stages, "transpconvs": up_samplings, "seg_layers": scores})
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return {f"decoder.{name}": tensor for name, tensor in network.state_dict().items()}


def _levels(backbone: Named) -> tuple[Sequence[int], Sequence[Axes], Sequence[Axes]]:
    """Channels, strides and sizes of kernels of each level, fine to coarse; the latter along x, y, z."""
    channels = backbone.options.get("channels", CHANNELS)
    dims = int(backbone.options.get("spatial_dims", 3))
    strides = per_level(backbone.options.get("strides", STRIDES), len(channels), dims, "strides")
    return channels, strides, kernels_per_level(backbone.options.get("kernel_sizes", 3), len(channels), dims)


def with_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor under each of the names that nnU-Net's network has for it; the values stay shared."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        alias = re.sub(r"\.(conv|norm)\.(weight|bias)$", _in_all_modules, name)
        for each in dict.fromkeys((name, alias)):
            named[each] = tensor
            if each.startswith("encoder."):
                named[f"decoder.{each}"] = tensor
    return named


def _in_all_modules(match: "re.Match[str]") -> str:
    return f".all_modules.{0 if match[1] == 'conv' else 1}.{match[2]}"


def plan(backbone: Named, data: Data | None) -> dict[str, Any]:
    """What nnU-Net's plans must say so that they mean this network, spacing and intensities; the rest is nnU-Net's.

    A window (low, high) that becomes 0 to 1 is nnU-Net's CT normalisation with the percentiles (low, high), the mean
    low and the deviation high - low.

    Args:
        backbone: "plainconv" or "resenc".
        data: Data of the recipe; None if the weights came from elsewhere.
    """
    kind = NNUNET[backbone.name]
    channels, strides, kernels = _levels(backbone)
    dims = len(strides[0])
    configuration: dict[str, Any] = {
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind.network}",
            "arch_kwargs": {
                "n_stages": len(channels),
                "features_per_stage": list(channels),
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": [list(reversed(kernel)) for kernel in kernels],
                "strides": [list(reversed(stride)) for stride in strides],
                kind.key: list(backbone.options.get(kind.depths, kind.default)),
                "n_conv_per_stage_decoder": [kind.num_decoder_convs] * (len(channels) - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": NORM_EPSILON, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    }
    document: dict[str, Any] = {"configurations": {"3d_fullres" if dims == 3 else "2d": configuration}}
    if data is None:
        return document
    configuration["patch_size"] = list(reversed(data.crop_size))
    if data.spacing_mm is not None:
        configuration["spacing"] = list(reversed(data.spacing_mm))
    rule = data.rules[0]
    if rule.window_hu is None:
        configuration |= {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [True]}
        return document
    low, high = rule.window_hu
    configuration |= {"normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False]}
    document["foreground_intensity_properties_per_channel"] = {
        "0": {"percentile_00_5": low, "percentile_99_5": high, "mean": low, "std": high - low}
    }
    return document
