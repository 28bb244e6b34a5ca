"""What every network that gives one class per voxel, or regions, needs: the loss, and its trivial value.

Shapes: B batch, K classes with background, or regions, X Y Z space.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl_cli.base.classes import IGNORE
from medssl_cli.nn.distributed import sum_over_processes, world_size

SMOOTH: Final = 1e-5
DiceRule = Literal["batch", "sample"]
"""Whether Dice pools the voxels of a whole batch, or is a mean over its samples."""


def dice_loss(probabilities: Tensor, target: Tensor, *, smooth: float = SMOOTH, rule: DiceRule = "batch") -> Tensor:
    """One minus soft Dice, averaged over classes; pooled over the batch of all processes, or averaged over its samples.

    Pooling over the batch (Milletari et al., V-Net, https://arxiv.org/abs/1606.04797, equation 1, with the batch as
    one volume) keeps small structures that are absent from single crops from dominating.

    Args:
        probabilities: `[B, K, X, Y, Z]`.
        target: One-hot, or regions, of the same shape.
        smooth: Added above and below; an absent class that is predicted nowhere costs nothing.
        rule: `batch` pools, `sample` averages.

    Returns:
        Scalar in [0, 1].
    """
    if rule == "sample":
        overlap, total = (part.sum(dim=(2, 3, 4)) for part in (probabilities * target, probabilities + target))
        return (1 - (2 * overlap + smooth) / (total + smooth)).mean()
    axes = (0, 2, 3, 4)
    overlap = sum_over_processes((probabilities * target).sum(dim=axes))
    total = sum_over_processes(probabilities.sum(dim=axes) + target.sum(dim=axes))
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def tversky_loss(
    probabilities: Tensor,
    target: Tensor,
    *,
    false_weight: float,
    missed_weight: float,
    smooth: float = SMOOTH,
    rule: DiceRule = "batch",
) -> Tensor:
    """One minus the Tversky index, averaged over classes: as Dice, but what is missed may cost more than what is false.

    Salehi et al., Tversky Loss Function for Image Segmentation Using 3D Fully Convolutional Deep Networks, MLMI 2017,
    https://arxiv.org/abs/1706.05721, equation 3. Weights of 0.5 and 0.5 make it `dice_loss`.

    Args:
        probabilities: `[B, K, X, Y, Z]`.
        target: One-hot, or regions, of the same shape.
        false_weight: Weight of voxels that are marked and should not be.
        missed_weight: Weight of voxels that should be marked and are not.
        smooth: As in `dice_loss`.
        rule: See `dice_loss`.

    Returns:
        Scalar in [0, 1].
    """
    axes = (2, 3, 4) if rule == "sample" else (0, 2, 3, 4)
    parts = [(part).sum(dim=axes) for part in (probabilities * target, probabilities, target)]
    overlap, marked, there = parts if rule == "sample" else map(sum_over_processes, parts)
    cost = false_weight * (marked - overlap) + missed_weight * (there - overlap)
    return (1 - (overlap + smooth / 2) / (overlap + cost + smooth / 2)).mean()


@dataclass(frozen=True)
class LossTerms:
    """Which terms a loss of voxels has.

    Args:
        rule: See `dice_loss`.
        include_background: Count background as a structure of the overlap; regions have none.
        tversky: Weights of false and of missed voxels of a Tversky loss instead of Dice.
        focus: Exponent of a focal cross-entropy (Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002, equation 4):
            voxels count by the share to which they are not right yet; 0 for plain cross-entropy.
    """

    rule: DiceRule = "batch"
    include_background: bool = False
    tversky: tuple[float, float] | None = None
    focus: float = 0.0

    def overlap(self, probabilities: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss of overlap under its name, `dice` or `tversky`."""
        if self.tversky is None:
            return {"dice": dice_loss(probabilities, target, rule=self.rule)}
        false, missed = self.tversky
        return {
            "tversky": tversky_loss(probabilities, target, false_weight=false, missed_weight=missed, rule=self.rule)
        }


