"""The encoder of a volume's slices: what it may and may not depend on, its two orders of norms, its pools."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.nn.slices.encoder import (
    AttentionPool,
    SliceEncoder,
    mean_pool,
    position_code,
    slices_per_unit,
)

EXACT = {"rtol": 0.0, "atol": 1e-12}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def encoder(**settings: Any) -> SliceEncoder:
    """A small one whose weights are all random, as after training."""
    module = SliceEncoder(8, **{"num_layers": 2, "num_heads": 2, "num_points": 3, "ffn_ratio": 2.0, **settings})
    module = module.double().eval()
    for index, parameter in enumerate(module.parameters()):
        parameter.data = 0.3 * random(*parameter.shape, seed=index)
    return module


def volumes(num_slices: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Two volumes with slices 5 and 2.5 mm apart, and no padding."""
    positions = torch.tensor([[5.0], [2.5]], dtype=torch.float64) * torch.arange(num_slices)
    return random(2, num_slices, 8), torch.ones(2, num_slices, dtype=torch.bool), positions


@pytest.mark.parametrize("reference_spacing_mm", [None, 4.0])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_padding_changes_nothing(pre_norm: bool, reference_spacing_mm: float | None) -> None:
    module = encoder(pre_norm=pre_norm, reference_spacing_mm=reference_spacing_mm)
    slices, is_present, positions = volumes(9)
    is_present[:, 5:] = False

    padded = module(slices, is_present, positions)

    alone = module(slices[:, :5], is_present[:, :5], positions[:, :5])
    torch.testing.assert_close(padded[:, :5], alone, **EXACT)
    assert (padded[:, 5:] == 0).all()
    torch.testing.assert_close(mean_pool(padded, is_present), alone.mean(dim=1), **EXACT)


def pooled_change(module: SliceEncoder) -> float:
    """What another order of the slices, at the same positions, changes in the volume's vector."""
    slices, is_present, positions = volumes()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    found = [mean_pool(module(rows, is_present, positions), is_present) for rows in (slices, slices[:, order])]
    return float((found[0] - found[1]).detach().abs().max())


def test_the_order_of_slices_counts() -> None:
    assert pooled_change(encoder()) > 1e-3


def test_without_offsets_and_positions_a_volume_is_a_set() -> None:
    module = encoder(has_positions=False)
    for layer in module.layers:
        nn.init.zeros_(layer.attention.offsets.weight)
        nn.init.zeros_(layer.attention.offsets.bias)

    assert pooled_change(module) < 1e-12


def test_positions_reach_queries_only() -> None:
    """Offsets and weights that do not listen to the query leave positions without any effect."""
    module = encoder()
    slices, is_present, positions = volumes()
    first = module(slices, is_present, positions)
    assert (module(slices, is_present, positions * 3) - first).abs().max() > 1e-3

    for layer in module.layers:
        nn.init.zeros_(layer.attention.offsets.weight)
        nn.init.zeros_(layer.attention.weights.weight)

    found = [module(slices, is_present, positions * factor) for factor in (1, 3)]
    assert torch.equal(found[0], found[1])


def test_equal_volumes_in_a_batch_are_encoded_alike() -> None:
    slices, is_present, positions = volumes()
    twice = [part[[0, 1, 0]] for part in (slices, is_present, positions)]

    encoded = encoder()(*twice)

    torch.testing.assert_close(encoded[2], encoded[0], **EXACT)


@pytest.mark.parametrize("num_slices", [1, 5, 33])
def test_any_number_of_slices(num_slices: int) -> None:
    encoded = encoder(reference_spacing_mm=4.0)(*volumes(num_slices))

    assert encoded.shape == (2, num_slices, 8)
    assert encoded.isfinite().all()


def test_a_reversed_volume_is_the_same_volume_if_offsets_are_in_millimetres() -> None:
    """Positions travel with their slices, so 4 mm up stays 4 mm up, which with offsets in slices it does not."""
    whole = volumes()
    reversed_whole = [part.flip(1) for part in whole]

    for reference_spacing_mm, is_equal in [(4.0, True), (None, False)]:
        module = encoder(reference_spacing_mm=reference_spacing_mm)
        difference = (module(*reversed_whole).flip(1) - module(*whole)).abs().max()
        assert (difference < 1e-12) == is_equal


