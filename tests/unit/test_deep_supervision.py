"""Losses of coarser levels of the decoder: weights, targets and gradients; and nothing of them outside training."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from medssl_cli.base.classes import IGNORE
from medssl_cli.engine.build import build_task
from medssl_cli.nn.backbones import plainconv, unet
from medssl_cli.nn.deep_supervision import DeepScores, level_weights, thinned
from medssl_cli.nn.voxel_losses import dice_loss
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks.segmentation.network import SegmentationNetwork, SegmentationOptions
from tests.e2e.test_training import task_recipe
from tests.traced import graph_of, segmenting

TILE = (16, 16, 16)
SIZES: dict[str, Any] = {"channels": (4, 5, 6, 8), "strides": (1, 2, 2, 2)}


def network(*, spatial_dims: int = 3, is_deep: bool = True, **options: Any) -> SegmentationNetwork:
    torch.manual_seed(0)
    backbone = unet.build(1, spatial_dims, **SIZES)
    wanted = {"classes": ["ball", "cube"], "deep_supervision": is_deep, **options}
    return SegmentationNetwork(backbone, SegmentationOptions.model_validate(wanted))


def images() -> Tensor:
    return torch.rand(2, 1, *TILE, generator=torch.Generator().manual_seed(0))


def labels(num_classes: int = 3) -> Tensor:
    return torch.randint(0, num_classes, (2, *TILE), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("number", [1, 2, 5])
def test_each_level_counts_half_as_much_and_all_count_one(number: int) -> None:
    weights = level_weights(number)

    assert math.fsum(weights) == pytest.approx(1)
    assert [fine / coarse for fine, coarse in pairwise(weights)] == [2.0] * (number - 1)


def test_training_scores_all_levels_but_the_coarsest_of_the_decoder() -> None:
    """Of feature maps with strides 1, 2, 4, 8 the decoder has 1, 2, 4; of these 4 has no loss."""
    deep = network()

    found = deep.train()(images())

    assert [tuple(level.shape) for level in found] == [(2, 3, 16, 16, 16), (2, 3, 8, 8, 8)]
    assert deep.eval()(images()).shape == (2, 3, 16, 16, 16)


def test_slices_have_levels_too() -> None:
    found = network(spatial_dims=2).train()(images())

    assert [tuple(level.shape) for level in found] == [(2, 3, 16, 16, 16), (2, 3, 8, 8, 16)]


def test_the_finest_answer_is_that_of_a_network_without() -> None:
    deep, plain = network(), network(is_deep=False)
    plain.load_state_dict({name: deep.state_dict()[name] for name in plain.state_dict()})

    assert torch.equal(deep.train()(images())[0], plain.train()(images()))
    assert torch.equal(deep.eval()(images()), plain.eval()(images()))


def test_networks_without_have_the_weights_that_they_had() -> None:
    """What deep supervision adds is drawn last, and is absent by default."""
    deep, plain = network().state_dict(), network(is_deep=False).state_dict()

    assert all(torch.equal(deep[name], tensor) for name, tensor in plain.items())
    assert {name.partition(".")[0] for name in set(deep) - set(plain)} == {"deep_scores"}


def test_targets_of_a_coarser_level_are_voxels_at_the_centres_of_its_cells() -> None:
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (6, 4, 3)), indexing="ij"))  # [3, 6, 4, 3]

    found = thinned(places[None], torch.zeros(1, 1, 2, 2, 3))  # cells of 3 x 2 x 1 voxels

    assert found[0, 0, :, 0, 0].tolist() == [1, 4]
    assert found[0, 1, 0, :, 0].tolist() == [1, 3]
    assert found[0, 2, 0, 0, :].tolist() == [0, 1, 2]
    assert torch.equal(thinned(places[0][None], torch.zeros(1, 1, 2, 2, 3)), found[:, 0])


@pytest.mark.parametrize("options", [{}, {"classes": {"whole": [1, 2], "core": [2]}}], ids=["classes", "regions"])
def test_the_loss_is_the_weighted_sum_of_its_levels(options: dict[str, Any]) -> None:
    deep = network(**options).train()
    target = labels()
    target[:, :4] = IGNORE
    if options:
        target = torch.stack([target.clamp(max=1), (target == 2).long()], dim=1).to(torch.uint8)
    logits = deep(images())

    losses = deep.loss(logits, target)

    fine, coarse = deep.loss(logits[0], target), deep.loss(logits[1], target[..., 1::2, 1::2, 1::2])
    assert losses.total.item() == pytest.approx((2 * fine.total.item() + coarse.total.item()) / 3, rel=1e-6)
    assert losses.parts == fine.parts


def test_the_loss_reaches_every_weight() -> None:
    deep = network().train()

    deep.loss(deep(images()), labels()).total.backward()

    assert [name for name, tensor in deep.named_parameters() if tensor.grad is None] == []
    assert all(level.weight.grad.abs().sum() > 0 for level in deep.deep_scores.levels)  # type: ignore[union-attr]


def test_a_shallow_network_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 feature maps, this one has 3"):
        DeepScores((4, 6), 3, spatial_dims=3)


def test_the_exported_network_is_that_of_one_without() -> None:
    torch.manual_seed(0)
    task = segmenting(plainconv.build(1, **SIZES, num_convs=(1, 1, 1, 1)), deep_supervision=True)

    model = onnx.load_from_string(graph_of(task, TILE))

    shapes = [tuple(tensor.dims) for tensor in model.graph.initializer]
    assert len(model.graph.output) == 1
    assert (2, 4, 1, 1, 1) in shapes  # scores of the finest level
    assert (2, 5, 1, 1, 1) not in shapes  # of the next


def test_it_is_an_option_of_a_recipe() -> None:
    recipe = task_recipe(1)
    deep = {**recipe.task.model_dump(), "deep_supervision": True}
    document = recipe.model_copy(update={"task": type(recipe.task)(**deep)}).model_dump(by_alias=True)
    document["backbone"] = {"name": "unet", "channels": [4, 4, 4, 4], "strides": [1, 2, 2, 2]}

    assert build_task(TaskRecipe.model_validate(document)).get_submodule("deep_scores") is not None


def test_dice_of_samples_is_their_mean() -> None:
    """The first is right, 1; the second shows nothing where there are 2 voxels, 0; pooled it is 2 * 4 / (4 + 6)."""
    target = torch.zeros(2, 1, 6, 1, 1)
    target[0, 0, :4] = 1
    target[1, 0, :2] = 1
    found = target.clone()
    found[1] = 0

    assert dice_loss(found, target, rule="sample").item() == pytest.approx(1 - (1 + 0) / 2, abs=1e-5)
    assert dice_loss(found, target).item() == pytest.approx(1 - 8 / 10, abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"classes": {"whole": [1, 2], "core": [2]}}], ids=["classes", "regions"])
def test_one_sample_has_one_dice_by_either_rule(options: dict[str, Any]) -> None:
    target = labels()
    if options:
        target = torch.stack([(target > 0), (target == 2)], dim=1).to(torch.uint8)
    logits = torch.randn(2, 2 if options else 3, *TILE, generator=torch.Generator().manual_seed(2))
    by_batch, by_sample = (network(is_deep=False, dice=rule, **options) for rule in ("batch", "sample"))

    for one in (slice(0, 1), slice(1, 2)):
        torch.testing.assert_close(
            by_sample.loss(logits[one], target[one]).total, by_batch.loss(logits[one], target[one]).total
        )
    each = [by_batch.loss(logits[one : one + 1], target[one : one + 1]).parts["dice"].item() for one in (0, 1)]
    assert by_sample.loss(logits, target).parts["dice"].item() == pytest.approx(float(np.mean(each)), rel=1e-6)


def test_dice_of_samples_is_monais() -> None:
    """What VoCo's fine-tuning minimises: `DiceCELoss` without background, by its definitions and constants."""
    target = labels()
    logits = torch.randn(2, 3, *TILE, generator=torch.Generator().manual_seed(2))
    theirs = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5)

    ours = network(is_deep=False, dice="sample").loss(logits, target).total

    torch.testing.assert_close(ours, theirs(logits, target[:, None]), rtol=1e-5, atol=1e-6)
