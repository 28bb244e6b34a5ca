"""Figures that tell whether learning by clusters has collapsed, and the limits past which it has.

The signs are those that users of SwAV and DeepCluster-V2 reported; the limits are ours.

Shapes: B images of this process, E embedding, K prototypes.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.nn.distributed import sum_over_processes

MIN_USAGE: Final = 0.1
MIN_SPREAD: Final = 0.1
MAX_ENTROPY: Final = 0.95
MAX_GROUPS: Final = 0.8


@dataclass(frozen=True)
class ClusterHealth:
    """Figures of one step over the batches of all processes.

    Args:
        usage: Perplexity of the mean code divided by K: 1 if all prototypes are used alike, 1/K if one is.
        used_share: Share of the prototypes that are some image's first choice; at most images / K.
        entropy: Mean entropy of the codes divided by log K: 0 for hard codes, 1 for codes that say nothing.
        spread: Standard deviation of the unit embeddings' elements, times sqrt(E): about 1 if they point everywhere,
            0 if they are all equal.
        groups: How much the clusters say of the images' modality and of nothing else, see `GroupTable.information`.
    """

    usage: float
    used_share: float
    entropy: float
    spread: float
    groups: float = 0.0


@torch.no_grad()
def cluster_health(codes: Tensor, embeddings: Tensor) -> ClusterHealth:
    """Measure a step.

    Args:
        codes: Rows sum to 1, [B, K] with K > 1.
        embeddings: [B, E] of any length.
    """
    num_prototypes = codes.shape[1]
    num_images = sum_over_processes(codes.new_tensor(len(codes)))
    mean_code = sum_over_processes(codes.sum(0)) / num_images
    first_choices = sum_over_processes(F.one_hot(codes.argmax(1), num_prototypes).sum(0))
    entropy = sum_over_processes(torch.special.entr(codes).sum()) / num_images
    unit = F.normalize(embeddings, dim=1)
    mean = sum_over_processes(unit.sum(0)) / num_images
    variance = sum_over_processes((unit - mean).square().sum(0)) / num_images
    figures = [
        torch.special.entr(mean_code).sum().exp() / num_prototypes,
        (first_choices > 0).double().mean(),
        entropy / math.log(num_prototypes),
        variance.sqrt().mean() * math.sqrt(embeddings.shape[1]),
    ]
    return ClusterHealth(*torch.stack([figure.double() for figure in figures]).tolist())


def alarms(health: ClusterHealth) -> list[str]:
    """What is wrong, in words; empty if nothing is."""
    checks = [
        (health.usage < MIN_USAGE, f"only {health.usage:.1%} of the prototypes carry the codes"),
        (health.spread < MIN_SPREAD, f"embeddings are nearly equal: spread {health.spread:.3f} of 1"),
        (health.groups > MAX_GROUPS, f"clusters say little but the modality: information {health.groups:.2f} of 1"),
        (health.entropy > MAX_ENTROPY, f"codes are nearly uniform: {health.entropy:.1%} of the largest entropy"),
    ]
    return [text for is_wrong, text in checks if is_wrong]
