"""What every network that gives one class per voxel needs: names of classes, the loss, and its trivial value.

Shapes: B batch, K classes with background, X Y Z space.
"""

from typing import Annotated, Final

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from medssl_cli.nn.distributed import sum_over_processes

SMOOTH: Final = 1e-5


def _without_gaps(classes: dict[int, str]) -> dict[int, str]:
    if sorted(classes) != list(range(1, len(classes) + 1)):
        raise ValueError("label values must be 1, 2, 3 ... without gaps")
    if len(set(classes.values())) != len(classes):
        raise ValueError("class names must differ")
    return classes


Classes = Annotated[dict[int, str], Field(min_length=1), AfterValidator(_without_gaps)]


def dice_loss(probabilities: Tensor, target: Tensor, *, smooth: float = SMOOTH) -> Tensor:
    """One minus soft Dice, pooled over the batch of all processes and averaged over classes.

    Pooling over the batch (Milletari et al., V-Net, https://arxiv.org/abs/1606.04797, equation 1, with the batch as
    one volume) keeps small structures that are absent from single crops from dominating.

    Args:
        probabilities: `[B, K, X, Y, Z]`.
        target: One-hot of the same shape.
        smooth: Added above and below; an absent class that is predicted nowhere costs nothing.

    Returns:
        Scalar in [0, 1].
    """
    axes = (0, 2, 3, 4)
    overlap = sum_over_processes((probabilities * target).sum(dim=axes))
    total = sum_over_processes(probabilities.sum(dim=axes) + target.sum(dim=axes))
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def segmentation_losses(logits: Tensor, labels: Tensor, *, include_background: bool = False) -> dict[str, Tensor]:
    """Cross-entropy and soft Dice (`cross_entropy`, `dice`), both in float32; their sum is the loss.

    Args:
        logits: `[B, K, X, Y, Z]`.
        labels: `[B, X, Y, Z]` int64; values beyond the classes count as background.
        include_background: Count background as a structure of the Dice loss.
    """
    num_classes = logits.shape[1]
    target = F.one_hot(_known(labels, num_classes), num_classes).movedim(-1, 1).float()
    log_probabilities = logits.float().log_softmax(dim=1)
    first = 0 if include_background else 1
    return {
        "cross_entropy": -(target * log_probabilities).sum(dim=1).mean(),
        "dice": dice_loss(log_probabilities.exp()[:, first:], target[:, first:]),
    }


def frequencies(labels: Tensor, num_classes: int) -> Tensor:
    """Share of voxels of each class in each batch of labels [N, ...], float64 [N, K]."""
    counts = [torch.bincount(_known(batch, num_classes).flatten(), minlength=num_classes) for batch in labels]
    return torch.stack(counts).double() / labels[0].numel()


def best_constant_loss(shares: Tensor, *, num_iterations: int = 10) -> Tensor:
    """Least cross-entropy plus Dice loss, without background, that the same answer in every voxel can have.

    With f the shares of classes in a batch, one distribution p costs -sum_k f_k log p_k, and the mean over structures
    of 1 - 2 p_k f_k / (p_k + f_k). This is convex in p and falls with every p_k, so where p does not change when each
    p_k is multiplied by the negative slope in p_k, and the result scaled to sum to 1, it is at the minimum.

    Args:
        shares: Of voxels of each class in each of some batches, [N, K]; rows sum to 1.
        num_iterations: Of the fixed point; five reach it to ten digits.

    Returns:
        Scalar: mean over the batches, of the p that is best for all of them.
    """
    f = shares.double()
    structures = f[:, 1:]
    p = f.mean(0)
    for _ in range(num_iterations):
        slope = f / p.clamp_min(1e-12)
        slope[:, 1:] += 2 * structures.square() / (p[1:] + structures).clamp_min(1e-12).square() / structures.shape[1]
        p = p * slope.mean(0)
        p = p / p.sum()
    cross_entropy = -torch.special.xlogy(f, p).sum(1)
    dice = (2 * p[1:] * structures + SMOOTH**2) / (p[1:] + structures + SMOOTH**2)
    return (cross_entropy + (1 - dice).mean(1)).mean()


def _known(labels: Tensor, num_classes: int) -> Tensor:
    """Values beyond the classes become background."""
    return torch.where(labels < num_classes, labels, 0)
