"""The vision transformer beyond what every backbone must keep: positions, tokens that are left out, and export."""

import pytest
import torch
from torch import nn

from medssl_cli.base.errors import UsageError
from medssl_cli.engine.optimisation import build_optimizer
from medssl_cli.nn.backbones import vit
from medssl_cli.nn.backbones.vit import ViT
from medssl_cli.nn.build import build_backbone
from medssl_cli.nn.tokens import positions
from medssl_cli.recipe import Named, Optimizer
from tests.masked import NETWORKS
from tests.traced import require_the_same_logits, segmenting


def small(dims: int = 2) -> ViT:
    torch.manual_seed(0)
    built = build_backbone(Named(name="vit", spatial_dims=dims, **NETWORKS["vit"]))
    assert isinstance(built, ViT)
    return built.eval()


def test_vector_9_positions_of_mae() -> None:
    expected = [0.84147098, 0.00999983, 0.54030231, 0.99995000, 0, 0, 1, 1]  # row 0, column 1

    assert positions((2, 2), 8, dtype=torch.float64)[1].tolist() == pytest.approx(expected, abs=1e-8)


def test_positions_in_3d_tell_x_then_y_then_z() -> None:
    found = positions((2, 3, 4), 12).view(2, 3, 4, 3, 4)

    assert torch.equal(found[:, 0, 0, 0], found[:, 2, 3, 0])
    assert torch.equal(found[0, :, 0, 1], found[1, :, 3, 1])
    assert torch.equal(found[0, 0, :, 2], found[1, 2, :, 2])
    assert not torch.equal(found[0, 0, 0], found[1, 1, 1])


@pytest.mark.parametrize("dims", [2, 3])
def test_tokens_that_are_left_out_are_tokens_that_nobody_looks_at(dims: int) -> None:
    network = small(dims).double()
    images = torch.randn(2, 1, *[16] * dims, dtype=torch.float64)
    hidden = torch.zeros(2, *[2] * dims, dtype=torch.bool)
    hidden[0].view(-1)[0] = hidden[1].view(-1)[2] = True
    places = (~hidden).flatten(1).nonzero()[:, 1].view(2, -1)

    alone = network.visible_tokens(images, places)
    together = network(images, hidden)[-1].flatten(2).transpose(1, 2)

    torch.testing.assert_close(alone[:, 1:], together.gather(1, places[..., None].expand_as(alone[:, 1:])))


def test_tokens_without_their_places_give_the_same_maps() -> None:
    network, images = small(), torch.randn(2, 1, 16, 24)

    found = network.maps_of(network.patch_tokens(images), (2, 3))

    assert all(torch.equal(a, b) for a, b in zip(found, network(images), strict=True))


def test_a_patch_of_which_a_part_is_hidden_shows_the_rest() -> None:
    network, images = small(), torch.randn(1, 1, 16, 16)
    hidden = torch.zeros(1, 4, 4, dtype=torch.bool)
    hidden[0, 0, 0] = True  # a quarter of the first patch

    with torch.no_grad():
        found = network(images, hidden)[-1]
        expected = network(_without_corner(images))[-1]

    assert torch.equal(found, expected)


def _without_corner(images: torch.Tensor) -> torch.Tensor:
    other = images.clone()
    other[..., :4, :4] = 0
    return other


def test_the_numbers_of_a_token_are_the_cells_of_a_finer_map() -> None:
    network = small()

    maps = network(torch.randn(1, 1, 16, 16))

    assert [tuple(each.shape[1:]) for each in maps] == [(6, 4, 4), (24, 2, 2)]
    assert network.strides == ((4, 4), (8, 8))


def test_published_names_and_shapes() -> None:
    shapes = {name: list(each.shape) for name, each in small().state_dict().items()}

    assert shapes["cls_token"] == [1, 1, 24]
    assert shapes["patch_embed.proj.weight"] == [24, 1, 8, 8]
    assert shapes["blocks.1.attn.qkv.weight"] == [72, 24]
    assert shapes["blocks.0.mlp.fc1.bias"] == [96]
    assert shapes["norm.weight"] == [24]


def test_the_class_token_does_not_decay() -> None:
    holder = nn.ModuleDict({"backbone": small()})

    decayed, spared = build_optimizer(holder, Optimizer(learning_rate=0.1)).param_groups

    assert any(each is holder["backbone"].cls_token for each in spared["params"])
    assert all(each.ndim > 1 for each in decayed["params"])


@pytest.mark.parametrize(
    "options",
    [
        {"embedding_dim": 25},
        {"num_heads": 5},
        {"depth": 1},
        {"finer_maps": -1},
        {"patch_size": [8, 8, 8]},
        {"embedding_dim": 20, "finer_maps": 1, "num_heads": 2, "spatial_dims": 3},
    ],
)
def test_sizes_that_do_not_go_together_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="E_RECIPE"):
        build_backbone(Named(name="vit", **{"spatial_dims": 2, **NETWORKS["vit"], **options}))


def test_crops_that_are_no_whole_patches_are_refused() -> None:
    with pytest.raises(UsageError, match="E_CANVAS"):
        small()(torch.zeros(1, 1, 16, 20))


@pytest.mark.parametrize(("dims", "tile"), [(2, (16, 24, 1)), (3, (16, 8, 16))])
def test_onnx_gives_torchs_logits(dims: int, tile: tuple[int, int, int]) -> None:
    require_the_same_logits(segmenting(vit.build(1, dims, **NETWORKS["vit"])), tile)
