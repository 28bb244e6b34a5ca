"""What labels add to pre-training: losses by hand, who learns from what, and when pseudo-labels begin."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medssl_cli.data.augmentation import CropChanges, Draws, draw_crop_changes
from medssl_cli.data.views import LabelRequest, ViewRequest, make_views
from medssl_cli.methods import Labelled, Losses, Views, voco
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.voxel_losses import best_constant_loss, frequencies, voxel_losses

CROP = (4, 4, 4)
OMNI = {"classes": {1: "bright", 2: "dark"}, "batch_size": 3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TinyBackbone(Backbone):
    """Two maps; remembers how many crops it saw."""

    def __init__(self) -> None:
        super().__init__(channels=(4, 5), strides=(1, 2), embedding_levels=(1,))
        self.fine = nn.Conv3d(1, 4, 3, padding=1)
        self.coarse = nn.Conv3d(4, 5, 2, stride=2)
        self.num_seen: list[int] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        self.num_seen.append(len(x))
        fine = self.fine(x).tanh()
        return [fine, self.coarse(fine).tanh()]


def method_with(**omni: Any) -> voco.Method:
    torch.manual_seed(0)
    options = {"projector_dim": 8, "dropout_prob": 0, "omni": {**OMNI, **omni}}
    return voco.Method(TinyBackbone(), voco.Options.model_validate(options), CROP).train()


def views_for(method: voco.Method, seed: int = 0) -> Views:
    images = torch.rand(2, 1, *method.views().size, generator=generator(1))
    crops = torch.rand(3, 1, *CROP, generator=generator(2))
    labels = torch.randint(0, 3, (3, *CROP), generator=generator(3))
    return make_views(method.views(), images, Draws(generator(seed)), labelled=Labelled(crops, labels))


def loss_of(method: voco.Method) -> Losses:
    return method.loss(views_for(method), progress=0.0)


# Losses.


def literal_losses(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Cross-entropy and Dice loss one voxel and one class at a time."""
    batch, num_classes, *size = logits.shape
    cross_entropy, count = 0.0, 0
    overlap, total = [0.0] * num_classes, [0.0] * num_classes
    for b in range(batch):
        for place in [(x, y, z) for x in range(size[0]) for y in range(size[1]) for z in range(size[2])]:
            scores = [math.exp(float(logits[(b, k, *place)])) for k in range(num_classes)]
            probabilities = [score / sum(scores) for score in scores]
            truth = int(labels[(b, *place)])
            truth = truth if truth < num_classes else 0
            cross_entropy -= math.log(probabilities[truth])
            count += 1
            for k in range(num_classes):
                overlap[k] += probabilities[k] * (truth == k)
                total[k] += probabilities[k] + (truth == k)
    dice = [1 - (2 * overlap[k] + 1e-5) / (total[k] + 1e-5) for k in range(1, num_classes)]
    return cross_entropy / count, sum(dice) / len(dice)


def test_cross_entropy_and_dice_are_those_of_the_literal_restatement() -> None:
    logits = 3 * torch.randn(2, 4, 3, 2, 3, generator=generator())
    labels = torch.randint(0, 6, (2, 3, 2, 3), generator=generator(1))  # 4 and 5 are beyond the classes

    losses = voxel_losses(logits, labels)

    cross_entropy, dice = literal_losses(logits, labels)
    assert losses["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-5)
    assert losses["dice"].item() == pytest.approx(dice, rel=1e-5)


def test_the_best_constant_predictor_is_the_best_of_all_on_a_grid() -> None:
    labels = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 0, 1, 2]])
    shares = frequencies(labels, 3)
    assert shares.tolist() == [[0.5, 0.2, 0.3], [0.8, 0.1, 0.1]]

    def cost(p: list[float]) -> float:
        logits = torch.tensor(p).log()[None, :, None, None, None].expand(1, 3, 10, 1, 1)
        batches = [voxel_losses(logits, batch.reshape(1, 10, 1, 1)) for batch in labels]
        return sum(float(parts["cross_entropy"] + parts["dice"]) for parts in batches) / 2

    grid = [[1 - (a + b) / 100, a / 100, b / 100] for a in range(1, 60) for b in range(1, 60) if a + b < 100]
    least = min(map(cost, grid[::7]))

    best = best_constant_loss(shares).item()
    assert best <= least + 1e-5
    assert best == pytest.approx(least, abs=2e-3)  # the grid is coarse


