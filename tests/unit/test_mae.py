"""`mae`: what is hidden stays hidden, what is seen is not guessed, and dense weights are sparse ones."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.base.errors import UsageError
from medssl_cli.methods import MethodBase
from medssl_cli.methods.mae import Method, Options
from medssl_cli.methods.mae.guessers import SparseGuesser
from medssl_cli.methods.mae.method import reconstruction_loss
from medssl_cli.methods.mae.options import Rules
from medssl_cli.methods.mae.sparse import make_sparse
from medssl_cli.nn.backbones import spread_blocks
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named
from tests.masked import LITTLE_DECODER, NETWORKS, build, images_for, sines, views_of

KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "masked 2D": ("unet", 2, {"block": 8}),
    "masked 3D": ("unet", 3, {"block": 8}),
    "masked tokens": ("vit", 2, {"variant": "masked_input"}),
    "sparse 2D": ("unet", 2, {"variant": "sparse", "block": 8}),
    "sparse residual": ("resenc", 2, {"variant": "sparse", "block": 8}),
    "sparse 3D": ("plainconv", 3, {"variant": "sparse", "block": 8}),
    "tokens 2D": ("vit", 2, LITTLE_DECODER),
    "tokens 3D": ("vit", 3, LITTLE_DECODER),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_sparse = pytest.mark.parametrize("kind", [kind for kind in KINDS if "sparse" in kind])


def method_of(kind: str, **options: Any) -> Method:
    network, dims, own = KINDS[kind]
    built = build("mae", network, dims, **{**own, **options})
    assert isinstance(built, Method)
    return built


def loss_of(method: MethodBase, images: Tensor) -> Tensor:
    return method.loss(views_of(method, images), progress=0.0).total


def hidden_of(method: Method, images: Tensor) -> Tensor:
    """What the first step hides, [B, ...] as blocks."""
    return method.hidden(views_of(method, images))[0]


def seen_views(method: Method, images: Tensor, change: Tensor, *, is_hidden: bool) -> Tensor:
    """Guesses where only visible (or only hidden) voxels of the views have changed."""
    views = views_of(method, images)
    [seen] = views.images
    hidden = method.hidden(views_of(method, images))[0]
    where = spread_blocks(hidden, seen.shape[2:])[:, None] == is_hidden
    return method.guesser(method.backbone, torch.where(where, seen + change, seen), hidden)


@each_kind
def test_hidden_voxels_change_no_guess_and_visible_ones_do(kind: str) -> None:
    method = method_of(kind)
    images = images_for(method)

    with torch.no_grad():
        before = seen_views(method, images, torch.tensor(0.0), is_hidden=True)
        under = seen_views(method, images, torch.tensor(torch.nan), is_hidden=True)
        beside = seen_views(method, images, torch.tensor(1.0), is_hidden=False)

    assert torch.equal(before, under)
    assert not torch.allclose(before, beside)


def test_guesses_of_visible_blocks_and_of_air_do_not_matter() -> None:
    targets = torch.randn(2, 4, 8, 1)
    counts = torch.tensor([[True, False, True, False], [False, True, True, False]])[..., None]
    guessed = torch.randn(2, 4, 8, 1, requires_grad=True)

    reconstruction_loss(guessed, targets, counts).backward()

    assert guessed.grad is not None
    assert guessed.grad.abs().sum(dim=2)[~counts].max() == 0
    assert guessed.grad.abs().sum(dim=2)[counts].min() > 0


@each_kind
def test_every_parameter_learns(kind: str) -> None:
    method = method_of(kind)

    loss_of(method, images_for(method)).backward()

    assert [name for name, each in method.named_parameters() if each.grad is None] == []


@each_sparse
def test_all_visible_is_the_dense_network(kind: str) -> None:
    network, dims, _ = KINDS[kind]
    dense = build_backbone(Named(name=network, spatial_dims=dims, **NETWORKS[network])).double()
    sparse = copy.deepcopy(dense)
    visibility = make_sparse(sparse)
    images = torch.randn(2, 1, *[16] * dims, dtype=torch.float64)
    nothing = torch.zeros(2, *[2] * dims, dtype=torch.bool)

    with visibility.of(nothing):
        found = sparse(images)

    for a, b, c in zip(found, dense(images), sparse(images), strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(c, b)
    assert list(sparse.state_dict()) == list(dense.state_dict())


@each_sparse
def test_sparse_features_are_zero_where_hidden(kind: str) -> None:
    method = method_of(kind)
    images = images_for(method)
    views, hidden = views_of(method, images), hidden_of(method, images)
    assert isinstance(method.guesser, SparseGuesser)

    with method.guesser.visibility.of(hidden):
        maps = method.backbone(views.images[0], hidden)

    for level in maps:
        is_hidden = spread_blocks(hidden, level.shape[2:])[:, None].expand_as(level)
        assert level[is_hidden].abs().max() == 0
        assert level[~is_hidden].abs().max() > 0


def test_vector_11_sparse_convolution_and_batch_norm() -> None:
    network = build_backbone(Named(name="unet", spatial_dims=2, channels=[1], strides=[1], num_res_units=0))
    layers = nn.ModuleList([nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)]).double()
    network.layers = layers
    visibility = make_sparse(network)
    with torch.no_grad():
        layers[0].weight.copy_(sines(1, 1, 3, 3))
        layers[0].bias.fill_(0.5)  # type: ignore[union-attr]
    hidden = torch.tensor([[[0, 1], [1, 1]], [[1, 0], [1, 1]]], dtype=torch.bool)
    images = sines(2, 1, 4, 4) * ~spread_blocks(hidden, (4, 4))[:, None]

    with visibility.of(hidden), torch.no_grad():
        convolved, found = layers[0](images), layers[1](images)

    assert convolved.sum().item() == pytest.approx(4.17272949, abs=1e-8)
    assert convolved.abs().sum().item() == pytest.approx(9.33490974, abs=1e-8)
    assert found.abs().sum().item() == pytest.approx(7.22945012, abs=1e-8)


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_sparse_norms_know_visible_places_only(norm: str) -> None:
    kinds = {"batch": nn.BatchNorm3d(4), "instance": nn.InstanceNorm3d(4, affine=True), "group": nn.GroupNorm(2, 4)}
    network = build_backbone(Named(name="unet", channels=[4], strides=[1]))
    network.layer = kinds[norm].double()
    visibility = make_sparse(network)
    maps = 3 + 2 * torch.randn(2, 4, 4, 4, 4, dtype=torch.float64)
    hidden = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    hidden[:, 0] = True

    with visibility.of(hidden):
        found = network.layer(maps)

    assert found[:, :, :2].abs().max() == 0
    torch.testing.assert_close(found[:, :, 2:], kinds_of(norm)(maps[:, :, 2:]))


def kinds_of(norm: str) -> nn.Module:
    """The ordinary norm, which sees the visible half alone."""
    kinds = {"batch": nn.BatchNorm3d(4), "instance": nn.InstanceNorm3d(4, affine=True), "group": nn.GroupNorm(2, 4)}
    return kinds[norm].double()


def test_running_statistics_are_those_of_visible_places() -> None:
    network = build_backbone(Named(name="unet", spatial_dims=2, channels=[1], strides=[1]))
    network.layer = nn.BatchNorm2d(1)
    visibility, plain = make_sparse(network), nn.BatchNorm2d(1)
    maps = torch.randn(2, 1, 4, 4)
    hidden = torch.tensor([[[True, False]]] * 2)

    with visibility.of(hidden):
        network.layer(maps)
        plain(maps[..., 2:])
        torch.testing.assert_close(network.layer.state_dict(), plain.state_dict())
        network.layer.eval()
        torch.testing.assert_close(network.layer(maps)[..., 2:], plain.eval()(maps[..., 2:]))


def test_levels_coarser_than_blocks_are_fully_visible() -> None:
    method = method_of("sparse 2D", block=2)  # the coarsest level has a stride of 4

    assert set(method.guesser.densifier.tokens) == {"0", "1"}  # type: ignore[union-attr]
    assert math.isfinite(loss_of(method, images_for(method)).item())


@pytest.mark.parametrize(
    ("variant", "dims", "cells", "hidden"),
    [
        ("tokens", 2, 196, 147),
        ("tokens", 2, 10, 8),  # 2.5 are kept, rounded down
        ("sparse", 2, 49, 29),  # 19.6 are kept, rounded
        ("sparse", 3, 1000, 750),
        ("sparse", 3, 10, 7),  # 7.5 are hidden, rounded down
        ("masked_input", 2, 64, 32),
    ],
)
def test_how_many_blocks_are_hidden(variant: Any, dims: int, cells: int, hidden: int) -> None:
    rules = Rules.of(Options(variant=variant), has_tokens=variant == "tokens", spatial_dims=dims)

    assert rules.num_hidden(cells) == hidden


@each_kind
def test_baselines_are_what_trivial_guesses_cost(kind: str) -> None:
    method = method_of(kind)
    images = images_for(method)
    assert method.measured_baselines() == {}

    for _ in range(2):
        loss_of(method, images)

    if method.rules.normalise == "block":
        voxels = 8**method.backbone.spatial_dims
        assert method.baselines() == {"block_mean": (voxels - 1) / voxels}
        assert method.measured_baselines() == {}
    else:
        # Noise, a little smoother by interpolation: nothing is better than the mean.
        found = method.measured_baselines()
        assert 0.4 < found["visible_mean"] < 1.2
        assert found["surroundings"] >= 0.98 * found["visible_mean"]
        assert method.baselines() == {}
    assert int(method.measured.count) in (0, 2)


def test_a_guess_of_nothing_costs_the_baseline() -> None:
    method = method_of("tokens 2D", flat_below=0)
    for part in (method.guesser.guess.weight, method.guesser.guess.bias):  # type: ignore[union-attr]
        nn.init.zeros_(part)

    assert loss_of(method, images_for(method)).item() == pytest.approx(63 / 64, rel=1e-4)


def test_several_channels_are_guessed() -> None:
    method = build("mae", "unet", 2, channels=3, block=8)

    assert math.isfinite(loss_of(method, images_for(method, channels=3)).item())


def test_a_decoder_that_says_always_the_same_is_told() -> None:
    method = method_of("masked 2D")

    assert method.health([{"step": 30, "output_spread": 0.05}]) != []
    assert method.health([{"step": 10, "output_spread": 0.05}]) == []
    assert method.health([{"step": 30, "output_spread": 0.5}]) == []
    assert method.health([]) == []


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ("unet", {"variant": "tokens"}, "needs a backbone of tokens"),
        ("vit", {"variant": "tokens", "block": 16}, "leave method.block out"),
        ("vit", {"variant": "sparse"}, "LayerNorm"),
        ("unet", {"block": 5}, "no multiple of 5"),
        ("unet", {"block": 32}, "hides 1 of 1"),
        ("unet", {"block": 16, "ratio": 0.05}, "hides 0 of 4"),
        ("vit", {"token_decoder": {"width": 25}}, "heads cannot share"),
        ("unet", {"variant": "sparse", "decoder": {"widths": [4]}}, "decoder.widths"),
    ],
)
def test_options_that_do_not_go_together_are_refused(network: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match="E_RECIPE") as refused:
        build("mae", network, 2, **options)

    assert words in str(refused.value)


def test_what_is_computed_again_cannot_be_sparse() -> None:
    network = Named(name="plainconv", spatial_dims=2, **NETWORKS["plainconv"], use_checkpoint=True)

    with pytest.raises(UsageError, match="use_checkpoint"):
        make_sparse(build_backbone(network))
