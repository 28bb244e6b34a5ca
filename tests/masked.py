"""Small masked methods, their views and the numbers of the specification's test vectors."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from medssl_cli.base import plugins
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.views import make_views
from medssl_cli.methods import MethodBase, TrainingSet, Views
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named
from tests.placed_windows import windows_of

BATCH = 2
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"channels": [4, 8, 8], "strides": [1, 2, 2], "norm": "batch"},
    "plainconv": {"channels": [4, 8, 8], "strides": [1, 2, 2], "num_convs": [1, 1, 1]},
    "resenc": {"channels": [4, 8, 8], "strides": [1, 2, 2], "num_blocks": [1, 1, 1]},
    "resnet": {"depth": 18, "width": 8, "norm": "group"},
    "vit": {"patch_size": 8, "embedding_dim": 24, "depth": 2, "num_heads": 2, "finer_maps": 1},
    "swinunetr": {"feature_size": 12},
}
LITTLE_DECODER = {"token_decoder": {"width": 24, "depth": 1, "num_heads": 2}}


def sines(*shape: int, rate: float = 1.0) -> Tensor:
    """sin(rate * n), n = 0, 1, 2, ... in C order, float64."""
    return torch.sin(rate * torch.arange(prod(shape), dtype=torch.float64)).reshape(shape)


def cosines(*shape: int, rate: float = 1.0) -> Tensor:
    """cos(rate * n), n = 0, 1, 2, ... in C order, float64."""
    return torch.cos(rate * torch.arange(prod(shape), dtype=torch.float64)).reshape(shape)


def build(method: str, network: str, dims: int, *, side: int = 32, channels: int = 1, **options: Any) -> MethodBase:
    """A method in training mode around a small network of so many dimensions, for crops of an edge."""
    torch.manual_seed(0)
    module = plugins.load("method", method)
    named = Named(name=network, spatial_dims=dims, **NETWORKS[network])
    backbone = build_backbone(named, in_channels=channels)
    crop = (side, side, side if dims == 3 else 1)
    built: MethodBase = module.Method(backbone, module.Options(**options), crop).train()
    none = torch.zeros(BATCH).long()
    built.begin(TrainingSet(none, none, num_steps=100))
    return built


def images_for(method: MethodBase, *, channels: int = 1, seed: int = 1, batch: int = BATCH) -> Tensor:
    """Noise of the size that the method's views are cut from."""
    placed = method.views().placed
    assert placed is not None
    return torch.randn(batch, channels, *placed.window, generator=torch.Generator().manual_seed(seed))


def views_of(method: MethodBase, images: Tensor, *, seed: int = 0, draws: Draws | None = None) -> Views:
    """A step with these images."""
    declared = method.views()
    assert declared.placed is not None
    windows = windows_of(declared.placed, len(images))
    return make_views(declared, images, draws or Draws(torch.Generator().manual_seed(seed)), windows=windows)
