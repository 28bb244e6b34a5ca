"""Segmentation with a network of 2D images: every slice by itself, or with knowledge of the slices around it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from medssl_cli.nn.backbones import Backbone, resnet, unet
from medssl_cli.nn.slices.relation import Relation, SliceRelation
from medssl_cli.tasks.segmentation.network import SegmentationNetwork as Task
from medssl_cli.tasks.segmentation.network import SegmentationOptions as Options

CLASSES = {1: "ball", 2: "cube"}
RELATION = {"embedding_dim": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0, "slice_spacing_mm": 5.0}


def tiny_unet() -> Backbone:
    return unet.build(1, 2, channels=(4, 6), strides=(2, 2), num_res_units=0)


def tiny_resnet() -> Backbone:
    return resnet.build(1, 2, depth=18, width=4)


def task(backbone: Backbone | None = None, **changes: Any) -> Task:
    torch.manual_seed(0)
    return Task(backbone or tiny_unet(), Options.model_validate({"classes": CLASSES, **changes})).eval()


def stack(depth: int = 5, batch: int = 2, size: tuple[int, int] = (16, 8)) -> Tensor:
    return torch.randn(batch, 1, *size, depth, generator=torch.Generator().manual_seed(1))


def make_known(model: Task) -> None:
    """Let the relation say something, as after some training."""
    assert model.relation is not None
    with torch.no_grad():
        model.relation.modulation.weight.normal_(generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_a_stack_of_slices_is_segmented_as_its_slices_are() -> None:
    model, images = task(), stack()

    together = model(images)

    assert together.shape == (2, 3, 16, 8, 5)
    for place in range(5):
        torch.testing.assert_close(together[..., place : place + 1], model(images[..., place : place + 1]))


@torch.no_grad()
def test_another_order_of_slices_gives_the_same_masks_in_that_order() -> None:
    model, images = task(), stack()
    order = torch.tensor([3, 0, 4, 2, 1])

    torch.testing.assert_close(model(images[..., order]), model(images)[..., order])


@torch.no_grad()
def test_a_resnets_masks_lie_on_the_grid_of_the_image() -> None:
    model = task(tiny_resnet())

    assert model(stack(3, size=(64, 32))).shape == (2, 3, 64, 32, 3)


@torch.no_grad()
def test_a_new_relation_changes_nothing() -> None:
    without, related = task(), task(relation=RELATION)
    related.load_state_dict(without.state_dict(), strict=False)

    assert torch.equal(related(stack()), without(stack()))


@torch.no_grad()
def test_with_a_relation_a_slice_depends_on_its_neighbours_and_not_on_other_volumes() -> None:
    model, images = task(relation=RELATION), stack()
    make_known(model)
    changed = images.clone()
    changed[0, ..., 1] = 2 - changed[0, ..., 1]

    moved = (model(changed) - model(images)).abs().amax(dim=(1, 2, 3))

    # One layer of four points per head looks four slices up or down: all of five slices from the second.
    assert (moved[0] > 1e-4).all()
    assert torch.equal(moved[1], torch.zeros(5))


@torch.no_grad()
@pytest.mark.parametrize(("has_positions", "differs"), [(True, True), (False, False)])
def test_positions_are_millimetres_of_the_given_spacing(has_positions: bool, differs: bool) -> None:
    near, far = (
        task(relation={**RELATION, "slice_spacing_mm": spacing, "has_positions": has_positions})
        for spacing in (2.0, 9.0)
    )
    for model in (near, far):
        assert model.relation is not None
        make_known(model)
        encoder = model.relation.volume_encoder.encoder
        assert encoder is not None
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))

    assert torch.allclose(near(stack()), far(stack()), atol=1e-5) is not differs


@torch.no_grad()
def test_without_attention_between_slices_the_relation_leaves_each_by_itself() -> None:
    model, images = task(relation={**RELATION, "relation": "none"}), stack()
    make_known(model)

    torch.testing.assert_close(model(images[..., 2:3]), model(images)[..., 2:3])


def test_after_one_step_the_gradient_reaches_every_parameter() -> None:
    model = task(relation=RELATION).train()
    images = stack()
    labels = (images[:, 0] > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model.loss(model(images), labels).total.backward()
        optimizer.step()

    unreached = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unreached == []


def test_scale_and_shift_are_per_slice_and_channel() -> None:
    relation = SliceRelation((3, 4), Relation.model_validate(RELATION))
    with torch.no_grad():
        relation.modulation.bias.copy_(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 5.0]))
    maps = [torch.randn(6, 3, 4, 4), torch.randn(6, 4, 2, 2)]

    fine, coarse = relation(maps, 3)

    assert fine is maps[0]
    torch.testing.assert_close(coarse[:, 0], 2 * maps[1][:, 0])
    torch.testing.assert_close(coarse[:, 1:3], maps[1][:, 1:3])
    torch.testing.assert_close(coarse[:, 3], maps[1][:, 3] + 5)


def test_what_it_shares_with_joint_pretraining_is_all_but_the_modulation() -> None:
    model = task(relation={**RELATION, "pooling": "attention"})
    shared = {f"relation.volume_encoder.{key}" for key in model.kept()["slices"].state_dict()}
    own = {key for key in model.state_dict() if key.startswith("relation.")}

    assert own - shared == {"relation.modulation.weight", "relation.modulation.bias"}
    assert task().kept() == {}


def test_a_relation_is_refused_for_a_network_of_volumes() -> None:
    with pytest.raises(ValueError, match="spatial_dims to 2"):
        task(unet.build(1, 3, channels=(4, 6), strides=(2, 2)), relation=RELATION)
