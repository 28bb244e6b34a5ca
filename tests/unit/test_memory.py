"""Queue and memory bank: order, resuming, clusters of images that were seen."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.nn.clusters.losses import UNLABELLED, Prototypes
from medssl_cli.nn.clusters.memory import MemoryBank, Queue, cluster_bank
from tests.unit.test_kmeans import POINTS, generator


def batch(seed: int, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=generator(seed)), dim=-1)


def test_the_newest_come_first_and_the_oldest_leave() -> None:
    queue = Queue(num_views=2, length=5, embedding_dim=3)
    batches = [batch(seed, 2, 2, 3) for seed in range(4)]

    for rows, is_full in zip(batches, [False, False, True, True], strict=True):
        queue.push(rows * 5)
        assert queue.is_full == is_full

    expected = torch.cat(batches[::-1], dim=1)[:, :5]
    torch.testing.assert_close(queue.own_rows(), expected)


def test_a_queue_is_resumed_exactly() -> None:
    queue = Queue(num_views=1, length=4, embedding_dim=3)
    for seed in range(3):
        queue.push(batch(seed, 1, 2, 3))
    resumed = Queue(num_views=1, length=4, embedding_dim=3)
    resumed.load_state_dict(copy.deepcopy(queue.state_dict()))

    for part in (queue, resumed):
        part.push(batch(9, 1, 2, 3))

    assert resumed.is_full
    assert torch.equal(resumed.rows, queue.rows)


def filled_bank(num_views: int = 1) -> MemoryBank:
    """Image i of eleven is point i of the circle; images 8 to 10 were never seen."""
    bank = MemoryBank(num_views, num_images=11, embedding_dim=2)
    order = torch.randperm(8, generator=generator())
    for ids in order.split(2):
        bank.store(ids, (POINTS[ids].float() * 3).expand(num_views, -1, -1))
    return bank


def test_the_bank_keeps_an_image_at_its_number() -> None:
    bank = filled_bank()

    assert bank.is_filled.tolist() == [True] * 8 + [False] * 3
    torch.testing.assert_close(bank.embeddings[0, :8], POINTS.float())

    bank.store(torch.tensor([3]), torch.tensor([[[0.0, -2.0]]]))

    assert bank.embeddings[0, 3].tolist() == [0, -1]
    torch.testing.assert_close(bank.embeddings[0, 4], POINTS[4].float())


def test_clusters_of_the_bank_become_the_prototypes() -> None:
    bank, prototypes = filled_bank(num_views=2), Prototypes(2, [3, 2, 8], is_trained=False)

    labels = cluster_bank(bank, prototypes, generator())

    assert (labels[:, 8:] == UNLABELLED).all()
    for head, scores in enumerate(prototypes(POINTS.float())):
        assert torch.equal(labels[head, :8], scores.argmax(dim=1))
        torch.testing.assert_close(prototypes.heads[head].norm(dim=1), torch.ones(scores.shape[1]))
    # eight prototypes for eight points: each its own
    assert sorted(labels[2, :8].tolist()) == list(range(8))


def test_heads_take_turns_with_the_views() -> None:
    bank = filled_bank(num_views=2)
    bank.embeddings[1] = bank.embeddings[1].flip(1)
    prototypes = Prototypes(2, [8, 8], is_trained=False)

    cluster_bank(bank, prototypes, generator())

    for head in range(2):
        drawn = sorted(map(tuple, prototypes.heads[head].tolist()))
        stored = sorted(map(tuple, bank.embeddings[head, :8].tolist()))
        torch.testing.assert_close(torch.tensor(drawn), torch.tensor(stored))


def test_clusters_depend_on_nothing_but_bank_and_generator() -> None:
    bank, twins = filled_bank(), [Prototypes(2, [3], is_trained=False) for _ in range(2)]

    first, second = (cluster_bank(bank, prototypes, generator(5)) for prototypes in twins)

    assert torch.equal(first, second)
    assert torch.equal(twins[0].heads[0], twins[1].heads[0])


def test_more_prototypes_than_seen_images_are_refused() -> None:
    with pytest.raises(ValueError, match="9 prototypes"):
        cluster_bank(filled_bank(), Prototypes(2, [9], is_trained=False), generator())
