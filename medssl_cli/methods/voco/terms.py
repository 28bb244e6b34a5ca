"""VoCo's objectives: from projections of random and base crops to the terms of the loss, and what ignorance costs.

Shapes: B volumes of this process, M of all processes, R random crops, G base crops, P projection, N offsets.
"""

from collections.abc import Callable
from math import prod
from operator import add
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.data.views import draw_offsets
from medssl_cli.imaging.geometry import Shape
from medssl_cli.methods.voco.overlap import (
    absolute_regulariser,
    leaky_similarity,
    one_sided_regulariser,
    overlap_fractions,
    overlap_loss,
    similarity,
    squared_overlap_loss,
    squared_regulariser,
    uniform_overlap_loss,
)
from medssl_cli.nn import distributed

Projections = tuple[Tensor, Tensor]  # of random crops [B, R, P] and of base crops [B, G, P]
Regulariser = Literal["one_sided", "squared", "absolute"]
REGULARISERS: Final[dict[Regulariser, Callable[[Tensor], Tensor]]] = {
    "one_sided": one_sided_regulariser,
    "squared": squared_regulariser,
    "absolute": absolute_regulariser,
}


def paper_terms(student: Projections, targets: Tensor) -> dict[str, Tensor]:
    """The two terms of `paper` (equations 3 and 5), averaged over the batch; the first gives base crops no gradient.

    Args:
        student: Projections of random crops [B, R, P] and base crops [B, G, P].
        targets: Overlap fractions, [B, R, G].
    """
    random, bases = student
    return {
        "prediction": uniform_overlap_loss(similarity(random, bases.detach()), targets).mean(),
        "regulariser": absolute_regulariser(bases).mean(),
    }


def v1_terms(student: Projections, teacher: Projections, targets: Tensor) -> dict[str, Tensor]:
    """The two terms of `v1`, each averaged over the batch; positive and negative pairs are one term here.

    Args:
        student: Projections of random crops [B, R, P] and base crops [B, G, P].
        teacher: The same by the teacher; gets no gradient.
        targets: Overlap fractions, [B, R, G].
    """
    return {
        "prediction": squared_overlap_loss(mutual_similarity(student, teacher), targets).mean(),
        "regulariser": one_sided_regulariser(student[1]).mean(),
    }


def v2_terms(
    student: Projections,
    teacher: Projections,
    targets: Tensor,
    *,
    negative_slope: float = 0.0,
    has_all_pairs: bool = False,
    regulariser: Regulariser = "one_sided",
) -> dict[str, Tensor]:
    """The three terms of `v2`, each averaged over the batch; `fixed` changes the keyword arguments.

    Args:
        student: Projections of random crops [B, R, P] and base crops [B, G, P].
        teacher: The same by the teacher; gets no gradient.
        targets: Overlap fractions, [B, R, G].
        negative_slope: See `leaky_similarity`.
        has_all_pairs: Compare each volume with all others of all processes instead of the next one of its own.
        regulariser: Which one.
    """
    random, bases = student
    teacher_random, teacher_bases = (projections.detach() for projections in teacher)
    logits = leaky_similarity(random, teacher_bases, targets, negative_slope=negative_slope)
    if has_all_pairs:
        inter = _all_pairs(student, (teacher_random, teacher_bases), negative_slope)
    else:
        other_targets = similarity(teacher_random, teacher_bases.roll(-1, dims=0))
        other_logits = leaky_similarity(random, bases.roll(-1, dims=0), other_targets, negative_slope=negative_slope)
        inter = overlap_loss(other_logits, other_targets).mean()
    return {
        "prediction": overlap_loss(logits, targets).mean(),
        "inter": inter,
        "regulariser": REGULARISERS[regulariser](bases).mean(),
    }


def mutual_similarity(student: Projections, teacher: Projections) -> Tensor:
    """Logits of `v1` [B, R, G]: student crops to teacher base crops and the reverse, averaged."""
    teacher_random, teacher_bases = (projections.detach() for projections in teacher)
    return (similarity(student[0], teacher_bases) + similarity(teacher_random, student[1])) / 2


