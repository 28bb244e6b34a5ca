"""What every file in nn/backbones must keep, whoever wrote it; a new backbone needs only a line in OPTIONS.

Some are built for thick slices too: what such a line is called begins with the name of its backbone.
"""

import copy
import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medssl_cli.base import plugins
from medssl_cli.base.errors import UsageError
from medssl_cli.engine.build import build_task, check_recipe
from medssl_cli.engine.weights.matching import skeleton
from medssl_cli.nn import backbones
from medssl_cli.nn.axes import misfit
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_backbone
from medssl_cli.nn.decoder import UNetDecoder
from medssl_cli.recipe import Named, TaskRecipe, find_recipe, load_recipe

TOY_BACKBONES = Path(__file__).parent / "toy_backbones"
NAMES = sorted(module.name for module in pkgutil.iter_modules([*backbones.__path__, str(TOY_BACKBONES)]))
STRIDES = (1, 2, 2)
THICK = {"strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)), "kernel_sizes": ((3, 3, 1), (3, 3, 3), (3, 3, 3))}
OPTIONS: dict[str, dict[str, Any]] = {
    "averages": {},
    "plainconv": {"channels": (4, 8, 8), "strides": STRIDES, "num_convs": (1, 2, 2)},
    "plainconv, thick slices": {"channels": (4, 8, 8), **THICK, "num_convs": (1, 2, 2)},
    "resnet": {"depth": 18, "width": 8, "norm": "group"},
    "resenc": {"channels": (4, 8, 8), "strides": STRIDES, "num_blocks": (1, 2, 1)},
    "resenc, thick slices": {"channels": (4, 8, 8), **THICK, "num_blocks": (1, 2, 1)},
    "swinunetr": {"feature_size": 12},
    "unet": {"channels": (4, 8, 8), "strides": STRIDES, "num_res_units": 1},
    "unet, thick slices": {"channels": (4, 8, 8), **THICK, "num_res_units": 1},
    "vit": {"patch_size": 8, "embedding_dim": 192, "depth": 3, "num_heads": 2, "mlp_ratio": 0.5},
    "vit, thick slices": {"patch_size": (8, 8, 2), "embedding_dim": 96, "depth": 3, "num_heads": 2, "mlp_ratio": 1},
}


@pytest.fixture(autouse=True)
def toy_backbones_lie_beside_the_real_ones(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(backbones, "__path__", [*backbones.__path__, str(TOY_BACKBONES)])
    yield
    sys.modules.pop(f"{backbones.__name__}.averages", None)


every_backbone = pytest.mark.parametrize("name", OPTIONS)


def tiny(name: str, in_channels: int = 1) -> Backbone:
    torch.manual_seed(0)
    module = importlib.import_module(f"{backbones.__name__}.{name.partition(',')[0]}")
    return module.build(in_channels, 3, **OPTIONS[name])


def images(backbone: Backbone, batch_size: int = 1, in_channels: int = 1, seed: int = 1) -> Tensor:
    # Two cells at the coarsest level: a norm over a single cell would have nothing to normalise.
    x, y, z = (max(multiple, 16) for multiple in backbone.crop_multiple)
    assert misfit((x, y, z), backbone.crop_multiple) is None
    return torch.randn(batch_size, in_channels, 2 * x, y, z, generator=torch.Generator().manual_seed(seed))


def cells(size: Sequence[int], backbone: Backbone) -> list[tuple[int, ...]]:
    """Sizes of all feature maps of an image."""
    return [tuple(extent // step for extent, step in zip(size, stride, strict=True)) for stride in backbone.strides]


def test_backbones_are_found_and_each_has_options() -> None:
    assert {"averages", "unet"} <= set(NAMES) == set(plugins.names("backbone"))
    assert set(NAMES) <= set(OPTIONS)


def test_a_file_in_the_folder_is_a_backbone_that_recipes_can_name() -> None:
    overrides = ["backbone={name: averages, width: 4}", "data.crop_size=[8, 8, 6]"]
    recipe = load_recipe(find_recipe("hippocampus-seg"), overrides)
    assert isinstance(recipe, TaskRecipe)

    logits = build_task(recipe)(torch.rand(1, 1, 8, 8, 6))

    assert logits.shape == (1, 3, 8, 8, 6)
    with pytest.raises(UsageError, match="6 along y is no multiple of 4"):
        check_recipe(load_recipe(find_recipe("hippocampus-seg"), [*overrides, "data.crop_size=[8, 6, 6]"]))


def test_the_guide_shows_the_toy_as_it_is() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "add-a-backbone.md").read_text(encoding="utf-8")

    assert (TOY_BACKBONES / "averages.py").read_text(encoding="utf-8") in guide


def test_strides_are_told_along_each_axis() -> None:
    assert tiny("unet").strides == ((1, 1, 1), (2, 2, 2), (4, 4, 4))
    assert tiny("unet, thick slices").strides == ((1, 1, 1), (2, 2, 1), (4, 4, 2))
    assert tiny("unet, thick slices").crop_multiple == (4, 4, 2)


@every_backbone
@pytest.mark.parametrize("in_channels", [1, 4])
def test_channels_and_strides_tell_the_truth(name: str, in_channels: int) -> None:
    backbone = tiny(name, in_channels).eval()
    x = images(backbone, in_channels=in_channels)

    with torch.no_grad():
        maps = backbone(x)

    assert [feature.shape[1] for feature in maps] == list(backbone.channels)
    assert [tuple(feature.shape[2:]) for feature in maps] == cells(x.shape[2:], backbone)


@every_backbone
def test_axes_keep_their_order(name: str) -> None:
    backbone = tiny(name).eval()
    multiple = max(*backbone.crop_multiple, 8)
    x = torch.zeros(1, 1, multiple, 2 * multiple, 3 * multiple)

    with torch.no_grad():
        maps = backbone(x)

    assert [tuple(feature.shape[2:]) for feature in maps] == cells(x.shape[2:], backbone)


@every_backbone
def test_embedding_is_the_spatial_mean_of_the_named_levels(name: str) -> None:
    backbone = tiny(name).eval()
    x = images(backbone)

    with torch.no_grad():
        embedding, maps = backbone.embed(x), backbone(x)

    assert embedding.shape == (1, backbone.embedding_dim)
    expected = torch.cat([maps[level].mean(dim=(2, 3, 4)) for level in backbone.embedding_levels], dim=1)
    torch.testing.assert_close(embedding, expected)


@every_backbone
def test_images_of_a_batch_do_not_see_each_other_in_evaluation(name: str) -> None:
    # Double precision: in float32 the order of summation alone makes a difference of 1e-4 on some processors.
    backbone = tiny(name).double().eval()
    x = images(backbone, batch_size=3).double()

    with torch.no_grad():
        together = backbone.embed(x)
        alone = torch.cat([backbone.embed(image[None]) for image in x])

    assert together.shape == (3, backbone.embedding_dim)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@every_backbone
def test_backward_reaches_every_parameter(name: str) -> None:
    backbone = tiny(name).train()
    generator = torch.Generator().manual_seed(2)

    # Random weights: the plain sum of a normalised map is constant and would have no gradient.
    maps = backbone(images(backbone))
    torch.stack([(m * torch.randn(m.shape, generator=generator)).sum() for m in maps]).sum().backward()

    unreached = [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unreached == []


@every_backbone
def test_every_parameter_has_a_level_or_none_has(name: str) -> None:
    backbone = tiny(name)

    levels = [backbone.level_of(key) for key, _ in backbone.named_parameters()]

    known = {level for level in levels if level is not None}
    assert None not in levels or not known
    assert known == set(range(len(known)))
    assert len(known) > 1 or name.partition(",")[0] not in ("plainconv", "resenc", "resnet", "swinunetr", "unet")


@every_backbone
def test_decoder_returns_to_the_resolution_of_the_input(name: str) -> None:
    backbone = tiny(name).eval()
    x = images(backbone)
    decoder = UNetDecoder(
        backbone.channels, backbone.strides, out_channels=3, widths=(4,) * (len(backbone.channels) - 1)
    )

    with torch.no_grad():
        logits = decoder(backbone(x))

    assert logits.shape == (1, 3, *x.shape[2:])


@every_backbone
def test_same_input_gives_the_same_embedding(name: str) -> None:
    backbone = tiny(name).eval()
    x = images(backbone)

    with torch.no_grad():
        first, second = backbone.embed(x), backbone.embed(x)

    assert torch.equal(first, second)


@every_backbone
def test_weights_survive_a_round_trip_through_the_state_dict(name: str) -> None:
    backbone = tiny(name).eval()
    state = copy.deepcopy(backbone.state_dict())
    other = tiny(name).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    x = images(backbone)

    other.load_state_dict(state, strict=True)

    with torch.no_grad():
        assert torch.equal(other.embed(x), backbone.embed(x))


@every_backbone
def test_to_hide_nothing_is_to_say_nothing(name: str) -> None:
    backbone = tiny(name).eval()
    x = images(backbone, batch_size=2)
    nothing = torch.zeros(2, 2, 1, 1, dtype=torch.bool)

    with torch.no_grad():
        expected = backbone(x)
        for hidden in (None, nothing):
            assert all(torch.equal(a, b) for a, b in zip(backbone(x, hidden=hidden), expected, strict=True))


@every_backbone
def test_hidden_images_give_other_features(name: str) -> None:
    backbone = tiny(name).eval()
    x = images(backbone)

    with torch.no_grad():
        seen, unseen = backbone(x), backbone(x, hidden=torch.ones(1, 1, 1, 1, dtype=torch.bool))

    assert all(not torch.allclose(a, b) for a, b in zip(seen, unseen, strict=True))


@every_backbone
def test_nothing_leaks_from_hidden_blocks(name: str) -> None:
    """Whatever lies there, also what is no number; and what lies beside them matters."""
    backbone = tiny(name).eval()
    x = images(backbone, batch_size=2)
    hidden = torch.rand(2, 4, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    block = [extent // count for extent, count in zip(x.shape[2:], hidden.shape[1:], strict=True)]
    is_hidden = torch.kron(hidden, torch.ones(1, *block, dtype=torch.bool))[:, None]
    other = images(backbone, batch_size=2, seed=2).masked_fill(torch.rand_like(x) < 0.1, torch.nan)

    with torch.no_grad():
        expected = backbone(x, hidden=hidden)
        under = backbone(torch.where(is_hidden, other, x), hidden=hidden)
        beside = backbone(torch.where(is_hidden, x, x + 1 + x.square()), hidden=hidden)

    assert 0 < is_hidden.float().mean() < 1
    assert all(torch.equal(a, b) for a, b in zip(expected, under, strict=True))
    assert all(not torch.allclose(a, b) for a, b in zip(expected, beside, strict=True))


@pytest.mark.parametrize(
    "hidden",
    [
        torch.zeros(1, 4, 4, 4),
        torch.zeros(2, 4, 4, 4, dtype=torch.bool),
        torch.zeros(1, 4, 4, dtype=torch.bool),
        torch.zeros(1, 5, 4, 4, dtype=torch.bool),
    ],
    ids=["numbers", "another batch", "2D", "no blocks"],
)
def test_a_mask_that_does_not_fit_is_refused(hidden: Tensor) -> None:
    with pytest.raises(ValueError, match="hidden is"):
        tiny("unet")(torch.zeros(1, 1, 8, 8, 8), hidden=hidden)


@pytest.mark.parametrize("strides", [((1, 1, 1), (1, 1, 1)), ((1, 2, 1), (2, 1, 1)), ((1, 1), (2, 2))], ids=str)
def test_strides_that_do_not_rise_are_refused(strides: tuple[tuple[int, ...], ...]) -> None:
    class Odd(Backbone):
        def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
            return [images]

    with pytest.raises(ValueError, match=r"strides|axes"):
        Odd(channels=(1, 1), strides=strides, embedding_levels=(1,))


def test_a_wide_transformer_is_built() -> None:
    """Kernels of 7 are no reason to count its weights first, which cannot be done for this one."""
    wide = Named(name="swinunetr", feature_size=324, depths=[1, 1, 1, 1])

    assert skeleton(wide, in_channels=1).embedding_dim == 24 * 324


def test_large_kernels_count_in_what_a_recipe_may_ask_for() -> None:
    wide = Named(name="unet", channels=[2048] * 3, strides=[1, 2, 2], kernel_sizes=7, num_res_units=2)

    with pytest.raises(UsageError, match=r"E_RECIPE: backbone unet: more than 9e\+09 parameters"):
        build_backbone(wide)
