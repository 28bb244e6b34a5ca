"""One word says how a whole network normalises: its encoder, and the decoder that stands on it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.base.errors import UsageError
from medssl_cli.engine.build import build_task
from medssl_cli.engine.earlier_recipes import with_norm_of_decoder
from medssl_cli.engine.runs import Manifest, open_run, start_run
from medssl_cli.nn.build import build_backbone, build_decoder
from medssl_cli.nn.decoder import Decoder
from medssl_cli.nn.norms import NORMS, Norm, monai_norm, norm_layer
from medssl_cli.recipe import Named, TaskRecipe, find_recipe, load_recipe
from medssl_cli.tasks.segmentation.network import SegmentationNetwork as Task
from medssl_cli.tasks.segmentation.network import SegmentationOptions as Options
from tests.traced import require_the_same_logits

BACKBONES: dict[str, dict[str, Any]] = {
    "plainconv": {"channels": [4, 6], "strides": [1, 2], "num_convs": [1, 1]},
    "resenc": {"channels": [4, 6], "strides": [1, 2], "num_blocks": [1, 1]},
    "resnet": {"depth": 18, "width": 8},
    "unet": {"channels": [4, 6], "strides": [1, 2], "num_res_units": 1},
}
KINDS: dict[str, type[nn.Module] | tuple[type[nn.Module], ...]] = {
    "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
    "instance_affine": (nn.InstanceNorm2d, nn.InstanceNorm3d),
    "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
    "group": nn.GroupNorm,
    "layer": nn.GroupNorm,
}
ANY = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)

every_norm = pytest.mark.parametrize("norm", NORMS)
flat_or_not = pytest.mark.parametrize("spatial_dims", [2, 3])


def network(name: str, norm: str | None, spatial_dims: int = 3, decoder: str | None = None) -> Task:
    """An encoder with a decoder."""
    torch.manual_seed(0)
    options = {**BACKBONES[name], "spatial_dims": spatial_dims} | ({} if norm is None else {"norm": norm})
    options |= {"inflation": "mean"} if name == "resnet" else {}
    backbone = build_backbone(Named(name=name, **options))
    return Task(backbone, Options.model_validate({"classes": {1: "bright"}, "decoder": {"norm": decoder}}))


def norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, ANY)]


def by_hand(x: Tensor, norm: str) -> Tensor:
    """Every value minus the mean of those it is normalised with, over their deviation."""
    axes = {"batch": (0, 2, 3, 4), "layer": (1, 2, 3, 4), "instance": (2, 3, 4), "instance_affine": (2, 3, 4)}
    if norm == "group":  # 12 channels: no 8 groups, but 4 of 3
        return by_hand(x.unflatten(1, (4, 3)).flatten(0, 1), "layer").unflatten(0, (-1, 4)).flatten(1, 2)
    mean, variance = x.mean(axes[norm], keepdim=True), x.var(axes[norm], keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt()


@every_norm
def test_each_subtracts_the_mean_of_what_its_name_says(norm: Norm) -> None:
    x = torch.randn(3, 12, 4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 1

    found = norm_layer(norm, 12, 3).double()(x)

    torch.testing.assert_close(found, by_hand(x, norm))


@every_norm
@flat_or_not
@pytest.mark.parametrize("name", BACKBONES)
def test_the_decoder_has_the_norm_of_its_backbone(name: str, norm: str, spatial_dims: int) -> None:
    task = network(name, norm, spatial_dims)

    for part in (task.backbone, task.decoder):
        assert norms(part)
        assert all(isinstance(each, KINDS[norm]) for each in norms(part))


def test_a_decoder_may_have_another() -> None:
    task = network("unet", "batch", decoder="group")

    assert all(isinstance(each, nn.BatchNorm3d) for each in norms(task.backbone))
    assert all(isinstance(each, nn.GroupNorm) for each in norms(task.decoder))


@pytest.mark.parametrize(("name", "own"), [("plainconv", True), ("resenc", True), ("unet", False)])
def test_who_names_none_has_instance_norms_as_ever(name: str, own: bool) -> None:
    task = network(name, None)

    assert {each.affine for each in norms(task.backbone)} == {own}
    assert {(type(each), each.affine) for each in norms(task.decoder)} == {(nn.InstanceNorm3d, False)}
    assert type(norms(network("resnet", None).backbone)[0]) is nn.BatchNorm3d
    assert {type(each) for each in norms(network("resnet", None).decoder)} == {nn.InstanceNorm3d}


@pytest.mark.parametrize("name", ["plainconv", "resenc", "unet"])
def test_naming_the_default_changes_no_weight(name: str) -> None:
    default = network(name, None).state_dict()
    named = network(name, "instance" if name == "unet" else "instance_affine", decoder="instance").state_dict()

    assert list(default) == list(named)
    assert all(torch.equal(default[key], named[key]) for key in default)


@every_norm
def test_monai_makes_the_same(norm: Norm) -> None:
    """The blocks of MONAI that our U-Net is made of, and layers of our own, by one name."""
    from monai.networks.layers.utils import get_norm_layer

    x = torch.randn(2, 6, 4, 4, 2, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(get_norm_layer(monai_norm(norm, 6), 3, 6)(x), norm_layer(norm, 6, 3)(x))


@pytest.mark.parametrize(("norm", "spatial_dims"), [("instance_affine", 2), ("batch", 3), ("group", 3), ("layer", 2)])
def test_onnx_gives_torchs_logits(norm: str, spatial_dims: int) -> None:
    task = network("unet", norm, spatial_dims)
    tile = (8, 4, 6 if spatial_dims == 3 else 1)
    images = torch.randn(2, 1, *tile, generator=torch.Generator().manual_seed(0))
    task.train()(images)  # running means of batch norms
    require_the_same_logits(task.eval(), tile)


@pytest.mark.parametrize("name", ["plainconv", "resenc", "resnet"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"E_RECIPE: .*norm nrom is not one of instance, instance_affine, batch"):
        network(name, "nrom")


def recipe(*overrides: str) -> TaskRecipe:
    found = load_recipe(find_recipe("hippocampus-seg"), list(overrides))
    assert isinstance(found, TaskRecipe)
    return found


def test_the_decoder_of_an_earlier_recipe_keeps_its_instance_norms() -> None:
    """Runs from before decoders followed: a U-Net of batch norms had a decoder of instance norms."""
    task = build_task(with_norm_of_decoder(recipe("backbone.norm=batch")))

    assert {type(each) for each in norms(task.backbone)} == {nn.BatchNorm3d}
    assert {type(each) for each in norms(task.decoder)} == {nn.InstanceNorm3d}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["backbone.norm=batch", "task.decoder={norm: group}"],
        ["backbone={name: swinunetr, norm: batch}", "task.decoder={name: swinunetr}"],
        ["backbone.norm=batch", "task={name: classification, label_set: x, classes: {a: any}}"],
    ],
    ids=["names no norm", "decoder names one", "decoder of published weights", "no decoder"],
)
def test_other_earlier_recipes_mean_the_same_today(overrides: list[str]) -> None:
    assert with_norm_of_decoder(recipe(*overrides)) == recipe(*overrides)


def test_a_run_from_before_is_opened_as_what_it_was(tmp_path: Path) -> None:
    start_run(tmp_path, "finetune", recipe("backbone.norm=batch"), Manifest({}, {"fold": 0}))
    today = open_run(tmp_path).recipe
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "format_version": 1}))

    before = open_run(tmp_path).recipe

    assert today.task.options["decoder"] == {"activation": "leakyrelu"}
    assert before.task.options["decoder"] == {"activation": "leakyrelu", "norm": "instance"}


def test_a_decoder_of_published_weights_takes_none() -> None:
    with pytest.raises(ValueError, match="give its name alone"):
        Decoder(name="swinunetr", norm="batch")
    assert build_decoder(Decoder(), build_backbone(Named(name="unet")), 2) is not None
