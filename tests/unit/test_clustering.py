"""Losses by clusters on numbers that can be checked by hand, and their prototypes."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.nn.clusters.losses import UNLABELLED, Prototypes, cluster_prediction_loss, swapped_prediction_loss
from medssl_cli.nn.clusters.sinkhorn import sinkhorn_codes
from tests.unit.test_kmeans import POINTS, at
from tests.unit.test_sinkhorn import SCORES, random_scores

LOCAL = torch.tensor([[0.5, 0.2, 0.1], [0.4, 0.3, 0], [0.1, 0.5, 0.2], [0.2, 0.3, 0.6]], dtype=torch.float64)


def test_swapped_prediction_worked_example() -> None:
    """Values that a restatement in plain exponentials gave; see also tests/parity."""
    flipped = SCORES.flip(0)

    assert swapped_prediction_loss([SCORES, SCORES], num_global=2).item() == pytest.approx(0.346281, abs=5e-7)
    assert swapped_prediction_loss([SCORES, flipped], num_global=2).item() == pytest.approx(7.782587, abs=5e-7)
    assert swapped_prediction_loss([flipped, SCORES], num_global=2).item() == pytest.approx(7.782587, abs=5e-7)
    assert swapped_prediction_loss([SCORES, flipped, LOCAL], num_global=2).item() == pytest.approx(4.789815, abs=5e-7)


@pytest.mark.parametrize("num_prototypes", [3, 512, 3000])
def test_scores_that_say_nothing_cost_log_k(num_prototypes: int) -> None:
    nothing = torch.zeros(4, num_prototypes, dtype=torch.float64)

    assert swapped_prediction_loss([nothing] * 3, num_global=2).item() == pytest.approx(math.log(num_prototypes))
    labels = torch.tensor([[0, 1, 2, 0]])
    assert cluster_prediction_loss([nothing.expand(2, 4, -1)], labels).item() == pytest.approx(math.log(num_prototypes))


def test_no_prediction_beats_the_entropy_of_the_codes() -> None:
    entropy = torch.special.entr(sinkhorn_codes(SCORES)).sum(dim=1).mean().item()

    assert entropy == pytest.approx(0.107315, abs=5e-7)
    for view in (SCORES, SCORES * 3, LOCAL):
        assert swapped_prediction_loss([SCORES, view], num_global=1).item() >= entropy


def test_codes_get_no_gradient() -> None:
    source, target = SCORES.clone().requires_grad_(), LOCAL.clone().requires_grad_()

    loss = swapped_prediction_loss([source, target], num_global=1)

    assert torch.autograd.grad(loss, [source, target], allow_unused=True, retain_graph=True)[0] is None
    # cross entropy with fixed codes: (prediction - code) / (temperature B)
    expected = ((target / 0.1).softmax(dim=1) - sinkhorn_codes(SCORES)) / (0.1 * 4)
    torch.testing.assert_close(torch.autograd.grad(loss, target)[0], expected)


def test_queued_images_are_assigned_too_but_never_predicted() -> None:
    queue = random_scores(8, 3, seed=1)
    codes = sinkhorn_codes(torch.cat([SCORES, queue]))[:4]

    loss = swapped_prediction_loss([SCORES, LOCAL], num_global=1, queued_scores=[queue])

    expected = -(codes * (LOCAL / 0.1).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss, expected)
    assert abs(loss - swapped_prediction_loss([SCORES, LOCAL], num_global=1)) > 1e-3


def test_more_prototypes_than_images_keep_the_loss_up() -> None:
    # converged codes put at most B/K on a prototype: see entropy_floor
    scores = random_scores(12, 64)

    loss = swapped_prediction_loss([scores, scores], num_global=2, num_iterations=300)

    assert loss.item() >= math.log(64 / 12)


CIRCLE_LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
CENTRES = 10, 100, 205, 270  # of three groups of points and of a cluster that has none
CIRCLE_SCORES = POINTS @ at(*CENTRES).T


def test_cluster_prediction_on_the_circle() -> None:
    """Cosines to four centres: cross entropy by the definition."""
    costs = [
        math.log(sum(math.exp(math.cos(math.radians(angle - centre)) / 0.1) for centre in CENTRES))
        - math.cos(math.radians(angle - own)) / 0.1
        for angle, own in zip((0, 10, 20, 90, 100, 110, 200, 210), (10, 10, 10, 100, 100, 100, 205, 205), strict=True)
    ]

    loss = cluster_prediction_loss([CIRCLE_SCORES[None]], CIRCLE_LABELS[None]).item()

    assert loss == pytest.approx(sum(costs) / 8)
    assert loss == pytest.approx(0.00115299, abs=5e-9)


def test_all_views_of_an_image_share_its_label_and_heads_weigh_alike() -> None:
    views, few = torch.stack([LOCAL, SCORES]), torch.stack([SCORES, LOCAL])[..., :2]
    labels = torch.tensor([[0, 1, 2, 2], [1, 0, UNLABELLED, 1]])

    loss = cluster_prediction_loss([views, few], labels)

    first = F.cross_entropy(views.flatten(0, 1) / 0.1, torch.cat([labels[0], labels[0]]))
    second = F.cross_entropy(few.flatten(0, 1) / 0.1, torch.cat([labels[1], labels[1]]), ignore_index=UNLABELLED)
    torch.testing.assert_close(loss, (first + second) / 2)


def test_a_batch_without_labels_costs_nothing() -> None:
    scores = CIRCLE_SCORES[None].clone().requires_grad_()

    loss = cluster_prediction_loss([scores], torch.full((1, 8), UNLABELLED))
    loss.backward()

    assert loss.item() == 0
    assert scores.grad is not None
    assert (scores.grad == 0).all()


def prototypes(*, is_trained: bool = True) -> Prototypes:
    torch.manual_seed(0)
    return Prototypes(4, [3, 5], is_trained=is_trained)


def test_scores_are_cosines_in_float32() -> None:
    module = prototypes()
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = module(embeddings * 9)

    assert [tuple(part.shape) for part in scores] == [(6, 3), (6, 5)]
    for part, head in zip(scores, module.heads, strict=True):
        assert part.dtype == torch.float32
        torch.testing.assert_close(part, F.cosine_similarity(embeddings[:, None], head[None], dim=2))


def step(module: Prototypes, *, is_frozen: bool) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    torch.stack([scores.square().sum() for scores in module(torch.ones(2, 4))]).sum().backward()
    if is_frozen:
        module.drop_gradients()
    optimizer.step()


def test_frozen_prototypes_do_not_move_and_trained_ones_return_to_the_sphere() -> None:
    module = prototypes()
    before = [head.detach().clone() for head in module.heads]

    step(module, is_frozen=True)
    assert all(torch.equal(head, old) for head, old in zip(module.heads, before, strict=True))

    step(module, is_frozen=False)
    assert not torch.equal(module.heads[0], before[0])
    module.normalise_()
    torch.testing.assert_close(module.heads[0].norm(dim=1).detach(), torch.ones(3))


def test_written_prototypes_stay_bit_for_bit() -> None:
    module = prototypes(is_trained=False)
    centres = F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    module.write_(1, centres)

    embeddings = torch.ones(2, 4, requires_grad=True)
    module(embeddings)[1].sum().backward()

    assert embeddings.grad is not None
    assert module.heads[1].grad is None
    assert torch.equal(module.heads[1], centres)


def test_gradients_through_both_roles_of_a_view() -> None:
    """Each global view predicts the other; its own code stays out of it."""
    views: list[Tensor] = [SCORES.clone().requires_grad_(), LOCAL.clone().requires_grad_()]

    gradients = torch.autograd.grad(swapped_prediction_loss(views, num_global=2), views)

    for gradient, view, other in zip(gradients, views, reversed(views), strict=True):
        expected = ((view / 0.1).softmax(dim=1) - sinkhorn_codes(other)) / (0.1 * 4) / 2
        torch.testing.assert_close(gradient, expected)
