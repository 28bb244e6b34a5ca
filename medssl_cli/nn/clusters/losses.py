"""Losses that ask two views of one image for the same cluster, and the prototypes they use.

Swapped prediction (SwAV) and DeepCluster-V2: Caron et al., Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments, NeurIPS 2020: https://arxiv.org/abs/2006.09882

Shapes: B images of this process, V views, E embedding, K prototypes, H heads, Q queued images.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.nn.clusters.sinkhorn import sinkhorn_codes
from medssl_cli.nn.distributed import sum_over_processes, world_size

UNLABELLED: Final = -100


def swapped_prediction_loss(
    scores: Sequence[Tensor],
    *,
    num_global: int,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    num_iterations: int = 3,
    queued_scores: Sequence[Tensor] | None = None,
) -> Tensor:
    """Predict each global view's code from every other view of the same image.

    SwAV, equations 1 and 2, with several crops (section 3.2): https://arxiv.org/abs/2006.09882

    Args:
        scores: Cosines per view of B images to K prototypes, [B, K]; global views first, at least two views.
        num_global: Leading views that give codes. Local views show too little to be assigned.
        temperature: Temperature of the prediction's softmax.
        epsilon: Softness of the codes, see `sinkhorn_codes`.
        num_iterations: Number of iterations of `sinkhorn_codes`.
        queued_scores: Scores per global view, [Q, K], of earlier images with today's prototypes. They are assigned
            together with the batch, which alone may be too small to be spread over K prototypes.

    Returns:
        Scalar; log K when the scores carry no information, never below the mean entropy of the codes.
    """
    log_predictions = [_log_prediction(view, temperature) for view in scores]
    codes = [
        _codes(view, None if queued_scores is None else queued_scores[index], epsilon, num_iterations)
        for index, view in enumerate(scores[:num_global])
    ]
    losses = [
        -(code * log_prediction).sum(dim=1).mean()
        for source, code in enumerate(codes)
        for target, log_prediction in enumerate(log_predictions)
        if source != target
    ]
    return torch.stack(losses).mean()


def cluster_prediction_loss(scores: Sequence[Tensor], labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Predict from each view the cluster that k-means found for the image: the loss of DeepCluster-V2.

    Each head has its own clusters, and all heads weigh alike.

    Args:
        scores: Cosines per head, [V, B, K], of all views to the head's prototypes; K may differ between heads.
        labels: Cluster of each image per head, integers [H, B]; `UNLABELLED` is ignored.
        temperature: Temperature of the prediction's softmax.

    Returns:
        Scalar whose mean over processes is the mean over all labelled images of all processes; log K when the scores
        carry no information, 0 with zero gradients if no image is labelled.
    """
    num_labelled = sum_over_processes((labels != UNLABELLED).sum(dim=1)).clamp(min=1) / world_size()
    sums = [_mean_over_views(*head, temperature) for head in zip(scores, labels, strict=True)]
    return (torch.stack(sums) / num_labelled).mean()


class Prototypes(nn.Module):
    """Unit cluster centres of one or more heads.

    Trained prototypes (SwAV) leave the unit sphere with every step: call `normalise_` before each forward pass. Those
    that k-means writes (DeepCluster-V2) are buffers: nothing moves them in between, and every process has them whole.

    Args:
        embedding_dim: E.
        counts: K of each head.
        is_trained: Whether gradients reach them.
    """

    def __init__(self, embedding_dim: int, counts: Sequence[int], *, is_trained: bool = True) -> None:
        super().__init__()
        self._num_heads = len(counts)
        for number, count in enumerate(counts):
            centres = F.normalize(torch.randn(count, embedding_dim), dim=1)
            if is_trained:
                self.register_parameter(f"head{number}", nn.Parameter(centres))
            else:
                self.register_buffer(f"head{number}", centres)

    @property
    def heads(self) -> list[Tensor]:
        """Centres of each head, [K, E]."""
        return [getattr(self, f"head{number}") for number in range(self._num_heads)]

    def forward(self, embeddings: Tensor) -> list[Tensor]:
        """Cosines of embeddings [..., E] of any length to the prototypes, [..., K] per head.

        In float32 or wider, also under autocast: codes divide them by a small number.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)
            return [unit @ head.to(unit.dtype).T for head in self.heads]

    @torch.no_grad()
    def normalise_(self) -> None:
        """Give all prototypes length 1."""
        for head in self.heads:
            head.copy_(F.normalize(head, dim=1))

    @torch.no_grad()
    def write_(self, head: int, prototypes: Tensor) -> None:
        """Replace the prototypes of a head by others, [K, E]."""
        self.heads[head].copy_(prototypes)

    def drop_gradients(self) -> None:
        """Forget the gradients of this step. Without one, no optimiser moves or decays a parameter."""
        for head in self.heads:
            head.grad = None


def _log_prediction(scores: Tensor, temperature: float) -> Tensor:
    """Logarithms of predicted probabilities, in float32 or wider."""
    return (scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature).log_softmax(dim=-1)


def _codes(scores: Tensor, queued: Tensor | None, epsilon: float, num_iterations: int) -> Tensor:
    """Codes [B, K] of a batch that was assigned together with queued images."""
    assigned = scores.detach() if queued is None else torch.cat([scores.detach(), queued.detach()])
    return sinkhorn_codes(assigned, epsilon=epsilon, num_iterations=num_iterations)[: len(scores)]


def _mean_over_views(scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross entropies of one head, summed over labelled images."""
    log_predictions = _log_prediction(scores, temperature).flatten(0, 1)
    total = F.nll_loss(log_predictions, labels.repeat(len(scores)), ignore_index=UNLABELLED, reduction="sum")
    return total / len(scores)
