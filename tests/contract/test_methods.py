"""What every file in methods/ must keep, whoever wrote it. New methods are found here without being listed.

The folder toy_methods/ holds the method of docs/guides/add-a-method.md, put beside the real ones by extending the path
of the package: a method is its file, and nothing else has to know it.
"""

import copy
import math
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medssl_cli import methods
from medssl_cli.base import plugins
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.views import make_views
from medssl_cli.methods import Labelled, Losses, MethodBase, SliceRequest, Slices, TrainingSet, Views
from medssl_cli.nn.axes import misfit
from medssl_cli.nn.backbones import Backbone, hide
from tests.placed_windows import windows_of

TOY_METHODS = Path(__file__).parent / "toy_methods"
TOY_NAMES = [module.name for module in pkgutil.iter_modules([str(TOY_METHODS)])]
NAMES = [*plugins.names("method"), *TOY_NAMES]
OMNI = {"classes": {1: "bright", 2: "brighter"}, "batch_size": 3}
VARIANTS = {
    "voco with labels": {"omni": {**OMNI, "pseudo_weight": 0}},
    "voco with pseudo-labels": {"omni": {**OMNI, "pseudo_from": 0.0}},
    "voco semi-supervised": {"omni": {**OMNI, "pseudo_from": 0.0, "self_weight": 0, "pseudo_trains_encoder": True}},
    "voco supervised": {"omni": {**OMNI, "self_weight": 0, "pseudo_weight": 0}},
}
SLICE_NETWORK = {"embedding_dim": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
JOINT = {
    "swapped": {
        "images": {"num_prototypes": 4, "freeze_steps": 0},
        "volumes": {"num_prototypes": 4, "freeze_steps": 0},
    },
    "clusters": {"images": {"num_prototypes": [2]}, "volumes": {"num_prototypes": [2, 2]}},
    "relation": SLICE_NETWORK,
}
VARIANTS |= {
    "joint dense": {**JOINT, "dense": {"num_points": 8}, "views": {"flip_prob": 0}},
    "joint clusters": {**JOINT, "variant": "deepcluster"},
    "joint volumes": {**JOINT, "stage": "volumes"},
    "joint volumes clusters": {**JOINT, "stage": "volumes", "variant": "deepcluster"},
    "joint chunks": {**JOINT, "stage": "volumes", "stacks": {"chunk_size": 3}},
    "joint volumes alone": {**JOINT, "relation": {**SLICE_NETWORK, "relation": "none", "pooling": "attention"}},
}
# Of methods of both dimensions these see slices, the others volumes.
NARROW = {"hidden_dim": 32, "projection_dim": 16}
STILL = {**NARROW, "num_outputs": 16, "freeze_last": 0.0, "momentum": 0.9999, "centre_momentum": 0.9999}
FLAT: dict[str, dict[str, object]] = {
    "position slices": {},
    "voco slices": {"num_random_crops": 4},
    "simclr slices": NARROW,
    "byol slices": NARROW,
    "moco slices": NARROW,
    "dino slices": STILL,
    "local slices": {},
    "local vox2vec": {"variant": "vox2vec", "num_points": 20},
    "mae slices": {},
    "mae sparse slices": {"variant": "sparse"},
    "simmim slices": {"block": 4},
    "swin_pretext slices": {"projection_dim": 8},
}
VARIANTS |= FLAT | {
    "voco dense": {"dense": {}},
    "voco dense overlap": {"dense": {"target": "overlap"}, "objective": "fixed"},
    "mae sparse": {"variant": "sparse"},
}
# As few prototypes as there are images here; by default there are thousands.
FEW = {
    "swav": {"num_prototypes": 4, "freeze_steps": 0},
    "deepclusterv2": {"num_prototypes": [2, 2]},
    "joint": JOINT,
    "simclr": NARROW,
    "byol": NARROW,
    "moco": NARROW,
    "dino": STILL,
    "simmim": {"block": 4},
    "swin_pretext": {"projection_dim": 8},
}
each_method = pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
BATCH = 2


class TinyBackbone(Backbone):
    """Two convolutions; every parameter matters to the embedding."""

    def __init__(self, spatial_dims: int = 3) -> None:
        super().__init__(channels=(6, 8), strides=(1, 2), embedding_levels=(0, 1), spatial_dims=spatial_dims)
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.fine = conv(1, 6, 3, padding=1)
        self.coarse = conv(6, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        fine = self.fine(hide(x, hidden)).relu()
        return [fine, self.coarse(fine).tanh()]


@pytest.fixture(autouse=True)
def toy_methods_lie_beside_the_real_ones(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(TOY_METHODS)])
    yield
    for name in TOY_NAMES:
        sys.modules.pop(f"{methods.__name__}.{name}", None)


def build(name: str, seed: int = 0) -> MethodBase:
    module = plugins.load("method", name.split()[0])
    torch.manual_seed(seed)
    spatial_dims = 2 if name in FLAT else max(module.Method.dims)
    crop_size = (8, 8, 8) if spatial_dims == 3 else (16, 16, 1)
    options = module.Options(**VARIANTS.get(name, FEW.get(name, {})))
    method: MethodBase = module.Method(TinyBackbone(spatial_dims), options, crop_size).train()
    method.begin(TrainingSet(torch.arange(BATCH) % 2, torch.arange(BATCH) % 2, num_steps=100))
    with torch.no_grad():
        method.before_epoch(0, partial(everything, method), torch.Generator().manual_seed(seed))
    return method


def everything(method: MethodBase, request: SliceRequest) -> Iterator[Views]:
    """A pass over a training set of two images, and of two volumes where volumes are asked for."""
    for are_volumes in [False, True][: 1 + (request.stacks is not None)]:
        yield views_of(method, images_for(method, are_volumes=are_volumes), seed=7, request=request)


def shows_volumes(method: MethodBase) -> bool:
    """Whether its first step shows volumes."""
    request = method.views().slices
    return request is not None and request.stacks is not None and request.stacks.every == 1


def views_of(method: MethodBase, images: Tensor, seed: int = 0, request: SliceRequest | None = None) -> Views:
    """A step with these images."""
    declared = method.views() if request is None else replace(method.views(), slices=request)
    known = None
    if declared.slices is not None:
        positions = 3.0 * torch.arange(images.shape[1]).repeat(len(images), 1)
        is_present = torch.ones(images.shape[:2], dtype=torch.bool)
        known = Slices(
            torch.arange(len(images)),
            is_present,
            positions,
            are_volumes=images.shape[1] > 1,
            levels=torch.linspace(-1, 1, len(images)),
        )
    random = torch.Generator().manual_seed(seed)
    windows = None if declared.placed is None else windows_of(declared.placed, len(images))
    return make_views(declared, images, Draws(random), labelled=labelled_for(method), slices=known, windows=windows)


def images_for(method: MethodBase, *, are_volumes: bool | None = None) -> Tensor:
    """Smooth random images in 0...1, of exactly the number and size that the method asks for."""
    request = method.views()
    if request.slices is not None:
        edge = request.slices.canvas
        slices = 5 if (shows_volumes(method) if are_volumes is None else are_volumes) else 1
        noise = torch.rand(BATCH, slices, 1, edge, edge, generator=torch.Generator().manual_seed(1))
        return (noise + torch.linspace(0, 1, edge)[:, None]) / 2
    size = request.size if request.placed is None else request.placed.window
    noise = torch.rand(BATCH, 1, *size, generator=torch.Generator().manual_seed(1))
    ramp = torch.linspace(0, 1, size[0])[:, None, None]
    return (noise + ramp) / 2


def labelled_for(method: MethodBase) -> Labelled | None:
    """Smooth random crops whose classes are their brightness, if the method asks for some."""
    request = method.views().labelled
    if request is None:
        return None
    images = torch.rand(request.batch_size, 1, *request.size, generator=torch.Generator().manual_seed(2))
    images = images + torch.linspace(0, 1, request.size[0])[:, None, None]
    return Labelled(images, (images[:, 0] * 1.5).long().clamp_max(len(request.wanted.names)))


def loss_of(method: MethodBase, images: Tensor, seed: int = 0) -> Losses:
    return method.loss(views_of(method, images, seed), progress=0.0)


def test_the_toy_method_is_found_without_being_listed() -> None:
    assert "denoise" in TOY_NAMES
    assert {"denoise", "voco"} <= set(plugins.names("method"))
    assert isinstance(plugins.load("method", "denoise"), ModuleType)


@each_method
def test_options_have_defaults_and_refuse_unknown_keys(name: str) -> None:
    options = plugins.load("method", name.split()[0]).Options

    assert options() == options.model_validate({})
    with pytest.raises(ValidationError, match="no_such_option"):
        options.model_validate({"no_such_option": 1})


@each_method
def test_dims_are_two_or_three(name: str) -> None:
    dims = plugins.load("method", name.split()[0]).Method.dims

    assert isinstance(dims, frozenset)
    assert dims
    assert dims <= {2, 3}


@each_method
def test_views_are_whole_numbers_of_backbone_cells(name: str) -> None:
    method = build(name)
    request = method.views()

    assert all(extent > 0 for extent in request.size)
    assert misfit(request.size, method.backbone.crop_multiple) is None


@each_method
def test_loss_is_a_finite_scalar_with_detached_parts(name: str) -> None:
    method = build(name)

    losses = loss_of(method, images_for(method))

    assert losses.total.shape == ()
    assert math.isfinite(losses.total.item())
    assert losses.parts
    for value in [*losses.parts.values(), *losses.diagnostics.values()]:
        assert value.shape == ()
        assert math.isfinite(value.item())
        assert not value.requires_grad
    parts = torch.stack(list(losses.parts.values())).sum()
    torch.testing.assert_close(losses.total.detach(), parts)


@each_method
def test_gradient_reaches_every_backbone_parameter(name: str) -> None:
    method = build(name)

    loss_of(method, images_for(method)).total.backward()

    for key, parameter in method.backbone.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@each_method
def test_what_needs_no_gradient_gets_none(name: str) -> None:
    method = build(name)

    loss_of(method, images_for(method)).total.backward()

    assert all(p.requires_grad for p in method.backbone.parameters())
    assert all(p.grad is None for p in method.parameters() if not p.requires_grad)


@each_method
def test_the_generator_is_the_only_source_of_randomness(name: str) -> None:
    method = build(name)
    images = images_for(method)
    torch.manual_seed(10)
    first = loss_of(method, images).total
    state = torch.random.get_rng_state()
    torch.manual_seed(11)

    again = loss_of(method, images).total
    other = loss_of(method, images, seed=1).total

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(10)
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing was drawn from the global generator


@each_method
def test_images_stay_as_they_were(name: str) -> None:
    method = build(name)
    images = images_for(method)
    before = images.clone()

    loss_of(method, images).total.backward()

    assert torch.equal(images, before)


@each_method
def test_state_dict_is_all_there_is_to_save(name: str) -> None:
    method = build(name)
    images = images_for(method)
    train(method, images, steps=2)
    other = build(name, seed=5)
    assert not torch.equal(loss_of(other, images).total, loss_of(method, images).total)

    other.load_state_dict(copy.deepcopy(method.state_dict()), strict=True)

    assert torch.equal(loss_of(other, images).total, loss_of(method, images).total)


@each_method
def test_a_few_steps_on_one_batch_lower_the_loss(name: str) -> None:
    method = build(name)

    losses = train(method, images_for(method), steps=30)

    assert sum(losses[-3:]) / 3 < losses[0]


@each_method
def test_baselines_are_finite_numbers(name: str) -> None:
    method = build(name)
    labelled = labelled_for(method)

    baselines = method.baselines() if labelled is None else method.baselines(labelled.labels[None])

    for key, value in baselines.items():
        assert isinstance(value, float), key
        assert math.isfinite(value), key


def train(method: MethodBase, images: Tensor, steps: int) -> list[float]:
    """Loss before each of a few steps; the same images and random numbers every time."""
    optimizer = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for step in range(steps):
        progress = step / steps
        method.before_step(progress)
        total = loss_of(method, images).total
        optimizer.zero_grad()
        total.backward()
        method.after_backward(progress)
        optimizer.step()
        method.after_step(progress)
        losses.append(total.item())
    return losses
