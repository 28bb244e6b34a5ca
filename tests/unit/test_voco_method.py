"""VoCo's method: what it asks for, what it feeds the backbone, who learns from whom, and what it refuses."""

import math
from itertools import product

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medssl_cli.base.errors import UsageError
from medssl_cli.data.views import draw_offsets
from medssl_cli.methods import voco
from medssl_cli.methods.voco import overlap, terms
from medssl_cli.methods.voco.method import draw_dropout
from tests.tiny_voco import UNCHANGED, generator, images_for, method_with, views_of

EPS = 1e-6


def test_the_canvas_is_the_grid_of_crops() -> None:
    assert method_with((4, 6, 8), base_grid=(3, 2, 2)).views().size == (12, 12, 16)


def test_one_forward_pass_sees_random_crops_of_all_volumes_then_their_base_crops() -> None:
    method = method_with(**UNCHANGED)
    images = images_for(method)

    method.loss(views_of(method, images), progress=0.0)

    seen = method.backbone.seen
    assert len(seen) == 2 * 2 + 2 * 9
    offsets = draw_offsets((2, 2), (8, 8, 1), generator()).tolist()
    for b, r in product(range(2), range(2)):
        x, y, z = offsets[b][r]
        assert torch.equal(seen[2 * b + r], images[b, :, x : x + 4, y : y + 4, z : z + 4])
    for b, i, j in product(range(2), range(3), range(3)):
        expected = images[b, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, :]
        assert torch.equal(seen[4 + 9 * b + 3 * i + j], expected)


def test_only_the_student_projector_trains_and_the_teacher_follows() -> None:
    method = method_with()
    assert method.teacher is not None
    before = [p.clone() for p in method.teacher.parameters()]
    assert not torch.equal(before[0], method.student.layer1[0].weight)  # drawn on its own, not copied

    method.before_step(0.0)
    method.loss(views_of(method, images_for(method)), progress=0.0).total.backward()

    for old, now, source in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * source)
        assert now.grad is None
        assert source.grad is not None


def test_the_backbone_learns_through_the_student_only() -> None:
    method = method_with(dropout_prob=0)
    for parameter in method.student.layer3.parameters():
        nn.init.zeros_(parameter)  # a student that projects everything to 0 passes nothing back

    method.loss(views_of(method, images_for(method)), progress=0.0).total.backward()

    gradient = method.backbone.conv.weight.grad
    assert gradient is None or not gradient.any()


def test_the_total_is_the_sum_of_the_published_terms() -> None:
    for objective, names in (("v2", {"prediction", "inter", "regulariser"}), ("paper", {"prediction", "regulariser"})):
        method = method_with(objective=objective)

        losses = method.loss(views_of(method, images_for(method)), progress=0.0)

        assert set(losses.parts) == names
        assert losses.total.dtype == torch.float64
        torch.testing.assert_close(losses.total.detach(), torch.stack(list(losses.parts.values())).sum())


def test_rows_are_dropped_in_training_only() -> None:
    method = method_with()
    views = images_for(method)

    training = method.train().loss(views_of(method, views), progress=0.0).total
    evaluation = method.eval().loss(views_of(method, views), progress=0.0).total
    without = method_with(dropout_prob=0).train().loss(views_of(method, views), progress=0.0).total

    assert torch.equal(evaluation, without)
    assert not torch.equal(training, evaluation)


def test_spread_tells_collapsed_from_spread_out_projections() -> None:
    same = torch.ones(1, 4, 16), torch.ones(1, 4, 16)
    orthogonal = torch.eye(8).reshape(2, 1, 4, 8).unbind()

    assert terms.spread_of(same).item() == pytest.approx(0, abs=1e-4)
    assert terms.spread_of((orthogonal[0], orthogonal[1])).item() == pytest.approx(math.sqrt(1 - 1 / 8))


def test_bf16_autocast_leaves_the_loss_in_full_precision() -> None:
    for objective in ("v2", "paper"):
        method = method_with(objective=objective)
        views = images_for(method)
        full = method.loss(views_of(method, views), progress=0.0).total

        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = method.loss(views_of(method, views), progress=0.0).total
        mixed.backward()

        assert mixed.dtype == torch.float64
        assert mixed.item() == pytest.approx(full.item(), rel=0.3)


def test_flat_crops_are_not_turned() -> None:
    method = method_with((4, 6, 4), base_grid=(3, 2, 1), num_random_crops=4, rot90_prob=1)

    assert method.loss(views_of(method, images_for(method)), progress=0.0).total.isfinite()


@pytest.mark.parametrize("size", [(12, 12, 6), (8, 12, 4), (14, 12, 4)])
def test_images_of_another_size_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="E_CANVAS") as refusal:
        views_of(method_with(), torch.rand(2, 1, *size))

    assert "(12, 12, 4)" in refusal.value.message


def test_crops_that_the_backbone_cannot_take_are_refused() -> None:
    with pytest.raises(UsageError, match="E_CANVAS"):
        method_with((5, 4, 4))


