"""Embeddings of earlier steps: a queue of the latest ones, and a bank with a place for every image.

Both hold the same rows in every process, so one checkpoint restores them for any number of processes, and the
broadcast of buffers by distributed data parallelism changes nothing. Work on the rows is shared out with `own_share`.

Shapes: B images of this process, W processes, A assigning views, E embedding, K prototypes, H heads, Q queue, N images.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.nn.clusters.kmeans import draw_start, spherical_kmeans
from medssl_cli.nn.clusters.losses import UNLABELLED, Prototypes
from medssl_cli.nn.distributed import gather, own_share, sum_over_processes


class Queue(nn.Module):
    """The latest embeddings of each assigning view, newest first.

    Args:
        num_views: A.
        length: Q, for all processes together.
        embedding_dim: E.
    """

    rows: Tensor
    num_filled: Tensor

    def __init__(self, num_views: int, length: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(num_views, length, embedding_dim))
        self.register_buffer("num_filled", torch.zeros((), dtype=torch.long))

    @property
    def is_full(self) -> bool:
        """Whether all rows hold embeddings; before that the queue must not be used."""
        return int(self.num_filled) == self.rows.shape[1]

    def own_rows(self) -> Tensor:
        """This process's part of the queue, [A, Q / W, E]: all parts together are assigned once, not W times."""
        return own_share(self.rows.transpose(0, 1)).transpose(0, 1)

    @torch.no_grad()
    def push(self, embeddings: Tensor) -> None:
        """Put the batch of all processes in front and drop the oldest rows.

        Args:
            embeddings: [A, B, E] with the same B in every process; stored with length 1. Nothing is stored if any
                number is not finite: the step is left out then.
        """
        newest = gather(F.normalize(embeddings.transpose(0, 1).to(self.rows.dtype), dim=-1)).transpose(0, 1)
        if not newest.isfinite().all():
            return
        length = self.rows.shape[1]
        self.rows.copy_(torch.cat([newest, self.rows], dim=1)[:, :length])
        self.num_filled.add_(newest.shape[1]).clamp_(max=length)


class MemoryBank(nn.Module):
    """The last embedding of every image of the training set, by its number there.

    Args:
        num_views: A, banks that are kept side by side.
        num_images: N. Numbers must be unique over all data sets together.
        embedding_dim: E.
    """

    embeddings: Tensor
    is_filled: Tensor

    def __init__(self, num_views: int, num_images: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(num_views, num_images, embedding_dim))
        self.register_buffer("is_filled", torch.zeros(num_images, dtype=torch.bool))

    @torch.no_grad()
    def store(self, ids: Tensor, embeddings: Tensor) -> None:
        """Keep the embeddings of the batches of all processes.

        Args:
            ids: Numbers of the images, different ones in all processes, integers [B] with the same B in each.
            embeddings: [A, B, E]; stored with length 1. Images whose numbers are not finite keep what they had.
        """
        rows = gather(F.normalize(embeddings.transpose(0, 1).to(self.embeddings.dtype), dim=-1)).transpose(0, 1)
        places = gather(ids.to(self.is_filled.device))
        is_finite = rows.isfinite().all(dim=2).all(dim=0)
        self.embeddings[:, places[is_finite]] = rows[:, is_finite]
        self.is_filled[places[is_finite]] = True


@torch.no_grad()
def cluster_bank(
    bank: MemoryBank, prototypes: Prototypes, generator: torch.Generator, *, num_rounds: int = 10
) -> Tensor:
    """Cluster the bank once per head and write the centres into the prototypes.

    Head h clusters the embeddings of view h modulo A. DeepCluster-V2: https://arxiv.org/abs/2006.09882

    Args:
        bank: Bank with at least as many filled rows as the largest head has prototypes.
        prototypes: Prototypes with `is_trained=False`, or they leave their clusters at the next step.
        generator: Generator of random numbers on the CPU, in the same state in every process.
        num_rounds: Number of rounds of k-means.

    Returns:
        Cluster of every image, integers [H, N], equal in every process; `UNLABELLED` for images not seen yet.

    Raises:
        ValueError: A head has more prototypes than the bank has filled rows.
    """
    filled = bank.is_filled.nonzero().squeeze(1)
    labels = torch.full((len(prototypes.heads), len(bank.is_filled)), UNLABELLED, device=filled.device)
    for index, head in enumerate(prototypes.heads):
        own = own_share(filled)
        embeddings = bank.embeddings[index % len(bank.embeddings), own]
        start = draw_start(embeddings, len(head), generator)
        clusters = spherical_kmeans(embeddings, start, num_rounds=num_rounds)
        prototypes.write_(index, clusters.prototypes)
        found = torch.zeros_like(labels[index])
        found[own] = clusters.labels
        labels[index, filled] = sum_over_processes(found)[filled]
    return labels
