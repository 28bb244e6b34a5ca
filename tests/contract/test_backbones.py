"""What every file in nn/backbones must keep, whoever wrote it; a new backbone needs only a line in TINY_OPTIONS."""

import copy
import importlib
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor

from medssl_cli.nn import backbones
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.decoder import UNetDecoder

NAMES = sorted(module.name for module in pkgutil.iter_modules(backbones.__path__))
TINY_OPTIONS: dict[str, dict[str, Any]] = {
    "plainconv": {"channels": (4, 8, 8), "strides": (1, 2, 2), "num_convs": (1, 2, 2)},
    "resnet": {"depth": 18, "width": 8, "norm": "group"},
    "resenc": {"channels": (4, 8, 8), "strides": (1, 2, 2), "num_blocks": (1, 2, 1)},
    "swinunetr": {"feature_size": 12},
    "unet": {"channels": (4, 8, 8), "strides": (1, 2, 2), "num_res_units": 1},
}


def tiny(name: str, in_channels: int = 1) -> Backbone:
    torch.manual_seed(0)
    module = importlib.import_module(f"{backbones.__name__}.{name}")
    return module.build(in_channels, 3, **TINY_OPTIONS[name])


def images(backbone: Backbone, batch_size: int = 1, in_channels: int = 1) -> Tensor:
    # Two cells at the coarsest level: a norm over a single cell would have nothing to normalise.
    size = (32, 32, 32) if backbone.crop_multiple <= 16 else (64, 32, 32)
    assert all(length % backbone.crop_multiple == 0 for length in size)
    return torch.randn(batch_size, in_channels, *size, generator=torch.Generator().manual_seed(1))


def test_backbones_are_found_and_each_has_tiny_options() -> None:
    assert "unet" in NAMES
    assert set(NAMES) <= set(TINY_OPTIONS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_channels", [1, 4])
def test_channels_and_strides_tell_the_truth(name: str, in_channels: int) -> None:
    backbone = tiny(name, in_channels).eval()
    x = images(backbone, in_channels=in_channels)

    with torch.no_grad():
        maps = backbone(x)

    assert [feature.shape[1] for feature in maps] == list(backbone.channels)
    expected = [tuple(length // stride for length in x.shape[2:]) for stride in backbone.strides]
    assert [tuple(feature.shape[2:]) for feature in maps] == expected


@pytest.mark.parametrize("name", NAMES)
def test_axes_keep_their_order(name: str) -> None:
    backbone = tiny(name).eval()
    multiple = max(backbone.crop_multiple, 8)
    x = torch.zeros(1, 1, multiple, 2 * multiple, 3 * multiple)

    with torch.no_grad():
        maps = backbone(x)

    assert [tuple(feature.shape[2:]) for feature in maps] == [
        (multiple // s, 2 * multiple // s, 3 * multiple // s) for s in backbone.strides
    ]


@pytest.mark.parametrize("name", NAMES)
def test_embedding_is_the_spatial_mean_of_the_named_levels(name: str) -> None:
    backbone = tiny(name).eval()
    x = images(backbone)

    with torch.no_grad():
        embedding, maps = backbone.embed(x), backbone(x)

    assert embedding.shape == (1, backbone.embedding_dim)
    expected = torch.cat([maps[level].mean(dim=(2, 3, 4)) for level in backbone.embedding_levels], dim=1)
    torch.testing.assert_close(embedding, expected)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_see_each_other_in_evaluation(name: str) -> None:
    # Double precision: in float32 the order of summation alone makes a difference of 1e-4 on some processors.
    backbone = tiny(name).double().eval()
    x = images(backbone, batch_size=3).double()

    with torch.no_grad():
        together = backbone.embed(x)
        alone = torch.cat([backbone.embed(image[None]) for image in x])

    assert together.shape == (3, backbone.embedding_dim)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_backward_reaches_every_parameter(name: str) -> None:
    backbone = tiny(name).train()
    generator = torch.Generator().manual_seed(2)

    # Random weights: the plain sum of a normalised map is constant and would have no gradient.
    maps = backbone(images(backbone))
    torch.stack([(m * torch.randn(m.shape, generator=generator)).sum() for m in maps]).sum().backward()

    unreached = [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unreached == []


@pytest.mark.parametrize("name", NAMES)
def test_decoder_returns_to_the_resolution_of_the_input(name: str) -> None:
    backbone = tiny(name).eval()
    x = images(backbone)
    decoder = UNetDecoder(
        backbone.channels, backbone.strides, out_channels=3, widths=(4,) * (len(backbone.channels) - 1)
    )

    with torch.no_grad():
        logits = decoder(backbone(x))

    assert logits.shape == (1, 3, *x.shape[2:])


@pytest.mark.parametrize("name", NAMES)
def test_same_input_gives_the_same_embedding(name: str) -> None:
    backbone = tiny(name).eval()
    x = images(backbone)

    with torch.no_grad():
        first, second = backbone.embed(x), backbone.embed(x)

    assert torch.equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_weights_survive_a_round_trip_through_the_state_dict(name: str) -> None:
    backbone = tiny(name).eval()
    state = copy.deepcopy(backbone.state_dict())
    other = tiny(name).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    x = images(backbone)

    other.load_state_dict(state, strict=True)

    with torch.no_grad():
        assert torch.equal(other.embed(x), backbone.embed(x))
