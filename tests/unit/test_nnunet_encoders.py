"""nnU-Net's encoders have its names, shapes and arithmetic."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.base.errors import UsageError
from medssl_cli.nn.backbones import Backbone, plainconv, resenc

CHANNELS = (32, 64, 128, 256, 320, 320)
BLOCKS = (1, 3, 4, 6, 6, 6)


def conv_norm(name: str, in_channels: int, out_channels: int, kernel: int = 3) -> dict[str, tuple[int, ...]]:
    weight = (out_channels, in_channels, *(kernel,) * 3)
    bias = {} if kernel == 1 else {f"{name}.conv.bias": (out_channels,)}
    return {f"{name}.conv.weight": weight, **bias} | {
        f"{name}.norm.{part}": (out_channels,) for part in ("weight", "bias")
    }


def plain_names() -> dict[str, tuple[int, ...]]:
    """Of nnU-Net's PlainConvUNet, encoder only: two convolutions in each of six stages."""
    names: dict[str, tuple[int, ...]] = {}
    before = 1
    for stage, width in enumerate(CHANNELS):
        names |= conv_norm(f"stages.{stage}.0.convs.0", before, width)
        names |= conv_norm(f"stages.{stage}.0.convs.1", width, width)
        before = width
    return names


def residual_names() -> dict[str, tuple[int, ...]]:
    """Of nnU-Net's ResidualEncoderUNet, encoder only: a stem, then blocks; a projection where the width changes.

    The projection follows the pooling of the short cut, so it is the part number 1.
    """
    names = conv_norm("stem.convs.0", 1, CHANNELS[0])
    before = CHANNELS[0]
    for stage, (width, count) in enumerate(zip(CHANNELS, BLOCKS, strict=True)):
        for block in range(count):
            at = f"stages.{stage}.blocks.{block}"
            names |= conv_norm(f"{at}.conv1", before, width) | conv_norm(f"{at}.conv2", width, width)
            if before != width:
                names |= conv_norm(f"{at}.skip.1", before, width, kernel=1)
            before = width
    return names


def shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}


def test_the_plain_encoder_has_nnunets_tensors() -> None:
    expected = plain_names()

    assert shapes(plainconv.build(1)) == expected
    assert len(expected) == 6 * 2 * 4


def test_the_residual_encoder_has_nnunets_tensors() -> None:
    expected = residual_names()

    assert shapes(resenc.build(1)) == expected
    # stem 4; 26 blocks of 8; projections of 3 in stages 1 to 4: the last stage is as wide as the one before
    assert len(expected) == 4 + sum(BLOCKS) * 8 + 4 * 3
    assert sum(math.prod(shape) for shape in expected.values()) == sum(p.numel() for p in resenc.build(1).parameters())


def literal_conv_norm(
    state: dict[str, Tensor],
    name: str,
    x: Tensor,
    *,
    stride: int | tuple[int, int, int] = 1,
    activate: bool = True,
) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    padding = [size // 2 for size in weight.shape[2:]]
    x = F.conv3d(x, weight, state.get(f"{name}.conv.bias"), stride=stride, padding=padding)
    mean, variance = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), keepdim=True, correction=0)
    scale, shift = (state[f"{name}.norm.{part}"].view(1, -1, 1, 1, 1) for part in ("weight", "bias"))
    x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
    return torch.where(x > 0, x, 0.01 * x) if activate else x


def with_random_norms(backbone: Backbone) -> dict[str, Tensor]:
    """Norms start as the identity, which would hide a wrong one."""
    generator = torch.Generator().manual_seed(3)
    state = {
        name: torch.rand(tensor.shape, generator=generator) + 0.5 if ".norm." in name else tensor
        for name, tensor in backbone.state_dict().items()
    }
    backbone.load_state_dict(state)
    return state


