"""Attention between slices: interpolation by hand, limits in which it is something simpler."""

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.nn.slices.deformable_attention import DeformableAttention, sample

EXACT = {"rtol": 0.0, "atol": 1e-13}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(*, is_trained: bool = False, num_points: int = 3) -> DeformableAttention:
    """With weights as at the start, or with all of them random."""
    torch.manual_seed(0)
    module = DeformableAttention(8, num_heads=2, num_points=num_points).double().eval()
    if is_trained:
        for index, parameter in enumerate(module.parameters()):
            parameter.data = random(*parameter.shape, seed=index)
    return module


def set_offsets(module: DeformableAttention, value: float) -> DeformableAttention:
    nn.init.zeros_(module.offsets.weight)
    nn.init.constant_(module.offsets.bias, value)
    return module


# Interpolation.


def test_between_slices_by_hand() -> None:
    values = torch.tensor([1.0, 2, 4, 8, 16], dtype=torch.float64).view(1, 5, 1, 1)
    places = torch.tensor([-0.5, 0, 0.25, 1.5, 3.75, 4, 4.5, 5, -1], dtype=torch.float64).view(1, 9, 1, 1)

    sampled = sample(values, places, torch.ones_like(places))

    # halves outside count 0; 0.25 between 1 and 2; 1.5 between 2 and 4; 3.75 between 8 and 16
    expected = torch.tensor([0.5, 1, 1.25, 3, 14, 16, 8, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(sampled.flatten(), expected, **EXACT)


def random_case(num_slices: int = 6, num_queries: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Places from two slices before the first to two after the last, none at a whole number."""
    values = random(2, num_slices, 2, 3)
    uniform = torch.rand(2, num_queries, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    places = uniform * (num_slices + 3) - 2
    weights = random(2, num_queries, 2, 4, seed=2).softmax(dim=-1)
    return values, places, weights


def test_gradients_of_values_places_and_weights() -> None:
    case = [part.requires_grad_() for part in random_case(4, 3)]

    assert torch.autograd.gradcheck(sample, case)


def test_far_places_are_outside() -> None:
    values = random(1, 4, 1, 2)
    places = torch.tensor([-1e30, 1e30, -7.5, 12.25], dtype=torch.float64).view(1, 1, 1, 4)

    sampled = sample(values, places, torch.ones_like(places))

    assert (sampled == 0).all()


# The module.


def test_without_offsets_it_is_two_linear_maps() -> None:
    module, slices = set_offsets(attention(is_trained=True), 0.0), random(2, 6, 8)

    found = module(random(2, 6, 8, seed=1), slices)

    torch.testing.assert_close(found, module.output(module.values(slices)), **EXACT)


def test_a_whole_offset_shifts() -> None:
    module, slices = set_offsets(attention(is_trained=True), 2.0), random(2, 6, 8)
    values = module.values(slices)

    shifted = torch.cat([values[:, 2:], torch.zeros_like(values[:, :2])], dim=1)

    torch.testing.assert_close(module(slices, slices), module.output(shifted), **EXACT)


def test_half_an_offset_is_the_mean_of_two_neighbours() -> None:
    module, slices = set_offsets(attention(is_trained=True), 0.5), random(2, 6, 8)
    values = module.values(slices)

    means = torch.cat([(values[:, :-1] + values[:, 1:]) / 2, values[:, -1:] / 2], dim=1)

    torch.testing.assert_close(module(slices, slices), module.output(means), **EXACT)


def test_with_a_point_on_every_slice_it_is_full_attention() -> None:
    values, weights = random(2, 5, 2, 3), random(2, 5, 2, 5, seed=1).softmax(dim=-1)
    places = torch.arange(5, dtype=torch.float64).expand(2, 5, 2, 5)

    found = sample(values, places, weights)

    torch.testing.assert_close(found, torch.einsum("btms,bsmd->btmd", weights, values), **EXACT)


def test_padding_is_as_if_the_volume_ended() -> None:
    module, queries, slices = attention(is_trained=True), random(1, 9, 8), random(1, 9, 8, seed=1)
    is_present = torch.arange(9)[None] < 5

    padded = module(queries, slices, is_present)[:, :5]

    torch.testing.assert_close(padded, module(queries[:, :5], slices[:, :5]), **EXACT)


def test_reversed_slices_with_reversed_offsets() -> None:
    module, queries, slices = attention(is_trained=True), random(2, 6, 8), random(2, 6, 8, seed=1)
    expected = module(queries, slices).flip(1)
    for parameter in module.offsets.parameters():
        parameter.data.neg_()

    torch.testing.assert_close(module(queries.flip(1), slices.flip(1)), expected, **EXACT)


def test_offsets_can_be_in_another_unit() -> None:
    module, queries, slices = attention(is_trained=True), random(2, 6, 8), random(2, 6, 8, seed=1)
    scale = torch.tensor([2.0, -0.5])
    found = module(queries, slices, None, scale)

    for volume, factor in enumerate(scale):
        scaled = attention(is_trained=True)
        for parameter in scaled.offsets.parameters():
            parameter.data.mul_(factor)
        torch.testing.assert_close(found[volume : volume + 1], scaled(queries, slices)[volume : volume + 1], **EXACT)


def test_start() -> None:
    module = attention(num_points=3)

    assert module.offsets.bias.tolist() == [1, 2, 3, -1, -2, -3]
    assert not module.offsets.weight.any()
    # equal weights on the three slices after (head 0) and before (head 1) each slice
    slices = random(1, 8, 8)
    values = module.values(slices).unflatten(-1, (2, 4))
    middle = torch.cat([values[0, 4:7, 0].mean(0), values[0, 0:3, 1].mean(0)])
    torch.testing.assert_close(module(slices, slices)[0, 3], module.output(middle), **EXACT)


def test_the_offsets_learn_from_the_first_step() -> None:
    module = attention().train()

    module(random(1, 6, 8), random(1, 6, 8, seed=1)).square().sum().backward()

    assert module.offsets.bias.grad is not None
    assert module.offsets.bias.grad.abs().max() > 1e-3


@pytest.mark.parametrize("num_slices", [1, 5, 33, 64])
def test_any_number_of_slices(num_slices: int) -> None:
    slices = random(2, num_slices, 8)

    assert attention(is_trained=True)(slices, slices).shape == slices.shape


def test_places_keep_their_digits_in_bfloat16() -> None:
    """Half a slice beyond slice 60 is a place that bfloat16 does not know: it has 8 digits, and would say 60 or 61."""
    module = set_offsets(attention(), 0.125).bfloat16()
    slices = random(1, 64, 8).bfloat16()

    found = module(slices, slices)

    values = module.values(slices).float()
    between = values[:, 60] * 0.875 + values[:, 61] * 0.125
    torch.testing.assert_close(found[:, 60], module.output(between.bfloat16()))


def test_heads_must_divide_the_embedding() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        DeformableAttention(10, num_heads=4)
