"""Spherical k-means over embeddings that may be spread over processes.

Dhillon and Modha, Concept Decompositions for Large Sparse Text Data Using Clustering, Machine Learning 42, 2001. As
used by DeepCluster-V2: Caron et al., NeurIPS 2020, appendix: https://arxiv.org/abs/2006.09882

Shapes: N embeddings of this process, E embedding, K prototypes.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.nn.distributed import gather, rank, sum_over_processes

ROWS_AT_ONCE: Final = 16_384


@dataclass(frozen=True)
class Clusters:
    """What k-means found.

    Args:
        prototypes: Unit rows, [K, E], equal in every process.
        labels: Nearest prototype of each of this process's embeddings, integers [N].
        mean_cosines: Mean cosines of all embeddings to their prototype, before each round and at the end, [rounds + 1];
            never falls.
    """

    prototypes: Tensor
    labels: Tensor
    mean_cosines: Tensor


@torch.no_grad()
def spherical_kmeans(embeddings: Tensor, start: Tensor, *, num_rounds: int = 10) -> Clusters:
    """Move prototypes to the mean directions of the embeddings nearest to them.

    A prototype without embeddings stays where it is, as in DeepCluster-V2.

    Args:
        embeddings: [N, E], of any length; N may differ between processes and be 0 in some.
        start: First prototypes [K, E], equal in every process: see `draw_start`.
        num_rounds: Number of rounds of assigning and moving; the labels are those of a last assignment after them.
    """
    points = _unit(embeddings)
    prototypes = _unit(start)
    mean_cosines = []
    for _ in range(num_rounds):
        labels, mean_cosine = _assign(points, prototypes)
        mean_cosines.append(mean_cosine)
        sums, counts = _totals(points, labels, num_prototypes=len(start))
        prototypes = torch.where(counts[:, None] > 0, _unit(sums), prototypes)
    labels, mean_cosine = _assign(points, prototypes)
    return Clusters(prototypes, labels, torch.stack([*mean_cosines, mean_cosine]))


@torch.no_grad()
def draw_start(embeddings: Tensor, num_prototypes: int, generator: torch.Generator) -> Tensor:
    """Draw different embeddings of all processes as first prototypes.

    The draw does not depend on how the embeddings are spread over the processes. (DeepCluster-V2 draws from the first
    process's embeddings only.)

    Args:
        embeddings: [N, E]; the processes' rows count in the order of the ranks.
        num_prototypes: K.
        generator: Generator of random numbers on the CPU, in the same state in every process.

    Returns:
        [K, E], equal in every process.

    Raises:
        ValueError: There are fewer embeddings than prototypes.
    """
    counts = gather(torch.tensor([len(embeddings)], device=embeddings.device)).tolist()
    if sum(counts) < num_prototypes:
        raise ValueError(f"{num_prototypes} prototypes need as many embeddings; there are {sum(counts)}")
    chosen = torch.randperm(sum(counts), generator=generator)[:num_prototypes] - sum(counts[: rank()])
    is_own = (chosen >= 0) & (chosen < len(embeddings))
    start = embeddings.new_zeros(num_prototypes, embeddings.shape[1])
    start[is_own.to(start.device)] = embeddings[chosen[is_own].to(start.device)]
    return sum_over_processes(start)


def _assign(points: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest prototypes of this process's points, [N], and the mean cosine of all points."""
    nearest = [(chunk @ prototypes.T).max(dim=1) for chunk in points.split(ROWS_AT_ONCE)]
    total = torch.stack([chunk.values.sum() for chunk in nearest]).sum()
    sums = sum_over_processes(torch.stack([total, total.new_tensor(len(points))]))
    return torch.cat([chunk.indices for chunk in nearest]), sums[0] / sums[1]


def _totals(points: Tensor, labels: Tensor, *, num_prototypes: int) -> tuple[Tensor, Tensor]:
    """Sums [K, E] and counts [K] of the points with each label, over all processes.

    By a product with one-hot labels: a scattered sum would be added up in another order at every run on a GPU.
    """
    sums = points.new_zeros(num_prototypes, points.shape[1])
    for chunk, chunk_labels in zip(points.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True):
        sums += F.one_hot(chunk_labels, num_prototypes).to(points.dtype).T @ chunk
    return sum_over_processes(sums), sum_over_processes(torch.bincount(labels, minlength=num_prototypes))


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
