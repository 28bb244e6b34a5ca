"""What learning by clusters adds to a backbone: when queue, bank and prototypes count, and batches that are refused."""

import math
from dataclasses import astuple

import pytest
import torch
from torch.nn import functional as F

from medssl_cli.base.errors import UsageError
from medssl_cli.nn.clusters.heads import (
    FIGURES,
    ClusterHead,
    ClusterOptions,
    ImageProjector,
    SwappedHead,
    SwappedOptions,
    concerns,
)
from medssl_cli.nn.clusters.losses import UNLABELLED
from tests.parity.clustering_literal import plain_sinkhorn, swapped_prediction

IDS = torch.arange(4)
ROUNDS = {"epsilon": 0.05, "num_iterations": 3}


def views(seed: int, number: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 8, generator=generator) for _ in range(number)]


def head(**options: object) -> SwappedHead:
    torch.manual_seed(0)
    return SwappedHead(SwappedOptions(num_prototypes=3, **options), num_assigning=2, embedding_dim=8)


def test_the_loss_is_that_of_the_formula() -> None:
    swapped = head()
    projections = views(1)
    prototypes = swapped.prototypes.heads[0]
    scores = [(F.normalize(view, dim=1) @ prototypes.T).double().tolist() for view in projections]

    loss, health = swapped.loss(IDS, projections, 0.0)

    assert loss.item() == pytest.approx(swapped_prediction(scores, num_global=2, temperature=0.1, **ROUNDS), rel=1e-5)
    codes = plain_sinkhorn(scores[0], **ROUNDS)
    usage = [sum(row[k] for row in codes) / 4 for k in range(3)]
    assert health.usage == pytest.approx(math.exp(-sum(share * math.log(share) for share in usage)) / 3, rel=1e-4)
    assert swapped.baseline == pytest.approx(math.log(3))


def test_a_queue_counts_only_when_it_is_full_and_its_time_has_come() -> None:
    queued, plain = head(queue_length=8, queue_starts=0.5), head()

    losses = []
    for step, progress in enumerate((0.6, 0.6, 0.6, 0.4)):
        with_queue = queued.loss(IDS, views(step), progress)[0]
        losses.append(with_queue.item() == plain.loss(IDS, views(step), progress)[0].item())

    assert losses == [True, True, False, True]  # two batches of four fill it; at last its time has not come


def test_nothing_is_remembered_in_evaluation() -> None:
    queued = head(queue_length=4).eval()

    queued.loss(IDS, views(0), 1.0)

    assert not queued.queue.is_full


def test_prototypes_stay_for_the_first_steps_and_then_learn_on_the_unit_sphere() -> None:
    swapped = head(freeze_steps=2)
    optimizer = torch.optim.SGD(swapped.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    places = []
    for step in range(4):
        swapped.before_step()
        places.append(swapped.prototypes.heads[0].detach().clone())
        optimizer.zero_grad()
        swapped.loss(IDS, views(0), 0.0)[0].backward()
        swapped.after_backward(step)
        optimizer.step()

    assert torch.equal(places[0], places[1])
    assert torch.equal(places[0], places[2])
    assert not torch.equal(places[2], places[3])
    torch.testing.assert_close(places[3].norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("prototypes", "queue", "batch", "is_refused"),
    [
        (3000, 0, 4096, False),
        (3000, 3840, 256, False),
        (3001, 3840, 256, True),
        (3000, 0, 12, True),
        (46, 0, 64, False),
    ],
)
def test_batches_carry_so_many_prototypes(prototypes: int, queue: int, batch: int, is_refused: bool) -> None:
    options = SwappedOptions(num_prototypes=prototypes, queue_length=queue)
    if not is_refused:
        options.require_batch(batch, where="method")
        return
    with pytest.raises(UsageError, match="E_RECIPE") as refused:
        options.require_batch(batch, where="method")
    floor = math.log(prototypes / (batch + queue))
    assert (f"{floor:.2f}" in str(refused.value)) == (floor > 0)


def cluster_head() -> ClusterHead:
    torch.manual_seed(0)
    clusters = ClusterHead(ClusterOptions(num_prototypes=(2, 3)), num_assigning=2, embedding_dim=8)
    clusters.begin(torch.tensor([0, 0, 1, 1]), where="method")
    return clusters


def test_labels_are_the_nearest_prototypes_and_prototypes_are_unit_and_fixed() -> None:
    clusters = cluster_head()
    projections = views(3, number=2)
    clusters.remember(IDS, projections)

    clusters.cluster(torch.Generator().manual_seed(0))

    for number, (view, prototypes) in enumerate(zip(projections, clusters.prototypes.heads, strict=True)):
        scores = F.normalize(view, dim=1) @ prototypes.T
        assert torch.equal(clusters.labels[number], scores.argmax(dim=1))
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(len(prototypes)))
        assert not prototypes.requires_grad
    loss, _ = clusters.loss(IDS, views(4), 0.5)
    rows = F.normalize(torch.cat(views(4)), dim=1)
    terms = [
        F.cross_entropy(rows @ prototypes.T / 0.1, labels.repeat(3))
        for prototypes, labels in zip(clusters.prototypes.heads, clusters.labels, strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_images_without_a_cluster_cost_nothing() -> None:
    clusters = cluster_head()
    projections = [view.requires_grad_() for view in views(1)]

    loss, _ = clusters.loss(IDS, projections, 0.0)
    loss.backward()

    assert (clusters.labels == UNLABELLED).all()
    assert loss.item() == 0
    assert all((view.grad == 0).all() for view in projections)


def test_more_clusters_than_images_are_refused() -> None:
    clusters = ClusterHead(ClusterOptions(num_prototypes=(2, 9)), num_assigning=2, embedding_dim=8)

    with pytest.raises(UsageError, match="a head of 9, but there are only 4 images"):
        clusters.begin(torch.tensor([0, 0, 1, 1]), where="method")


def test_few_used_prototypes_are_a_concern_after_some_lines_only() -> None:
    line = {"usage": 0.05, "used": 0.05, "entropy": 0.2, "spread": 0.9, "groups": 0.1}

    assert concerns([line] * 9) == []
    assert concerns([line] * 10) == ["only 5.0% of the prototypes carry the codes"]
    assert concerns([{f"images/{name}": value for name, value in line.items()}] * 10, prefix="images/") != []


def test_clusters_that_say_nothing_but_the_modality_are_a_concern() -> None:
    swapped = head()
    swapped.begin(torch.tensor([0, 0, 1, 1]), where="method")
    with torch.no_grad():
        swapped.prototypes.heads[0].copy_(torch.eye(3, 8))
    apart = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])

    for _ in range(20):
        _, health = swapped.loss(IDS, [F.pad(apart, (0, 6))] * 2, 0.0)

    assert health.groups > 0.8
    assert concerns([dict(zip(FIGURES, astuple(health), strict=True))] * 10)[-1].startswith("clusters say little but")


def test_a_projector_without_norm_is_two_linear_maps() -> None:
    projector = ImageProjector(6, hidden_dim=5, projection_dim=4, has_norm=False)
    rows = torch.randn(1, 6)

    assert projector(rows).shape == (1, 4)
    assert not any(isinstance(part, torch.nn.BatchNorm1d) for part in projector.modules())
