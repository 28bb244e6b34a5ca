"""Dense position on two processes: the mean of their losses and gradients is what one process gets from the batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.placed_views import PlacedWindows
from medssl_cli.data.views import make_views
from medssl_cli.methods import position
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named
from tests.placed_windows import windows_of
from tests.two_processes import WORLD, results_of_each

SIZES = {"slices": (8, 12, 1), "volumes": (8, 4, 6)}


def step(name: str, shard: int, num_shards: int) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of this shard's images, of which some end within their windows."""
    torch.manual_seed(0)
    size = SIZES[name]
    options = {"channels": [4, 6], "strides": [1, 2], "num_res_units": 0, "norm": "batch"}
    backbone = build_backbone(Named(name="unet", spatial_dims=2 if size[2] == 1 else 3, **options))
    method = position.Method(backbone, position.Options.model_validate({"decoder": {"norm": "batch"}}), size).train()
    crops = method.views().placed
    assert crops is not None
    images = torch.rand(4, 1, *crops.window, generator=torch.Generator().manual_seed(1))
    parts = [windows_of(crops, 4), windows_of(crops, 4, margin=-3, num_slices=3)]
    rows = [(0, 0), (0, 1), (1, 2), (1, 3)][shard * 4 // num_shards : (shard + 1) * 4 // num_shards]
    fields = PlacedWindows.__dataclass_fields__
    windows = PlacedWindows(*(torch.stack([getattr(parts[kind], key)[row] for kind, row in rows]) for key in fields))
    draws = Draws(torch.Generator().manual_seed(2), shard, num_shards)
    own = images.chunk(num_shards)[shard]
    total = method.loss(make_views(method.views(), own, draws, windows=windows), progress=0.0).total
    return total.detach(), list(torch.autograd.grad(total, list(method.parameters())))


def compute(rank: int) -> dict[str, tuple[Tensor, list[Tensor]]]:
    return {name: step(name, rank, WORLD) for name in SIZES}


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, list[Tensor]]]]:
    folder: Path = tmp_path_factory.mktemp("spread")
    return results_of_each(folder, compute)


@pytest.mark.parametrize("name", SIZES)
def test_two_processes_are_one(name: str, spread: list[dict[str, tuple[Tensor, list[Tensor]]]]) -> None:
    total, gradients = step(name, 0, 1)
    losses, parts = zip(*(results[name] for results in spread), strict=True)

    torch.testing.assert_close(torch.stack(losses).mean(), total, rtol=1e-5, atol=1e-5)
    for together, *apart in zip(gradients, *parts, strict=True):
        torch.testing.assert_close(torch.stack(apart).mean(0), together, rtol=1e-4, atol=1e-4)
