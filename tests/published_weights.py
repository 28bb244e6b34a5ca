"""Published weights, made up: the names and shapes of their schemas, written out, with random numbers in them."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
CUBE = (3, 3, 3)
NUM_CLASSES = 21
STAGE_HEADS = (3, 6, 12, 24)


def swinunetr_encoder(fs: int, *, in_channels: int = 1, use_v2: bool = True) -> Shapes:
    """Of `monai.networks.nets.SwinUNETR` without decoder: 145 tensors, 137 without version 2's convolutions."""
    shapes: Shapes = {
        "swinViT.patch_embed.proj.weight": (fs, in_channels, 2, 2, 2),
        "swinViT.patch_embed.proj.bias": (fs,),
    }
    for stage, heads in enumerate(STAGE_HEADS):
        c = fs * 2**stage
        layer = f"swinViT.layers{stage + 1}"
        for block in (0, 1):
            at = f"{layer}.0.blocks.{block}"
            for norm in ("norm1", "norm2"):
                shapes |= {f"{at}.{norm}.{part}": (c,) for part in ("weight", "bias")}
            shapes |= {
                f"{at}.attn.relative_position_bias_table": (13**3, heads),
                f"{at}.attn.relative_position_index": (7**3, 7**3),
                f"{at}.attn.qkv.weight": (3 * c, c),
                f"{at}.attn.qkv.bias": (3 * c,),
                f"{at}.attn.proj.weight": (c, c),
                f"{at}.attn.proj.bias": (c,),
                f"{at}.mlp.linear1.weight": (4 * c, c),
                f"{at}.mlp.linear1.bias": (4 * c,),
                f"{at}.mlp.linear2.weight": (c, 4 * c),
                f"{at}.mlp.linear2.bias": (c,),
            }
        shapes |= {
            f"{layer}.0.downsample.reduction.weight": (2 * c, 8 * c),
            f"{layer}.0.downsample.norm.weight": (8 * c,),
            f"{layer}.0.downsample.norm.bias": (8 * c,),
        }
        if use_v2:
            shapes |= {f"{layer}c.0.layer.conv{conv}.conv.weight": (c, c, *CUBE) for conv in (1, 2)}
    for level, width in {"1": 1, "2": 1, "3": 2, "4": 4, "10": 16}.items():
        before = in_channels if level == "1" else width * fs
        shapes[f"encoder{level}.layer.conv1.conv.weight"] = (width * fs, before, *CUBE)
        shapes[f"encoder{level}.layer.conv2.conv.weight"] = (width * fs, width * fs, *CUBE)
    return shapes | {"encoder1.layer.conv3.conv.weight": (fs, in_channels, 1, 1, 1)}


def swinunetr_decoder(fs: int) -> Shapes:
    """The other 22 tensors of VoComni."""
    shapes: Shapes = {"out.conv.conv.weight": (NUM_CLASSES, fs, 1, 1, 1), "out.conv.conv.bias": (NUM_CLASSES,)}
    for level, (below, width) in {5: (16, 8), 4: (8, 4), 3: (4, 2), 2: (2, 1), 1: (1, 1)}.items():
        at = f"decoder{level}"
        shapes |= {
            f"{at}.transp_conv.conv.weight": (below * fs, width * fs, 2, 2, 2),
            f"{at}.conv_block.conv1.conv.weight": (width * fs, 2 * width * fs, *CUBE),
            f"{at}.conv_block.conv2.conv.weight": (width * fs, width * fs, *CUBE),
            f"{at}.conv_block.conv3.conv.weight": (width * fs, 2 * width * fs, 1, 1, 1),
        }
    return shapes


def projector(name: str, dim: int = 288, hidden: int = 8) -> Shapes:
    """Three linear layers; the norms between them have no parameters. `name` holds the layer's number as {}."""
    shapes: Shapes = {}
    for layer, width_in in enumerate((dim, hidden, hidden), start=1):
        shapes[f"{name.format(layer)}.weight"] = (hidden, width_in)
        shapes[f"{name.format(layer)}.bias"] = (hidden,)
    return shapes