def test_the_plain_encoder_computes_what_nnunets_does() -> None:
    backbone = plainconv.build(2, channels=(3, 5), strides=(1, 2), num_convs=(1, 2))
    state = with_random_norms(backbone)
    x = torch.randn(2, 2, 4, 6, 4, generator=torch.Generator().manual_seed(0))

    fine = literal_conv_norm(state, "stages.0.0.convs.0", x)
    coarse = literal_conv_norm(state, "stages.1.0.convs.0", fine, stride=2)
    coarse = literal_conv_norm(state, "stages.1.0.convs.1", coarse)

    with torch.no_grad():
        for ours, theirs in zip(backbone(x), (fine, coarse), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_residual_encoder_computes_what_nnunets_does() -> None:
    backbone = resenc.build(1, channels=(3, 5), strides=(1, 2), num_blocks=(1, 2))
    state = with_random_norms(backbone)
    x = torch.randn(1, 1, 4, 6, 4, generator=torch.Generator().manual_seed(0))

    def block(name: str, x: Tensor, short_cut: Tensor, stride: int = 1) -> Tensor:
        x = literal_conv_norm(state, f"{name}.conv1", x, stride=stride)
        x = literal_conv_norm(state, f"{name}.conv2", x, activate=False) + short_cut
        return torch.where(x > 0, x, 0.01 * x)

    stem = literal_conv_norm(state, "stem.convs.0", x)
    fine = block("stages.0.blocks.0", stem, stem)
    pooled = fine.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).mean((5, 6, 7))
    coarse = block(
        "stages.1.blocks.0",
        fine,
        literal_conv_norm(state, "stages.1.blocks.0.skip.1", pooled, activate=False),
        stride=2,
    )
    coarse = block("stages.1.blocks.1", coarse, coarse)

    with torch.no_grad():
        for ours, theirs in zip(backbone(x), (fine, coarse), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_thick_slices_have_kernels_and_strides_of_their_own_along_z() -> None:
    """The first level looks at one slice at a time; only x and y are halved before the second."""
    levels = {"channels": (3, 5), "strides": (1, (2, 2, 1)), "kernel_sizes": ((3, 3, 1), 3)}
    plain, residual = plainconv.build(1, **levels, num_convs=(1, 1)), resenc.build(1, **levels, num_blocks=(1, 1))
    x = torch.randn(1, 1, 4, 6, 5, generator=torch.Generator().manual_seed(0))

    state = with_random_norms(plain)
    fine = literal_conv_norm(state, "stages.0.0.convs.0", x)
    coarse = literal_conv_norm(state, "stages.1.0.convs.0", fine, stride=(2, 2, 1))
    assert state["stages.0.0.convs.0.conv.weight"].shape == (3, 1, 3, 3, 1)
    assert state["stages.1.0.convs.0.conv.weight"].shape == (5, 3, 3, 3, 3)
    with torch.no_grad():
        for ours, theirs in zip(plain(x), (fine, coarse), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    state = with_random_norms(residual)
    assert {tuple(tensor.shape[2:]) for name, tensor in state.items() if "stem" in name and tensor.ndim > 1} == {
        (3, 3, 1)
    }
    stem = literal_conv_norm(state, "stem.convs.0", x)
    fine = literal_conv_norm(state, "stages.0.blocks.0.conv1", stem)
    fine = literal_conv_norm(state, "stages.0.blocks.0.conv2", fine, activate=False) + stem
    fine = torch.where(fine > 0, fine, 0.01 * fine)
    pooled = fine.unfold(2, 2, 2).unfold(3, 2, 2).mean((5, 6))
    coarse = literal_conv_norm(state, "stages.1.blocks.0.conv1", fine, stride=(2, 2, 1))
    coarse = literal_conv_norm(state, "stages.1.blocks.0.conv2", coarse, activate=False)
    coarse = coarse + literal_conv_norm(state, "stages.1.blocks.0.skip.1", pooled, activate=False)
    coarse = torch.where(coarse > 0, coarse, 0.01 * coarse)
    with torch.no_grad():
        for ours, theirs in zip(residual(x), (fine, coarse), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [plainconv, resenc])
def test_checkpointing_changes_no_gradient_and_two_dimensions_work(module) -> None:
    x = torch.rand(2, 1, 16, 8, generator=torch.Generator().manual_seed(0))
    depths = {"num_convs" if module is plainconv else "num_blocks": (1, 2)}
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        backbone = module.build(1, 2, channels=(3, 4), strides=(1, 2), use_checkpoint=use_checkpoint, **depths)
        sum(feature.square().sum() for feature in backbone(x)).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])

    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(recomputed, plain)


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="one of each per level"):
        plainconv.build(1, channels=(4, 8), strides=(1, 2, 2), num_convs=(2, 2))
    with pytest.raises(ValueError, match="at least 1"):
        resenc.build(1, channels=(4, 8), strides=(1, 2), num_blocks=(0, 1))
    with pytest.raises(ValueError, match=r"strides: .* for each of 3 axes"):
        plainconv.build(1, channels=(4, 8), strides=((1, 1, 1), (1, 2)), num_convs=(2, 2))
    with pytest.raises(ValueError, match=r"kernel_sizes .* must be odd, and at most 7"):
        plainconv.build(1, channels=(4, 8), strides=(1, 2), kernel_sizes=(3, (3, 3, 2)), num_convs=(2, 2))


@pytest.mark.parametrize(
    ("size", "fault"),
    [
        ((2, 2, 2), "one cell"),
        ((4, 4, 3), "3 along z is no multiple of 2"),
        ((5, 3, 4), "5 along x is no multiple of 2 and 3 along y is no multiple of 2"),
    ],
)
def test_sizes_that_leave_nothing_to_normalise_are_refused(size: tuple[int, int, int], fault: str) -> None:
    backbone = plainconv.build(1, channels=(4, 8), strides=(1, 2), num_convs=(1, 1))

    with pytest.raises(UsageError, match=f"E_CANVAS: plainconv cannot take crops of .* voxels: .*{fault}"):
        backbone(torch.rand(1, 1, *size))
