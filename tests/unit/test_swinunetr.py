"""The SwinUNETR-v2 encoder is MONAI's, part for part, so that published weights load by name."""

import pytest
import torch
from monai.networks.nets import SwinUNETR

from medssl_cli.base.errors import UsageError
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.backbones.swinunetr import build

SMALL = (64, 32, 32)  # two cells at stride 32


def published_names() -> set[str]:
    """Names in published VoCo encoders, written out from their schema."""
    both = ("weight", "bias")
    names = {f"swinViT.patch_embed.proj.{part}" for part in both}
    for stage in (1, 2, 3, 4):
        layer = f"swinViT.layers{stage}.0"
        for block in (0, 1):
            modules = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.linear1", "mlp.linear2")
            names |= {f"{layer}.blocks.{block}.{module}.{part}" for module in modules for part in both}
            names |= {f"{layer}.blocks.{block}.attn.relative_position_{kind}" for kind in ("bias_table", "index")}
        names |= {f"{layer}.downsample.{part}" for part in ("reduction.weight", "norm.weight", "norm.bias")}
        names |= {f"swinViT.layers{stage}c.0.layer.conv{conv}.conv.weight" for conv in (1, 2)}
    names |= {f"encoder{level}.layer.conv{conv}.conv.weight" for level in (1, 2, 3, 4, 10) for conv in (1, 2)}
    return names | {"encoder1.layer.conv3.conv.weight"}


def tiny(in_channels: int = 1, spatial_dims: int = 3, *, use_checkpoint: bool = False) -> Backbone:
    torch.manual_seed(0)
    return build(in_channels, spatial_dims, feature_size=12, use_checkpoint=use_checkpoint)


def test_published_size_has_the_published_tensors() -> None:
    state = build(1).state_dict()

    assert set(state) == published_names()
    # 2 patch embedding + 4 stages x (2 blocks x 14 + 3 merging + 2 convolutions) + 11 convolutions of the encoders
    assert len(state) == 2 + 4 * (2 * 14 + 3 + 2) + 11 == 145
    indices = [name for name in state if name.endswith("relative_position_index")]
    assert sum(state[name].numel() for name in state if name not in indices) == 53_164_146
    # float32 parameters and int64 indices: the size of the published file but for its envelope
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) == 220_186_120
    assert state["swinViT.patch_embed.proj.weight"].shape == (48, 1, 2, 2, 2)
    assert state["swinViT.layers1.0.downsample.reduction.weight"].shape == (96, 384)
    assert state["swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"].shape == (13**3, 3)


@pytest.mark.parametrize(("in_channels", "spatial_dims"), [(1, 3), (4, 2)])
def test_weights_interchange_with_monai(in_channels: int, spatial_dims: int) -> None:
    torch.manual_seed(1)
    whole = SwinUNETR(in_channels, 3, feature_size=12, use_v2=True, spatial_dims=spatial_dims).eval().double()
    state = {k: v for k, v in whole.state_dict().items() if not k.startswith(("decoder", "out."))}
    encoder = tiny(in_channels, spatial_dims).eval().double()

    encoder.load_state_dict(state, strict=True)

    x = torch.rand(1, in_channels, *SMALL[:spatial_dims], generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        maps = encoder(x)
        hidden = whole.swinViT(x, True)
        expected = [
            whole.encoder1(x),
            whole.encoder2(hidden[0]),
            whole.encoder3(hidden[1]),
            whole.encoder4(hidden[2]),
            hidden[3],
            whole.encoder10(hidden[4]),
        ]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)  # attention is summed in another order


def test_exactly_three_tensors_depend_on_the_number_of_channels() -> None:
    one, four = tiny(1).state_dict(), tiny(4).state_dict()

    assert {name for name in one if one[name].shape != four[name].shape} == {
        "swinViT.patch_embed.proj.weight",
        "encoder1.layer.conv1.conv.weight",
        "encoder1.layer.conv3.conv.weight",
    }


@pytest.mark.parametrize("feature_size", [12, 24])
def test_embedding_leaves_out_the_map_of_stride_16(feature_size: int) -> None:
    backbone = build(1, feature_size=feature_size)

    assert backbone.strides == tuple((stride,) * 3 for stride in (1, 2, 4, 8, 16, 32))
    assert (16,) * 3 not in {backbone.strides[level] for level in backbone.embedding_levels}
    assert backbone.embedding_dim == (1 + 1 + 2 + 4 + 16) * feature_size == 24 * feature_size


def test_checkpointing_changes_no_gradient() -> None:
    x = torch.rand(1, 1, *SMALL[:2], generator=torch.Generator().manual_seed(0))
    gradients = []
    for use_checkpoint in (False, True):
        backbone = tiny(spatial_dims=2, use_checkpoint=use_checkpoint)
        embedding = backbone.embed(x)
        (embedding * torch.linspace(-1, 1, embedding.shape[1])).sum().backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])

    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert recomputed is not None
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("size", [(32, 32, 32), (64, 64, 48)])
def test_sizes_that_it_cannot_take_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="E_CANVAS"):
        tiny()(torch.rand(1, 1, *size))


def test_widths_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match="E_RECIPE"):
        build(1, feature_size=16)
    with pytest.raises(UsageError, match="E_RECIPE"):
        build(1, depths=(2, 2, 2), num_heads=(3, 6, 12))  # type: ignore[arg-type]