def nnunet(
    channels: Iterable[int],
    depths: Iterable[int],
    *,
    residual: bool = False,
    strides: Sequence[tuple[int, ...]] = (),
    kernels: Sequence[tuple[int, ...]] = (),
) -> Shapes:
    """Of nnU-Net's networks, each parameter once, by its first name.

    Strides and kernels are of each level, in the order of the arrays; 1 and then 2, and 3, if there are none.
    """
    shapes: Shapes = {}
    widths, before = list(channels), 1
    strides = strides or [(1, 1, 1), *[(2, 2, 2)] * (len(widths) - 1)]
    kernels = kernels or [CUBE] * len(widths)

    def conv_norm(at: str, width_in: int, width: int, kernel: tuple[int, ...]) -> None:
        shapes[f"{at}.conv.weight"] = (width, width_in, *kernel)
        if kernel != (1, 1, 1):  # a short cut has no bias
            shapes[f"{at}.conv.bias"] = (width,)
        shapes[f"{at}.norm.weight"] = shapes[f"{at}.norm.bias"] = (width,)

    if residual:
        conv_norm("encoder.stem.convs.0", 1, before := widths[0], kernels[0])
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for block in range(depth):
            if residual:
                at = f"encoder.stages.{stage}.blocks.{block}"
                conv_norm(f"{at}.conv1", before, width, kernels[stage])
                conv_norm(f"{at}.conv2", width, width, kernels[stage])
                if before != width:
                    pooled = int(block == 0 and set(strides[stage]) != {1})
                    conv_norm(f"{at}.skip.{pooled}", before, width, (1, 1, 1))
            else:
                conv_norm(f"encoder.stages.{stage}.0.convs.{block}", before, width, kernels[stage])
            before = width
    for level, (width, below) in enumerate(zip(widths[-2::-1], widths[:0:-1], strict=True)):
        conv_norm(f"decoder.stages.{level}.convs.0", 2 * width, width, kernels[-2 - level])
        if not residual:
            conv_norm(f"decoder.stages.{level}.convs.1", width, width, kernels[-2 - level])
        shapes[f"decoder.transpconvs.{level}.weight"] = (below, width, *strides[-1 - level])
        shapes[f"decoder.transpconvs.{level}.bias"] = (width,)
        shapes[f"decoder.seg_layers.{level}.weight"] = (NUM_CLASSES, width, 1, 1, 1)
        shapes[f"decoder.seg_layers.{level}.bias"] = (NUM_CLASSES,)
    return shapes


def nnunet_names(name: str) -> list[str]:
    """All names under which nnU-Net stores one parameter."""
    names = [name]
    for part, index in (("conv", 0), ("norm", 1)):
        head, dot, tail = name.rpartition(f".{part}.")
        if dot and "transpconvs" not in name and "seg_layers" not in name:
            names.append(f"{head}.all_modules.{index}.{tail}")
    return names + [f"decoder.{each}" for each in names if each.startswith("encoder.")]


def filled(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random numbers; the index of the attention's bias table is computed, as it always is."""
    generator = torch.Generator().manual_seed(seed)
    index = relative_position_index()
    return {
        name: index.clone() if name.endswith("_index") else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def with_nnunet_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file that nnU-Net writes: most tensors under several names."""
    return {alias: tensor for name, tensor in tensors.items() for alias in nnunet_names(name)}


def relative_position_index() -> Tensor:
    """For voxels p and q of a window of 7: (p - q + 6) read as a number with digits of base 13."""
    axis = torch.arange(7)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    return ((points[:, None] - points[None] + 6) * torch.tensor([169, 13, 1])).sum(-1)


def num_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of float32 parameters and int64 indices."""
    return sum(torch.Size(shape).numel() * (8 if name.endswith("_index") else 4) for name, shape in shapes.items())


def num_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Without indices."""
    return sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.endswith("_index"))
