"""Masked reconstruction by tensors against the equations written out number by number."""

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.methods.mae.method import reconstruction_loss
from medssl_cli.methods.mae.sparse import Visibility, make_sparse
from medssl_cli.methods.simmim import absolute_loss
from medssl_cli.nn.backbones import Backbone, spread_blocks
from medssl_cli.nn.hidden_blocks import cut_blocks, standardised_blocks
from tests.parity import masked_literal as literal

SEEDS = range(3)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("is_standardised", [False, True])
def test_reconstruction(seed: int, is_standardised: bool) -> None:
    images, guessed = random(seed, 2, 3, 6, 9), random(seed + 10, 2, 6, 27)
    hidden = random(seed + 20, 2, 6) < 0.3

    expected = literal.reconstruction(
        images.tolist(), guessed.tolist(), hidden.tolist(), 3, is_standardised=is_standardised
    )

    targets = cut_blocks(images, (2, 3))
    targets = standardised_blocks(targets, jointly=True) if is_standardised else targets
    counts = hidden[:, :, None].expand(-1, -1, 3)
    found = reconstruction_loss(guessed.unflatten(2, (9, 3)), targets, counts)
    assert found.item() == pytest.approx(expected, rel=1e-5)  # the loss is computed in float32


@pytest.mark.parametrize("seed", SEEDS)
def test_absolute_distance(seed: int) -> None:
    images, guessed = random(seed, 2, 3, 6, 9), random(seed + 10, 2, 3, 6, 9)
    hidden = random(seed + 20, 2, 2, 3) < 0.3

    expected = literal.absolute_distance(images.tolist(), guessed.tolist(), hidden.tolist(), 3)

    counts = hidden.flatten(1)[:, :, None].expand(-1, -1, 3)
    found = absolute_loss(cut_blocks(guessed, (2, 3)), cut_blocks(images, (2, 3)), counts)
    assert found.item() == pytest.approx(expected, rel=1e-5)  # the loss is computed in float32


class OneLayer(Backbone):
    """A convolution and a batch norm."""

    def __init__(self) -> None:
        super().__init__(channels=(1,), strides=(1,), embedding_levels=(0,), spatial_dims=2)
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        return [self.norm(self.convolution(images))]


@pytest.mark.parametrize("seed", SEEDS)
def test_sparse_layers(seed: int) -> None:
    network = OneLayer().double()
    visibility: Visibility = make_sparse(network)
    images = random(seed, 3, 1, 6, 4)
    hidden = random(seed + 5, 3, 3, 2) < 0
    seen = ~spread_blocks(hidden, (6, 4))
    weights = network.convolution.weight[0, 0].tolist()
    [bias] = network.state_dict()["convolution.bias"].tolist()

    expected = literal.convolved(images[:, 0].tolist(), seen.tolist(), weights, bias)

    with visibility.of(hidden):
        covered = images * seen[:, None]
        convolved = network.convolution(covered)
        found = network(covered)[0]
    torch.testing.assert_close(convolved[:, 0], torch.tensor(expected, dtype=torch.float64))
    assert found.flatten().tolist() == pytest.approx(literal.normalised(expected, seen.tolist()))