PLAIN: Final = LossTerms()


def voxel_losses(logits: Tensor, labels: Tensor, terms: LossTerms = PLAIN) -> dict[str, Tensor]:
    """Cross-entropy and soft Dice (`cross_entropy`, `dice` or `tversky`), both in float32; their sum is the loss.

    Args:
        logits: `[B, K, X, Y, Z]`.
        labels: `[B, X, Y, Z]` int64; `IGNORE` counts for nothing, other values beyond the classes as background.
        terms: See `LossTerms`.
    """
    num_classes = logits.shape[1]
    is_judged = (labels != IGNORE)[:, None].float()
    num_judged = sum_over_processes(is_judged.sum()).clamp(min=1) / world_size()
    target = F.one_hot(_known(labels, num_classes), num_classes).movedim(-1, 1).float() * is_judged
    log_probabilities = logits.float().log_softmax(dim=1)
    probabilities = log_probabilities.exp() * is_judged
    first = 0 if terms.include_background else 1
    entropies = target * log_probabilities
    if terms.focus > 0:
        entropies = entropies * (1 - log_probabilities.exp()).clamp(min=0).pow(terms.focus)
    return {
        "cross_entropy": -entropies.sum() / num_judged,
        **terms.overlap(probabilities[:, first:], target[:, first:]),
    }


def region_losses(logits: Tensor, regions: Tensor, terms: LossTerms = PLAIN) -> dict[str, Tensor]:
    """Binary cross-entropy and soft Dice of regions that may overlap, both in float32; their sum is the loss.

    With one sigmoid per region and no background, as for the nested regions of brain tumours (Isensee et al., nnU-Net
    for Brain Tumor Segmentation, https://arxiv.org/abs/2011.00848).

    Args:
        logits: `[B, K, X, Y, Z]`.
        regions: `[B, K, X, Y, Z]`, 1 inside and 0 outside; `IGNORE` counts for nothing.
        terms: See `LossTerms`.

    Returns:
        `binary_cross_entropy`, the mean over judged voxels and regions, log 2 where the logits say nothing; and `dice`.
    """
    logits = logits.float()
    is_judged = (regions != IGNORE).float()
    target = (regions == 1).float()
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if terms.focus > 0:
        each = each * torch.where(target == 1, -logits, logits).sigmoid().pow(terms.focus)
    return {
        "binary_cross_entropy": (each * is_judged).sum() / is_judged.sum().clamp(min=1),
        **terms.overlap(logits.sigmoid() * is_judged, target),
    }


def frequencies(labels: Tensor, num_classes: int) -> Tensor:
    """Share of the judged voxels of each class in each batch of labels [N, ...], float64 [N, K]."""
    judged = [batch[batch != IGNORE] for batch in labels]
    counts = [torch.bincount(_known(voxels, num_classes), minlength=num_classes) for voxels in judged]
    numbers = torch.tensor([max(1, voxels.numel()) for voxels in judged], device=labels.device)
    return torch.stack(counts).double() / numbers[:, None]


def best_constant_loss(shares: Tensor, *, num_iterations: int = 10) -> Tensor:
    """Least cross-entropy plus Dice loss, without background, that the same answer in every voxel can have.

    With f the shares of classes in a batch, one distribution p costs -sum_k f_k log p_k, and the mean over structures
    of 1 - 2 p_k f_k / (p_k + f_k). This is convex in p and falls with every p_k, so where p does not change when each
    p_k is multiplied by the negative slope in p_k, and the result scaled to sum to 1, it is at the minimum.

    Args:
        shares: Shares of voxels of each class in each of some batches, [N, K]; rows sum to 1.
        num_iterations: Number of iterations of the fixed point; five reach it to ten digits.

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
    """Values beyond the classes, `IGNORE` among them, become background."""
    return torch.where(labels < num_classes, labels, 0)
