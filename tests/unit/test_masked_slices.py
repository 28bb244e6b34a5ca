"""Hiding slices and predicting their embeddings. Vectors: counts and averages worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from medssl_cli.methods.joint.masked_slices import (
    MaskedSlices,
    MaskOptions,
    choose_masked,
    constant_distance,
    num_masked,
    standardised,
)


@pytest.mark.parametrize(
    ("present", "ratio", "expected"), [(64, 0.1, 7), (32, 0.1, 4), (20, 0.15, 3), (2, 0.9, 1), (1, 0.5, 0), (0, 0.5, 0)]
)
def test_the_number_of_hidden_slices_is_rounded_up_and_one_stays(present: int, ratio: float, expected: int) -> None:
    assert num_masked(torch.tensor([present]), ratio).tolist() == [expected]


@pytest.mark.parametrize("block", [False, True])
def test_padding_is_never_hidden_and_the_count_is_met(block: bool) -> None:
    lengths = torch.tensor([1, 2, 7, 12])
    is_present = torch.arange(12) < lengths[:, None]
    options = MaskOptions(ratio=0.3, block=block)

    for seed in range(50):
        numbers = torch.rand(4, 12, generator=torch.Generator().manual_seed(seed))
        is_masked = choose_masked(is_present, options, numbers)

        assert not (is_masked & ~is_present).any()
        assert is_masked.sum(1).tolist() == [0, 1, 3, 4]
        if block:
            for row in is_masked[1:]:
                places = row.nonzero()[:, 0]
                assert places[-1] - places[0] + 1 == len(places)


def test_a_window_that_begins_late_hides_its_own_slices_only() -> None:
    is_present = torch.tensor([[False, False, True, True, True, False]])

    for block in (False, True):
        is_masked = choose_masked(is_present, MaskOptions(ratio=0.5, block=block), torch.full((1, 6), 0.99))

        assert is_masked.sum() == 2
        assert not (is_masked & ~is_present).any()


def test_the_average_is_over_all_hidden_slices_not_over_volumes() -> None:
    torch.manual_seed(0)
    masked = MaskedSlices(4)
    slices = torch.randn(2, 3, 4)
    is_masked = torch.tensor([[True, True, True], [True, False, False]])
    related = torch.randn(2, 3, 4)
    predicted, targets = masked.decoder(related), F.layer_norm(slices, (4,))
    each = (predicted - targets).square().mean(-1)

    loss, _ = masked.loss(related, slices, is_masked)

    literal = (each[0, 0] + each[0, 1] + each[0, 2] + each[1, 0]) / 4
    assert loss.item() == pytest.approx(literal.item(), rel=1e-6)
    assert loss.item() != pytest.approx(((each[0].mean() + each[1, 0]) / 2).item(), rel=1e-3)


def test_what_was_hidden_does_not_matter_to_what_is_seen_and_visible_targets_do_not_matter_to_the_loss() -> None:
    torch.manual_seed(0)
    masked = MaskedSlices(4)
    is_masked = torch.tensor([[True, False, True]])
    slices, related = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    others, visible = slices.clone(), slices.clone()
    others[is_masked] = 100.0
    visible[~is_masked] = 100.0

    assert torch.equal(masked.hide(slices, is_masked), masked.hide(others, is_masked))
    assert torch.equal(masked.loss(related, slices, is_masked)[0], masked.loss(related, visible, is_masked)[0])


def test_nothing_hidden_costs_nothing_and_gives_no_nan() -> None:
    masked = MaskedSlices(4)
    related = torch.randn(1, 1, 4, requires_grad=True)

    loss, constant = masked.loss(related, torch.randn(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool))
    loss.backward()

    assert loss.item() == constant.item() == 0
    assert math.isfinite(related.grad.sum().item())


@pytest.mark.parametrize("centred", [False, True])
def test_no_gradient_reaches_the_targets(centred: bool) -> None:
    masked = MaskedSlices(4, centred=centred)
    slices = torch.randn(1, 3, 4, requires_grad=True)
    related = torch.randn(1, 3, 4, requires_grad=True)

    masked.loss(related, slices, torch.ones(1, 3, dtype=torch.bool))[0].backward()

    assert slices.grad is None
    assert related.grad is not None


def test_the_best_constant_guess_is_the_mean_of_the_targets() -> None:
    targets = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    guess = targets.mean(dim=0)

    assert constant_distance(targets).item() == pytest.approx((targets - guess).square().mean().item(), rel=1e-6)
    assert constant_distance(targets[:1]).item() == constant_distance(targets[:0]).item() == 0


def test_a_constant_says_nothing_of_centred_targets_however_much_all_slices_share() -> None:
    generator = torch.Generator().manual_seed(0)
    slices = 5 * torch.randn(16, generator=generator) + 0.1 * torch.randn(200, 16, generator=generator)

    assert constant_distance(standardised(slices)).item() < 0.01
    assert constant_distance(standardised(slices, centred=True)).item() == pytest.approx(1, abs=0.02)
    assert torch.equal(standardised(slices[:1], centred=True), torch.zeros(1, 16))


def test_the_released_loss_is_of_all_slices_as_they_are() -> None:
    """Section 3.3 of the paper's code: both views' mean squares over all elements, over the number of hidden slices."""
    torch.manual_seed(0)
    masked = MaskedSlices(4)
    slices, related = torch.randn(4, 10, 4, requires_grad=True), torch.randn(4, 10, 4)
    is_present = torch.ones(4, 10, dtype=torch.bool)

    loss, constant = masked.released_loss(related, slices, is_present, scale=2 / int(10 * 0.25))

    predicted = masked.decoder(related)
    expected = sum(((predicted[view] - slices[view]) ** 2).mean() for view in ([0, 1], [2, 3])) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert slices.grad is None
    assert constant > 0


def test_absent_slices_take_no_part_in_the_released_loss() -> None:
    masked = MaskedSlices(4)
    slices, related = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    is_present = torch.tensor([[True, True, False], [True, False, False]])

    first = masked.released_loss(related, slices, is_present, scale=1.0)[0]
    slices[~is_present] = related[~is_present] = 100.0

    assert torch.equal(first, masked.released_loss(related, slices, is_present, scale=1.0)[0])
