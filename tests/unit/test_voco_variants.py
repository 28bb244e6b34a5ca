"""VoCo's options by objective, its teachers, its resizing, its pictures, and its share of a spread batch."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medssl_cli.methods import voco
from medssl_cli.nn.distributed import BatchNorm
from tests.tiny_voco import UNCHANGED, images_for, method_with, views_of

OBJECTIVES = ["paper", "v1", "v2", "fixed"]


# Options.


def test_each_objective_fills_in_its_published_values() -> None:
    first, second = voco.Options(objective="v1"), voco.Options()

    assert (first.projector_dim, first.shift_prob, first.sync_norm, first.dropout_prob) == (2048, 0.1, True, None)
    assert (second.projector_dim, second.shift_prob, second.sync_norm, second.dropout_prob) == (1024, 0.5, False, 0.2)
    assert first.momentum == second.momentum == 0.9
    assert voco.Options(objective="paper").momentum is None
    assert voco.Options(objective="fixed").corrections == voco.Corrections()
    assert voco.Options(objective="v1", projector_dim=64, shift_prob=0.0).projector_dim == 64


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_options_resolve_to_are_options(objective: str) -> None:
    options = voco.Options.model_validate({"objective": objective})

    assert voco.Options.model_validate(options.model_dump()) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "paper", "momentum": 0.9}, "momentum belongs to v1, v2, fixed; objective paper has none"),
        ({"objective": "v1", "dropout_prob": 0.2}, "dropout_prob belongs to v2, fixed; objective v1 has none"),
        ({"objective": "v2", "corrections": {"dropout": "elements"}}, "corrections belongs to fixed"),
        ({"resize": "crops"}, "resize does nothing without network_size"),
        ({"objective": "fixed", "corrections": {"negative_slope": 2}}, "less than or equal to 1"),
        ({"objective": "fixed", "corrections": {"leaky": True}}, "leaky"),
    ],
)
def test_options_of_another_objective_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        voco.Options.model_validate(options)


# Teachers.


def test_the_teacher_of_v1_is_a_whole_network_that_starts_at_random() -> None:
    method = method_with(objective="v1")
    assert method.teacher is not None
    assert method.teacher_backbone is not None
    pairs = [(method.backbone.conv.weight, method.teacher_backbone.conv.weight)]
    pairs.append((method.student.layer1[0].weight, method.teacher.layer1[0].weight))
    for student, teacher in pairs:
        assert not torch.equal(student, teacher)
        torch.testing.assert_close(student.std(), teacher.std(), rtol=0.3, atol=0)
    before = [teacher.clone() for _, teacher in pairs]

    method.before_step(0.5)
    method.loss(views_of(method, images_for(method)), progress=0.5).total.backward()

    for (student, teacher), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(teacher, 0.9 * old + 0.1 * student)
        assert teacher.grad is None
        assert student.grad is not None


def test_the_teacher_of_v2_is_a_projector_only() -> None:
    assert method_with().teacher_backbone is None
    assert method_with(objective="fixed").teacher_backbone is None
    assert method_with(objective="paper").teacher is None


def test_the_teacher_of_fixed_starts_as_the_student_and_slows_down() -> None:
    method = method_with(objective="fixed")
    assert method.teacher is not None
    student, teacher = method.student.layer1[0].weight, method.teacher.layer1[0].weight
    assert torch.equal(student, teacher)
    for progress, momentum in ((0.0, 0.9), (0.5, (0.9 + 0.996) / 2), (1.0, 0.996)):
        with torch.no_grad():
            teacher.zero_()
        method.before_step(progress)
        torch.testing.assert_close(teacher, (1 - momentum) * student)


def test_fixed_without_its_corrections_is_v2() -> None:
    off = voco.PUBLISHED.model_dump()
    plain = method_with(objective="v2", num_random_crops=4)
    fixed = method_with(objective="fixed", num_random_crops=4, sync_norm=False, corrections=off)
    for method in (plain, fixed):
        method.before_step(0.0)

    losses = [m.loss(views_of(m, images_for(m)), progress=0.0).total for m in (plain, fixed)]
    assert torch.equal(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for one, other in zip(plain.parameters(), fixed.parameters(), strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad)


@pytest.mark.parametrize(
    "correction",
    [
        {"negative_slope": 0.0},
        {"dropout": "rows"},
        {"regulariser": "absolute"},
        {"regulariser": "one_sided"},
        {"inter_volume": "next"},
        {"teacher_start": "random"},
        {"inclusive_offsets": False},
    ],
)
def test_each_correction_matters_on_its_own(correction: dict[str, Any]) -> None:
    gradients = []
    for changed in ({}, correction):
        method = method_with(objective="fixed", num_random_crops=8, corrections=changed)
        method.loss(views_of(method, images_for(method, batch=3)), progress=0.0).total.backward()
        gradients.append(method.student.layer3[0].weight.grad)

    assert not torch.equal(gradients[0], gradients[1])


def test_the_loss_of_fixed_is_single_precision_unless_asked() -> None:
    for is_single, dtype in ((True, torch.float32), (False, torch.float64)):
        method = method_with(objective="fixed", corrections={"float32_loss": is_single})
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = method.loss(views_of(method, images_for(method)), progress=0.0)
        assert losses.total.dtype == dtype


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_few_steps_on_one_batch_lower_the_loss(objective: str) -> None:
    method = method_with(objective=objective, num_random_crops=4).train()
    optimizer = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for step in range(30):
        method.before_step(step / 30)
        total = method.loss(views_of(method, images_for(method)), progress=step / 30).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())

    assert sum(losses[-3:]) / 3 < losses[0]


# Resizing.


def test_the_canvas_is_resized_once_and_cells_stay_cells() -> None:
    method = method_with((6, 6, 6), network_size=(4, 4, 4), **UNCHANGED)
    assert method.views().size == (18, 18, 6)
    cells = torch.arange(9.0).reshape(3, 3, 1)
    images = cells.repeat_interleave(6, 0).repeat_interleave(6, 1).repeat_interleave(6, 2)[None, None]

    method.loss(views_of(method, images.repeat(2, 1, 1, 1, 1)), progress=0.0)

    seen = method.backbone.seen
    assert seen.shape[2:] == (4, 4, 4)
    bases = seen[4:13, 0]
    assert torch.equal(bases[:, 1:3, 1:3, 1], cells.reshape(9, 1, 1).expand(9, 2, 2))  # the middle of each is its own


def test_crops_are_resized_as_published() -> None:
    """Between the same outermost voxels: a ramp of six voxels becomes one of four with the same ends."""
    method = method_with((6, 6, 6), network_size=(4, 4, 4), resize="crops", **UNCHANGED)
    ramp = torch.arange(18.0)[:, None, None].expand(18, 18, 6)[None, None]

    method.loss(views_of(method, ramp.repeat(2, 1, 1, 1, 1)), progress=0.0)

    first = method.backbone.seen[4, 0, :, 0, 0]
    torch.testing.assert_close(first, torch.tensor([0.0, 5 / 3, 10 / 3, 5.0]))


def test_the_backbone_needs_to_take_the_resized_crops_only() -> None:
    assert method_with((5, 5, 5), network_size=(4, 4, 4)).views().size == (15, 15, 5)


# Pictures.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_matrices_show_base_crops_logits_and_overlaps(objective: str) -> None:
    method = method_with(objective=objective, num_random_crops=3).train()

    shown = method.matrices(views_of(method, images_for(method)))

    assert {name: tuple(matrix.shape) for name, matrix in shown.items()} == {
        "base_cosines": (9, 9),
        "logits": (3, 9),
        "overlaps": (3, 9),
    }
    torch.testing.assert_close(shown["base_cosines"].diagonal(), torch.ones_like(shown["base_cosines"][0]))
    torch.testing.assert_close(shown["overlaps"].sum(dim=1), torch.ones_like(shown["overlaps"][:, 0]))
    for matrix in shown.values():
        assert not matrix.requires_grad
        assert matrix.abs().max() <= 1 + 1e-6


# One batch, several processes.


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_shards_see_the_crops_that_one_process_would(objective: str) -> None:
    whole = method_with(objective=objective, num_random_crops=3)
    images = images_for(whole, batch=4)
    whole.loss(views_of(whole, images), progress=0.0)
    seen = whole.backbone.seen

    random, bases = [], []
    for shard in range(2):
        part = method_with(objective=objective, num_random_crops=3)
        own = images[2 * shard : 2 * shard + 2]
        part.loss(views_of(part, own, shard=(shard, 2)), progress=0.0)
        random.append(part.backbone.seen[:6])
        bases.append(part.backbone.seen[6:])

    assert torch.equal(torch.cat([*random, *bases]), seen)


def test_normalisation_counts_rows_of_all_processes_only_if_it_is_over_all() -> None:
    assert isinstance(method_with(objective="fixed").student.layer1[1], BatchNorm)
    assert isinstance(method_with(objective="v2").student.layer1[1], nn.BatchNorm1d)
    assert isinstance(method_with(objective="v2", sync_norm=True).student.layer1[1], BatchNorm)