def _all_pairs(student: Projections, teacher: Projections, negative_slope: float) -> Tensor:
    """Mean over volumes i and other volumes j of the loss of i's random crops against j's base crops.

    The base crops come from all processes, with gradients. 0 where there is no other volume.
    """
    (random, bases), (teacher_random, teacher_bases) = student, teacher
    all_bases, all_teacher_bases = distributed.gather(bases), distributed.gather(teacher_bases)
    targets = similarity(teacher_random.flatten(0, 1), all_teacher_bases.flatten(0, 1))
    logits = leaky_similarity(
        random.flatten(0, 1), all_bases.flatten(0, 1), targets, negative_slope=negative_slope
    )  # [B * R, M * G]
    batch, num_bases = len(bases), bases.shape[1]
    losses = overlap_loss(_by_pair(logits, batch, num_bases), _by_pair(targets, batch, num_bases))
    is_other = torch.ones_like(losses)
    own = torch.arange(batch, device=losses.device)
    is_other[own, own + distributed.rank() * batch] = 0
    return (losses * is_other).sum() / is_other.sum().clamp(min=1)


def _by_pair(table: Tensor, batch: int, num_bases: int) -> Tensor:
    """[B * R, M * G] as [B, M, R, G]."""
    return table.unflatten(0, (batch, -1)).unflatten(2, (-1, num_bases)).transpose(1, 2)


def constant_predictors(
    targets: Tensor, predict: Callable[[Tensor, Tensor], Tensor], *, has_inter: bool, is_absolute: bool
) -> dict[str, float]:
    """Expected total loss of predictors that do not look where a random crop lies.

    Args:
        targets: Targets at all legal places or a sample of them, [N, G].
        predict: Prediction loss of logits and targets.
        has_inter: Whether a term between volumes, of the form of `overlap_loss`, is added.
        is_absolute: Whether the regulariser is |cos| instead of its square.

    Returns:
        `zero_logits`: every crop orthogonal to every other; about 4 - pi^2 / 3 = 0.71 for `v1` and `v2` on a flat grid.
        `constant_logit`: base crops orthogonal, each random crop equally similar to all G of them, at the best of the
            similarities that geometry allows (0 to 1 / sqrt(G)).
        `collapsed`: all crops, base crops too, equally similar to one another, at the best similarity.
    """
    logits = [step / 100 for step in range(100)]
    predictions = []
    for logit in logits:
        constant = torch.full_like(targets, logit)
        inter = overlap_loss(constant[:1], constant[:1]).item() if has_inter else 0.0
        predictions.append(predict(constant, targets).item() + inter)
    regularisers = [logit if is_absolute else logit**2 for logit in logits]
    highest = targets.shape[-1] ** -0.5
    return {
        "zero_logits": predictions[0],
        "constant_logit": min(loss for logit, loss in zip(logits, predictions, strict=True) if logit <= highest),
        "collapsed": min(map(add, predictions, regularisers)),
    }


def split_projections(projections: Tensor, targets: Tensor) -> Projections:
    """Projections [B * R + B * G, P] as [B, R, P] and [B, G, P], in the precision of the targets [B, R, G]."""
    batch, num_random, num_bases = targets.shape
    random, bases = projections.to(targets.dtype).split([batch * num_random, batch * num_bases])
    return random.unflatten(0, (batch, num_random)), bases.unflatten(0, (batch, num_bases))


@torch.no_grad()
def spread_of(projections: Projections) -> Tensor:
    """Standard deviation of the unit projections over crops, scaled: 1 for independent directions, 0 when collapsed."""
    unit = F.normalize(torch.cat([part.flatten(0, 1) for part in projections]), dim=-1)
    return (unit.var(dim=0, correction=0).sum()).sqrt()


def typical_targets(num_starts: Shape, base_grid: Shape, crop_size: Shape, *, limit: int = 2**14) -> Tensor:
    """Targets [N, G] at all legal places of a random crop, or at `limit` of them drawn with a fixed seed.

    Args:
        num_starts: Legal first voxels of a random crop along each axis.
        base_grid: Base crops along each axis.
        crop_size: Size of a crop in voxels.
    """
    if prod(num_starts) <= limit:
        offsets = torch.cartesian_prod(*(torch.arange(count) for count in num_starts))
    else:
        offsets = draw_offsets((limit,), num_starts, torch.Generator().manual_seed(0))
    return overlap_fractions(offsets, base_grid, crop_size)