def test_fewer_than_16_rows_are_refused() -> None:
    method = method_with()

    with pytest.raises(UsageError, match="11 rows"):
        method.loss(views_of(method, images_for(method, batch=1)), progress=0.0)
    more = method_with(num_random_crops=7)  # 7 + 9 = 16
    assert more.loss(views_of(more, images_for(more, batch=1)), progress=0.0).total.isfinite()


@pytest.mark.parametrize(
    "options",
    [{"base_grid": (1, 1, 1)}, {"base_grid": (3, 0, 1)}, {"dropout_prob": 1.0}, {"objective": "v3"}, {"momentum": 1.5}],
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        voco.Options.model_validate(options)


# Dropout.


def test_dropout_zeroes_whole_rows_or_single_elements() -> None:
    rows = torch.ones(10, 6) * draw_dropout((10, 1), 0.2, generator())
    elements = torch.ones(10, 6) * draw_dropout((10, 6), 0.2, generator())

    assert (rows == rows[:, :1]).all()
    assert not (elements == elements[:, :1]).all()
    for dropped in (rows, elements):
        assert set(dropped.flatten().tolist()) == {0.0, 1.25}


def test_dropout_hits_a_fifth_of_the_rows() -> None:
    rows = 20_000

    share = (draw_dropout((rows, 1), 0.2, generator()) == 0).double().mean().item()

    assert share == pytest.approx(0.2, abs=5 * math.sqrt(0.2 * 0.8 / rows))


def test_two_dropped_crops_of_different_volumes_put_a_floor_under_the_loss() -> None:
    """All dropped crops have one projection, so their cosine is 1; where the teacher sees 0 that costs -log(eps)."""
    teacher = torch.eye(6, dtype=torch.float64).reshape(2, 3, 6)
    queries, bases = teacher[:, :1].clone(), teacher[:, 1:].clone()  # one random and two base crops per volume
    targets = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]], dtype=torch.float64)
    at_rest = terms.v2_terms((queries, bases), (queries, bases), targets)["inter"].item()
    dropped = torch.ones(6, dtype=torch.float64)
    student_queries, student_bases = queries.clone(), bases.clone()
    student_queries[0, 0], student_bases[1, 0] = dropped, dropped

    inter = terms.v2_terms((student_queries, student_bases), (queries, bases), targets)["inter"].item()

    assert at_rest == pytest.approx(0, abs=3e-6)
    # volume 0: query dropped, so 1 / sqrt(6) to the other base; volume 1: its query touches no dropped base
    expected = (-math.log(EPS) - math.log(1 - 1 / math.sqrt(6))) / 2
    assert inter == pytest.approx(expected / 2, abs=2e-5)


def test_dropped_rows_keep_even_an_oracle_away_from_zero() -> None:
    """Projections that answer everything rightly, a fifth of them replaced by one and the same.

    Prediction: a fifth of the random crops answer 0 everywhere, at 0.71 each, the price of zero logits. Regulariser:
    4 % of the pairs are both dropped, with cosine 1. Between volumes: 4 % of the pairs cost -log(eps) where the
    teacher sees 0.
    """
    volumes, num_random, num_bases = 64, 16, 9
    offsets = draw_offsets((volumes, num_random), (128, 128, 1), generator())
    targets = overlap.overlap_fractions(offsets, (3, 3, 1), (64, 64, 64))
    width = num_bases + 1  # of a volume's own directions: its base crops, and one that completes crops to length 1
    rest = (1 - targets.square().sum(-1, keepdim=True)).sqrt()
    own_random = torch.cat([targets, rest], dim=-1)
    own_bases = torch.eye(num_bases, width, dtype=torch.float64).expand(volumes, -1, -1)
    # Volumes in turn have directions of their own; the last direction belongs to what is dropped.
    random, bases = torch.zeros(volumes, num_random, 2 * width + 1), torch.zeros(volumes, num_bases, 2 * width + 1)
    for parity in (0, 1):
        random[parity::2, :, parity * width : (parity + 1) * width] = own_random[parity::2].float()
        bases[parity::2, :, parity * width : (parity + 1) * width] = own_bases[parity::2].float()
    oracle = random.double(), bases.double()
    at_rest = terms.v2_terms(oracle, oracle, targets)
    student = []
    for rows in oracle:
        is_dropped = torch.rand(rows.shape[:2], generator=generator(len(student))) < 0.2
        replaced = rows.clone()
        replaced[is_dropped] = torch.eye(2 * width + 1, dtype=torch.float64)[-1]
        student.append(replaced)

    parts = terms.v2_terms((student[0], student[1]), oracle, targets)

    assert sum(part.item() for part in at_rest.values()) == pytest.approx(0, abs=1e-5)
    assert parts["prediction"].item() == pytest.approx(0.2 * (4 - math.pi**2 / 3), abs=0.03)
    assert parts["regulariser"].item() == pytest.approx(0.04, abs=0.01)
    assert parts["inter"].item() == pytest.approx(0.04 * -math.log(EPS), abs=0.1)
