"""Clustering on two processes gives what one process gets from the whole batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributed

from medssl_cli.nn.clusters.group_table import GroupTable
from medssl_cli.nn.clusters.health import cluster_health
from medssl_cli.nn.clusters.kmeans import draw_start, spherical_kmeans
from medssl_cli.nn.clusters.losses import UNLABELLED, Prototypes, cluster_prediction_loss, swapped_prediction_loss
from medssl_cli.nn.clusters.memory import MemoryBank, Queue, cluster_bank
from medssl_cli.nn.clusters.sinkhorn import sinkhorn_codes
from medssl_cli.nn.distributed import own_share
from tests.two_processes import WORLD, results_of_each

IMAGES = 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def own(rows: Tensor, dim: int = 0) -> Tensor:
    """This process's images; all of them where there is one process."""
    return own_share(rows.transpose(0, dim)).transpose(0, dim)


def scores(seed: int) -> Tensor:
    return random(IMAGES, 5, seed=seed).tanh()


# Each returns what is joined in the order of the ranks (`rows`), averaged (`means`) or equal everywhere (`same`).
Results = dict[str, dict[str, Tensor]]


def codes() -> Results:
    uneven = scores(0)[:5] if distributed.is_initialized() and distributed.get_rank() == 0 else scores(0)[5:]
    return {
        "rows": {
            "float32": sinkhorn_codes(own(scores(0))),
            "float64": sinkhorn_codes(own(scores(0)).double(), epsilon=0.01, num_iterations=5),
            "uneven": sinkhorn_codes(uneven if distributed.is_initialized() else scores(0)),
        }
    }


def swapped() -> Results:
    queue = Queue(num_views=2, length=12, embedding_dim=3)
    for seed in range(2):
        queue.push(own(random(2, IMAGES, 3, seed=seed), dim=1))
    assert queue.is_full
    prototypes = random(4, 3, seed=5).requires_grad_()
    views = [own(random(IMAGES, 3, seed=seed)) @ prototypes.T for seed in (6, 7, 8)]
    loss = swapped_prediction_loss(views, num_global=2, queued_scores=list(queue.own_rows() @ prototypes.T))
    return {
        "means": {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, prototypes)[0]},
        "same": {"queue": queue.rows},
    }


def clustered() -> Results:
    bank = MemoryBank(num_views=2, num_images=21, embedding_dim=3)
    ids = torch.randperm(21, generator=generator())[: 2 * IMAGES]
    for part in ids.split(IMAGES):
        bank.store(own(part), own(random(2, IMAGES, 3, seed=int(part[0])), dim=1))
    prototypes = Prototypes(3, [4, 6, 3], is_trained=False)
    labels = cluster_bank(bank, prototypes, generator(1), num_rounds=3)
    num_labelled = (labels[0, :IMAGES] != UNLABELLED).unflatten(0, (WORLD, -1)).sum(dim=1)
    assert num_labelled[0] != num_labelled[1]  # so that the mean of two means would be another number

    embeddings = own(random(IMAGES, 3, seed=9)).requires_grad_()
    own_labels = own(labels[:, :IMAGES], dim=1)
    weight = torch.eye(3).requires_grad_()
    loss = cluster_prediction_loss([part[None] for part in prototypes(embeddings @ weight)], own_labels)
    return {
        "means": {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, weight)[0]},
        "same": {"labels": labels, "bank": bank.embeddings, "filled": bank.is_filled}
        | {f"prototypes {index}": head.detach() for index, head in enumerate(prototypes.heads)},
    }


def kmeans() -> Results:
    points = random(31, 3)
    own_points = own(points)
    clusters = spherical_kmeans(own_points, draw_start(own_points, 5, generator()), num_rounds=4)
    return {
        "rows": {"labels": clusters.labels},
        "same": {"prototypes": clusters.prototypes, "mean cosines": clusters.mean_cosines},
    }


def health() -> Results:
    figures = cluster_health(sinkhorn_codes(own(scores(3))), own(random(IMAGES, 4, seed=1)))
    table = GroupTable(5)
    table.begin(torch.arange(IMAGES) % 2)
    table.add(own(torch.arange(IMAGES)), sinkhorn_codes(own(scores(3))))
    return {
        "same": {
            "figures": torch.tensor([figures.usage, figures.used_share, figures.entropy, figures.spread]),
            "table": table.counts,
        }
    }


CASES: dict[str, Callable[[], Results]] = {
    "codes": codes,
    "swapped": swapped,
    "clustered": clustered,
    "kmeans": kmeans,
    "health": health,
}


def compute(rank: int) -> dict[str, Results]:
    return {name: case() for name, case in CASES.items()}


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Results]]:
    """Results of each process, in order of rank."""
    return results_of_each(tmp_path_factory.mktemp("spread"), compute)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name: str, spread: list[dict[str, Results]]) -> None:
    together, apart = CASES[name](), [results[name] for results in spread]
    assert together

    for kind, values in together.items():
        for key, expected in values.items():
            parts = [results[kind][key] for results in apart]
            if kind == "same":
                assert torch.equal(parts[0], parts[1]), key
            found = {"rows": torch.cat, "means": lambda x: torch.stack(x).mean(0), "same": lambda x: x[0]}[kind](parts)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_assigning_each_half_alone_gives_something_else() -> None:
    """So the test above would notice."""
    halves = torch.cat([sinkhorn_codes(half) for half in scores(0).chunk(2)])

    assert (halves - sinkhorn_codes(scores(0))).abs().max() > 0.01
