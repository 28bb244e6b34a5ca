"""`simmim`: cells are hidden from every network, and a median is the best constant."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from medssl_cli.base.errors import UsageError
from medssl_cli.methods.simmim import Method, absolute_loss
from medssl_cli.nn.backbones import spread_blocks
from tests.masked import build, images_for, views_of

KINDS: dict[str, tuple[str, int, int]] = {
    "unet 2D": ("unet", 2, 32),
    "unet 3D": ("unet", 3, 32),
    "vit 2D": ("vit", 2, 64),
    "vit 3D": ("vit", 3, 32),
    "swinunetr 2D": ("swinunetr", 2, 64),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def method_of(kind: str, **options: Any) -> Method:
    network, dims, side = KINDS[kind]
    built = build("simmim", network, dims, side=side, **{"block": 32 if network == "swinunetr" else 8, **options})
    assert isinstance(built, Method)
    return built


@each_kind
def test_every_parameter_learns_and_the_right_number_is_hidden(kind: str) -> None:
    method = method_of(kind)
    views = views_of(method, images_for(method))

    method.loss(views, 0.0).total.backward()
    hidden, is_inside = method.hidden(views)

    assert [name for name, each in method.named_parameters() if each.grad is None] == []
    assert hidden.flatten(1).sum(dim=1).tolist() == [math.ceil(0.6 * hidden[0].numel())] * 2
    assert is_inside.any()


@each_kind
def test_hidden_voxels_change_no_guess_and_visible_ones_do(kind: str) -> None:
    method = method_of(kind).eval()
    views = views_of(method, images_for(method))
    [seen], (hidden, _) = views.images, method.hidden(views)
    is_hidden = spread_blocks(hidden, seen.shape[2:])[:, None]

    with torch.no_grad():
        before = method.guess(seen, hidden)
        under = method.guess(torch.where(is_hidden, 7.0, seen), hidden)
        beside = method.guess(torch.where(is_hidden, seen, seen + 1), hidden)

    torch.testing.assert_close(before, under)
    assert not torch.allclose(before, beside)


def test_a_network_of_tokens_puts_a_learnt_vector_in_their_place() -> None:
    method = method_of("vit 2D").eval()
    views = views_of(method, images_for(method))
    [seen], (hidden, _) = views.images, method.hidden(views)

    before = method.guess(seen, hidden)
    assert method.token is not None
    with torch.no_grad():
        method.token += 1

    assert not torch.allclose(before, method.guess(seen, hidden))
    assert method_of("unet 2D").token is None


def test_the_median_is_the_best_constant() -> None:
    method = method_of("unet 2D")
    images = images_for(method)
    assert method.measured_baselines() == {}

    method.loss(views_of(method, images), 0.0)

    # of normal numbers the mean distance from their median is sqrt(2 / pi); interpolation makes views a little smoother
    assert 0.5 < method.measured_baselines()["median"] < math.sqrt(2 / math.pi) + 0.05
    values = torch.tensor([0.0, 0.0, 0.0, 10.0]).view(1, 1, 4, 1)
    counts = torch.ones(1, 1, 1, dtype=torch.bool)
    assert absolute_loss(torch.zeros_like(values), values, counts).item() == 2.5
    assert absolute_loss(torch.full_like(values, 2.5), values, counts).item() == 3.75


def test_a_head_of_zeros_guesses_zero() -> None:
    method = method_of("unet 2D")
    for parameter in method.heads.parameters():
        nn.init.zeros_(parameter)
    views = views_of(method, images_for(method))
    [seen], (hidden, _) = views.images, method.hidden(views)
    is_hidden = spread_blocks(hidden, seen.shape[2:])[:, None]

    loss = method.loss(views_of(method, images_for(method)), 0.0).total

    assert loss.item() == pytest.approx(seen[is_hidden].abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ("unet", {"block": 5}, "no multiple of 5"),
        ("unet", {"block": 32}, "all 1 cells"),
        ("vit", {"block": 4}, "no multiples of patches"),
    ],
)
def test_cells_that_do_not_fit_are_refused(network: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match="E_RECIPE") as refused:
        build("simmim", network, 2, **options)

    assert words in str(refused.value)