def layer_by_hand(module: SliceEncoder, inputs: tuple[Tensor, Tensor, Tensor], *, pre_norm: bool) -> Tensor:
    x, is_present, positions = inputs
    code = position_code(positions, 8)
    for layer in module.layers:
        first, second = layer.norms
        if pre_norm:
            x = x + layer.attention(first(x) + code, first(x), is_present)
            x = x + layer.perceptron(second(x))
        else:
            x = first(x + layer.attention(x + code, x, is_present))
            x = second(x + layer.perceptron(x))
    return module.norm(x) if pre_norm else x


@pytest.mark.parametrize("pre_norm", [True, False])
def test_order_of_norms(pre_norm: bool) -> None:
    module = encoder(pre_norm=pre_norm)

    torch.testing.assert_close(module(*volumes()), layer_by_hand(module, volumes(), pre_norm=pre_norm), **EXACT)


def test_dropout_acts_in_training_only() -> None:
    module = encoder(dropout=0.5)

    assert torch.equal(module(*volumes()), module(*volumes()))
    module.train()
    torch.manual_seed(0)
    assert not torch.equal(module(*volumes()), module(*volumes()))


def test_size_of_a_layer() -> None:
    """Of 640 elements, 8 heads, 4 points and 720 hidden: by counting weights and biases."""
    module = SliceEncoder(640, num_layers=1, ffn_ratio=720 / 640)

    attention = 2 * (640 * 32 + 32) + 2 * (640 * 640 + 640)
    perceptron = 640 * 720 + 720 + 720 * 640 + 640
    assert sum(parameter.numel() for parameter in module.parameters()) == attention + perceptron + 3 * 2 * 640


def test_position_code() -> None:
    code = position_code(torch.tensor([0.0, 1.0, 1000.0]), 4)

    # wavelengths 4 and 4000 mm: a millimetre is a quarter of the first, a metre a quarter of the second
    assert code[0].tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(code[1, [0, 2]], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(code[2, [1, 3]], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(code[:, :2].square() + code[:, 2:].square(), torch.ones(3, 2))
    with pytest.raises(ValueError, match="even"):
        position_code(torch.zeros(1), 5)


def test_slices_per_unit() -> None:
    positions = torch.tensor([[0.0, 2, 4, 6], [9, 6, 3, 777], [5, -3, 0, 0], [4, 4, 4, 4]])
    is_present = torch.tensor([[True] * 4, [True, True, True, False], [True, False, False, False], [True] * 4])

    # 2 mm up and 3 mm down from slice to slice; one slice and equal positions say nothing
    torch.testing.assert_close(slices_per_unit(positions, is_present, unit_mm=3.0), torch.tensor([1.5, -1.0, 1.0, 1.0]))


def test_pools() -> None:
    slices, is_present = random(3, 4, 8), torch.arange(4) < torch.tensor([[4], [2], [0]])
    pool = AttentionPool(8).double()

    for pooled in (mean_pool(slices, is_present), pool(slices, is_present)):
        torch.testing.assert_close(pooled[0], slices[0].mean(0), **EXACT)
        torch.testing.assert_close(pooled[1], slices[1, :2].mean(0), **EXACT)
        assert (pooled[2] == 0).all()

    pool.score.weight.data = random(1, 8, seed=1)
    weights = [math.exp(float(row @ pool.score.weight[0].detach())) for row in slices[1, :2]]
    expected = (weights[0] * slices[1, 0] + weights[1] * slices[1, 1]) / sum(weights)
    torch.testing.assert_close(pool(slices, is_present)[1], expected, **EXACT)


def test_everything_is_trained() -> None:
    module, pool = encoder().train(), AttentionPool(8).double()
    slices, is_present, positions = volumes()

    pool(module(slices, is_present, positions), is_present).square().sum().backward()

    parameters = [*module.parameters(), *pool.parameters()]
    # a bias that moves all scores alike changes no softmax
    assert [p.shape for p in parameters if p.grad is None or not p.grad.any()] == []