def test_classes_that_are_absent_cost_a_constant_predictor_nothing() -> None:
    assert best_constant_loss(torch.tensor([[1.0, 0.0, 0.0]])).item() == pytest.approx(0, abs=1e-6)


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    plain = loss_of(method_with(pseudo_weight=0)).parts
    weighted = loss_of(method_with(pseudo_weight=0, self_weight=0.5, supervised_weight=2))

    assert set(plain) == {"prediction", "inter", "regulariser", "supervised"}
    for name, value in weighted.parts.items():
        assert value.item() == pytest.approx(plain[name].item() * (2 if name == "supervised" else 0.5)), name
    assert weighted.total.item() == pytest.approx(sum(value.item() for value in weighted.parts.values()))


def test_labels_leave_the_self_supervised_terms_as_they_are() -> None:
    method = method_with(pseudo_from=0.0)
    without = voco.Method(copy.deepcopy(method.backbone), voco.Options(projector_dim=8, dropout_prob=0), CROP).train()
    without.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("branches.")})

    parts = without.loss(views_for(method), progress=0.0).parts

    assert set(parts) == {"prediction", "inter", "regulariser"}
    together = loss_of(method).parts
    for name, value in parts.items():
        torch.testing.assert_close(together[name], value)


def test_baselines_add_what_a_constant_answer_costs() -> None:
    labels = torch.tensor([0, 0, 1, 2]).repeat(16).reshape(1, 1, *CROP)
    constant = best_constant_loss(torch.tensor([[0.5, 0.25, 0.25]])).item()
    own = voco.trivial_losses(voco.Options(dropout_prob=0), CROP)

    together = method_with(self_weight=0.5, supervised_weight=2).baselines(labels)
    alone = method_with(self_weight=0).baselines(labels)

    assert together == pytest.approx({name: 0.5 * loss + 2 * constant for name, loss in own.items()})
    assert alone == pytest.approx({"constant_labels": constant})


def test_an_untrained_network_is_told_beside_its_constant_baseline() -> None:
    losses = loss_of(method_with())
    expected = method_with().baselines(views_for(method_with()).labelled.labels[None])  # type: ignore[union-attr]

    constant = losses.diagnostics["supervised_constant"].item()

    assert constant < losses.parts["supervised"].item()
    own = voco.trivial_losses(voco.Options(dropout_prob=0), CROP)
    assert expected["zero_logits"] - own["zero_logits"] == pytest.approx(constant)


# Crops.


def test_labels_are_mirrored_and_turned_with_their_images() -> None:
    labels = torch.randint(0, 3, (16, *CROP), generator=generator())
    images = labels[:, None].float()
    before = labels.clone()
    changes = CropChanges(flip_prob=0.5, quarter_turn_prob=0.5, shift_prob=0.5, shift=0.25)
    options = voco.Options.model_validate({"omni": OMNI}).omni
    assert options is not None
    labelled = LabelRequest("seg", options.wanted, CROP, 16, 0.5, "omni", changes)

    views = make_views(
        ViewRequest(CROP, labelled=labelled), images, Draws(generator(4)), labelled=Labelled(images, labels)
    )

    assert views.labelled is not None
    shift = draw_crop_changes(16, changes, generator(4)).shift
    assert shift is not None
    assert torch.equal(views.labelled.images, views.labelled.labels[:, None].float() + shift[:, None, None, None, None])
    assert torch.equal(labels, before)
    assert torch.equal(images[:, 0], before.float())
    assert not torch.equal(views.labelled.labels, labels)


def test_a_step_embeds_all_crops_in_one_pass_and_only_what_is_needed() -> None:
    random, bases, labelled = 2 * 2, 2 * 9, 3
    for omni, expected in (
        ({}, random + bases + labelled),
        ({"self_weight": 0}, labelled),  # before there are pseudo-labels
        ({"self_weight": 0, "pseudo_from": 0.0}, random + labelled),
        ({"self_weight": 0, "pseudo_weight": 0}, labelled),
    ):
        method = method_with(**omni)
        method.before_step(0.0)

        loss_of(method)

        assert method.backbone.num_seen == [expected], omni


def test_what_is_asked_for() -> None:
    request = method_with(foreground_prob=0.7).views()
    assert request.labelled is not None
    assert (request.size, request.labelled.size, request.labelled.batch_size) == ((12, 12, 4), CROP, 3)
    assert (request.labelled.label_set, request.labelled.foreground_prob) == ("seg", 0.7)
    assert method_with(self_weight=0, pseudo_weight=0).views().size == CROP


def test_without_labelled_crops_there_is_no_loss() -> None:
    method = method_with()

    with pytest.raises(ValueError, match="labelled"):
        method.loss(replace(views_for(method), labelled=None), progress=0.0)


# Who learns from what.


