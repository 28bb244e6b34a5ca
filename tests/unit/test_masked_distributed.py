"""Methods that hide or damage: two processes have the loss and the gradients of one with the whole batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.placed_views import PlacedWindows
from medssl_cli.data.views import make_views
from medssl_cli.methods import MethodBase
from tests.masked import LITTLE_DECODER, build, images_for
from tests.placed_windows import windows_of
from tests.two_processes import results_of_each

IMAGES = 4
METHODS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "mae masked": ("mae", "unet", 2, {"block": 4}),
    "mae sparse": ("mae", "unet", 2, {"variant": "sparse", "block": 4, "flat_below": 0.9}),
    "mae sparse volumes": ("mae", "unet", 3, {"variant": "sparse", "block": 4}),
    "mae tokens": ("mae", "vit", 2, LITTLE_DECODER),
    "simmim": ("simmim", "vit", 2, {"block": 8}),
    "swin_pretext": ("swin_pretext", "unet", 2, {"projection_dim": 8}),
}
each_method = pytest.mark.parametrize("name", METHODS)


def build_one(name: str) -> MethodBase:
    method, network, dims, options = METHODS[name]
    built = build(method, network, dims, side=16, **options).double()
    built.require_batch(IMAGES)
    return built


def step_of(name: str, rank: int, size: int) -> dict[str, Tensor]:
    """Loss, gradients and measured baselines of one process's share of a batch; one image shows little of the field."""
    method = build_one(name)
    images = images_for(method, batch=IMAGES).double()
    images[1, :, : images.shape[2] // 2] = 0.0  # so that processes have different numbers of blocks that count
    placed = method.views().placed
    assert placed is not None
    windows = windows_of(placed, IMAGES)
    own = slice(rank * IMAGES // size, (rank + 1) * IMAGES // size)
    parts = {key: getattr(windows, key)[own] for key in PlacedWindows.__dataclass_fields__}
    draws = Draws(torch.Generator().manual_seed(0), rank, size)
    views = make_views(method.views(), images[own], draws, windows=PlacedWindows(**parts))
    losses = method.loss(views, 0.5)
    losses.total.backward()
    found = {name: each.grad for name, each in method.named_parameters() if each.grad is not None}
    measured = {name: torch.tensor(value) for name, value in method.measured_baselines().items()}
    return {"loss": losses.total.detach(), **found, **measured}


def compute(rank: int) -> dict[str, dict[str, Tensor]]:
    return {name: step_of(name, rank, 2) for name in METHODS}


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """Results of each process, in order of rank."""
    results: Callable[..., Any] = results_of_each
    return list(results(tmp_path_factory.mktemp("spread"), compute))


@each_method
def test_two_processes_are_one(name: str, spread: list[dict[str, dict[str, Tensor]]]) -> None:
    first, second = (results[name] for results in spread)

    expected = step_of(name, 0, 1)

    assert first.keys() == second.keys() == expected.keys()
    for key, whole in expected.items():
        # the losses are computed in float32
        torch.testing.assert_close((first[key] + second[key]) / 2, whole, rtol=1e-3, atol=1e-5, msg=key)
    assert "mae" not in name or first["loss"] != second["loss"]
