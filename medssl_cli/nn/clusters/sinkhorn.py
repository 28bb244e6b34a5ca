"""Soft assignment of samples to prototypes that uses all prototypes alike, and how many prototypes a batch can carry.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (SwAV), NeurIPS 2020, section
3.1, equations 3 to 5: https://arxiv.org/abs/2006.09882. Cuturi, Sinkhorn Distances, NeurIPS 2013: https://arxiv.org/abs/1306.0895

Shapes: B samples of this process, K prototypes.
"""

import math
from typing import Final

import torch
from torch import Tensor

from medssl_cli.nn.distributed import max_over_processes, sum_over_processes

# Prototypes per assigned sample of both official SwAV settings: 3000 for 4096, be they a batch or 256 and a queue.
PUBLISHED_PROTOTYPES: Final = 3000
PUBLISHED_ASSIGNED: Final = 4096


@torch.no_grad()
def sinkhorn_codes(scores: Tensor, *, epsilon: float = 0.05, num_iterations: int = 3) -> Tensor:
    """Codes that follow the scores while every prototype gets its share of the samples of all processes.

    Alternately scales exp(scores / epsilon) so that each prototype has the mass 1/K and each sample 1/B. The samples
    come last, so rows sum to 1 and prototypes are equal only in the limit. In the logarithmic domain neither a small
    epsilon nor half-precision scores overflow, and the constants 1/K and 1/B cancel, so processes may hold unequal
    batches.

    Args:
        scores: Cosines [B, K], at least one row in each process; computed in float32 or wider.
        epsilon: Softness of the codes, > 0.
        num_iterations: Number of iterations of both scalings.

    Returns:
        [B, K] without gradient; 1/K everywhere for constant scores.
    """
    codes = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    for _ in range(num_iterations):
        codes = codes - _log_sum_exp_of_samples(codes)
        codes = codes.log_softmax(dim=1)
    return codes.exp()


def most_prototypes(num_assigned: int) -> int:
    """Largest number of prototypes that keeps the official ratio of 3000 prototypes to 4096 assigned samples.

    Args:
        num_assigned: Samples that are assigned together: the batch of all processes and the queue.

    Returns:
        At least 1.
    """
    return max(1, num_assigned * PUBLISHED_PROTOTYPES // PUBLISHED_ASSIGNED)


def queue_length(num_prototypes: int, global_batch: int) -> int:
    """Samples that a queue must add to a batch for the official ratio, rounded up to whole batches; 0 if none.

    Args:
        num_prototypes: K.
        global_batch: Samples of all processes.
    """
    missing = math.ceil(num_prototypes * PUBLISHED_ASSIGNED / PUBLISHED_PROTOTYPES) - global_batch
    return max(0, math.ceil(missing / global_batch) * global_batch)


def entropy_floor(num_prototypes: int, num_assigned: int) -> float:
    """Least mean entropy in nats of converged codes, which no swapped prediction loss can go below: ln(K / B), or 0.

    A prototype has the mass 1/K, so of B samples none can put more than B/K on it.
    """
    return max(0.0, math.log(num_prototypes / num_assigned))


def _log_sum_exp_of_samples(logits: Tensor) -> Tensor:
    """Over the rows of all processes, [K]."""
    largest = max_over_processes(logits.amax(dim=0))
    return sum_over_processes((logits - largest).exp().sum(dim=0)).log() + largest