def reached(method: voco.Method) -> set[str]:
    """Parts of the method that get a gradient."""
    method.zero_grad()
    loss_of(method).total.backward()
    found = {
        name for name, parameter in method.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    return {".".join(name.split(".")[: 1 + name.startswith("branches.")]) for name in found}


def test_the_supervised_branch_trains_encoder_and_decoder_and_nothing_else() -> None:
    method = method_with(self_weight=0, pseudo_weight=0)

    assert reached(method) == {"backbone", "branches.decoder"}
    assert not any(parameter.requires_grad for parameter in method.student.parameters())
    assert method.teacher is None


@pytest.mark.parametrize("trains_encoder", [False, True])
def test_pseudo_labels_train_the_decoder_and_the_encoder_only_where_asked(trains_encoder: bool) -> None:
    method = method_with(self_weight=0, pseudo_from=0.0, pseudo_trains_encoder=trains_encoder)
    method.before_step(0.0)
    branches, options = method.branches, method.options.omni
    assert branches is not None
    assert options is not None
    crops = torch.rand(4, 1, *CROP, generator=generator(5))
    labelled = views_for(method).labelled
    assert labelled is not None
    maps = method.backbone(torch.cat([crops, labelled.images]))

    branches.losses(maps, labelled.labels, crops)["pseudo"].backward()

    assert all(parameter.grad is not None for parameter in branches.decoder.parameters())
    assert all((parameter.grad is not None) == trains_encoder for parameter in method.backbone.parameters())
    assert branches.labeller is not None
    assert all(parameter.grad is None for parameter in branches.labeller.parameters())


def test_pseudo_labels_are_what_the_frozen_copy_finds_most_probable() -> None:
    method = method_with(pseudo_from=0.0)
    method.before_step(0.0)
    assert method.branches is not None
    assert method.branches.labeller is not None
    crops = torch.rand(4, 1, *CROP, generator=generator(5))

    labels = method.branches.labeller(crops)

    expected = method.branches.decoder(method.backbone(crops)).argmax(dim=1)
    assert torch.equal(labels, expected)
    assert labels.dtype == torch.int64
    own = voxel_losses(method.branches.decoder(method.backbone(crops)), labels)
    maps = method.backbone(torch.cat([crops, crops]))
    pseudo = method.branches.losses(maps, labels, crops)["pseudo"]
    assert pseudo.item() == pytest.approx(own["cross_entropy"].item() + own["dice"].item())


# When.


def step(method: voco.Method, progress: float) -> None:
    """One step of training."""
    method.before_step(progress)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    optimizer.zero_grad()
    loss_of(method).total.backward()
    optimizer.step()


def copied(method: voco.Method) -> list[Tensor]:
    assert method.branches is not None
    assert method.branches.labeller is not None
    return [parameter.clone() for parameter in method.branches.labeller.parameters()]


def trained(method: voco.Method) -> list[Tensor]:
    assert method.branches is not None
    return [p.detach().clone() for part in (method.backbone, method.branches.decoder) for p in part.parameters()]


def test_the_copy_is_taken_at_its_step_and_never_moves_again() -> None:
    method = method_with(pseudo_from=0.5)
    for progress in (0.0, 0.2, 0.4):
        step(method, progress)
        assert "pseudo" not in loss_of(method).parts
    at_half = trained(method)

    for progress in (0.5, 0.6, 0.8):
        step(method, progress)
        assert "pseudo" in loss_of(method).parts
        assert all(map(torch.equal, copied(method), at_half))

    assert not all(map(torch.equal, trained(method), at_half))


def test_the_copy_and_that_it_was_taken_are_in_the_state() -> None:
    method = method_with(pseudo_from=0.5)
    for progress in (0.4, 0.5, 0.6):
        step(method, progress)
    again = method_with(pseudo_from=0.5)

    again.load_state_dict(copy.deepcopy(method.state_dict()))
    for progress in (0.8, 0.9):
        step(method, progress)
        step(again, progress)

    assert all(map(torch.equal, copied(again), copied(method)))
    assert all(map(torch.equal, trained(again), trained(method)))


def test_the_copy_stays_in_evaluation_mode() -> None:
    method = method_with().train()
    assert method.branches is not None
    assert method.branches.labeller is not None

    assert method.branches.decoder.training
    assert not any(module.training for module in method.branches.labeller.modules())


# Options.


@pytest.mark.parametrize(
    "options",
    [
        {"omni": {}},
        {"omni": {"classes": {0: "a", 3: "b"}}},
        {"omni": {**OMNI, "supervised_weight": 0}},
        {"omni": {**OMNI, "pseudo_from": 1.0}},
        {"omni": {**OMNI, "pseudo_form": 0.5}},
        {"omni": OMNI, "network_size": (4, 4, 4)},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        voco.Options.model_validate(options)


def test_health_pictures_exist_only_where_positions_are_learnt() -> None:
    method = method_with()
    boxes = views_for(method)

    assert set(method.matrices(boxes)) == {"base_cosines", "logits", "overlaps"}
    assert method_with(self_weight=0).matrices(boxes) == {}
