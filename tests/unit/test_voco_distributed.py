"""VoCo on two processes: the mean of their losses and of their gradients is what one process gets from the batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.views import make_views
from medssl_cli.methods import Labelled, voco
from medssl_cli.nn.backbones import Backbone
from tests.two_processes import WORLD, results_of_each

# `v2` compares with the next volume of the process: with volumes a, b, a, b that is the next of the whole batch too.
CASES: dict[str, dict[str, Any]] = {
    "fixed": {"objective": "fixed"},
    "fixed in float64": {"objective": "fixed", "corrections": {"float32_loss": False, "regulariser": "absolute"}},
    "v1": {"objective": "v1"},
    "v2": {"objective": "v2", "sync_norm": True, "flip_prob": 0, "rot90_prob": 0, "shift_prob": 0, "dropout_prob": 0},
    "paper": {"objective": "paper", "sync_norm": True},
    "dense": {"objective": "fixed", "dense": {"target": "overlap", "decoder": {"norm": "instance"}}},
    "labels": {
        "objective": "fixed",
        "omni": {"classes": {1: "a", 2: "b"}, "batch_size": 4, "pseudo_from": 0.0, "pseudo_trains_encoder": True},
    },
}


class TinyBackbone(Backbone):
    def __init__(self) -> None:
        super().__init__(channels=(5,), strides=(2,), embedding_levels=(0,))
        self.conv = nn.Conv3d(1, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x).tanh()]


def step(settings: dict[str, Any], shard: int, num_shards: int) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of this shard's volumes."""
    torch.manual_seed(0)
    options = voco.Options.model_validate({"projector_dim": 8, "num_random_crops": 3, **settings})
    method = voco.Method(TinyBackbone(), options, (4, 4, 4)).double().train()
    method.before_step(0.0)
    shape = 2, 1, *method.views().size
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).repeat(2, 1, 1, 1, 1)
    own = images.chunk(num_shards)[shard]
    crops = torch.rand(4, 1, 4, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labelled = Labelled(crops.chunk(num_shards)[shard], (3 * crops[:, 0]).long().chunk(num_shards)[shard])
    draws = Draws(torch.Generator().manual_seed(2), shard, num_shards)
    views = make_views(method.views(), own, draws, labelled=labelled)
    total = method.loss(views, progress=0.0).total
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    return total.detach(), list(torch.autograd.grad(total, trained))


def compute(rank: int) -> dict[str, tuple[Tensor, list[Tensor]]]:
    return {name: step(settings, rank, WORLD) for name, settings in CASES.items()}


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, list[Tensor]]]]:
    """Results of each process, in order of rank."""
    return results_of_each(tmp_path_factory.mktemp("spread"), compute)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name: str, spread: list[dict[str, tuple[Tensor, list[Tensor]]]]) -> None:
    total, gradients = step(CASES[name], 0, 1)
    losses, parts = zip(*(results[name] for results in spread), strict=True)

    torch.testing.assert_close(torch.stack(losses).mean(), total, rtol=1e-5, atol=1e-5)
    for together, *apart in zip(gradients, *parts, strict=True):
        torch.testing.assert_close(torch.stack(apart).mean(0), together, rtol=1e-5, atol=1e-5)


def test_normalising_each_process_alone_gives_something_else() -> None:
    """So the test above would notice: the same two halves without a process group."""
    settings = CASES["fixed"]

    halves = [step(settings, shard, WORLD)[0] for shard in range(WORLD)]

    assert abs(torch.stack(halves).mean() - step(settings, 0, 1)[0]) > 1e-4
