"""What can be read off frozen embeddings: by a linear layer, and by the nearest neighbours.

Shapes: N images to fit on, M images to score, E embedding, K classes. Answers are 1, 0 or NaN where nobody knows.
"""

from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS: Final = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
"""Strengths of the penalty, strongest first: each fit begins where the one before ended."""
ROUNDS: Final = 100
NEIGHBOURS: Final = 20
TEMPERATURE: Final = 0.07


def linear_scores(
    fitted: Tensor,
    answers: Tensor,
    asked: Tensor,
    folds: Tensor,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, list[float]]:
    """Logits of a logistic regression for each class, its penalty chosen on the images that it is fitted on.

    Features are standardised. Each class minimises mean cross-entropy plus strength / 2 * |w|^2 over `STRENGTHS`; the
    strength with the least cross-entropy on left-out folds is taken, and the regression fitted to all of them.

    Args:
        fitted: `[N, E]`.
        answers: `[N, K]`.
        asked: `[M, E]`.
        folds: Which fold each of the fitted images belongs to, `[N]`; patients stay together.
        progress: Told (done, total) regressions.

    Returns:
        `[M, K]`, and the strength of each class.
    """
    known, wanted = _standardised(fitted, asked)
    numbers = folds.unique().tolist()
    losses = known.new_zeros(len(STRENGTHS), answers.shape[1])
    for done, number in enumerate(numbers):
        left_out = folds == number
        for place, weights in enumerate(_path(known[~left_out], answers[~left_out])):
            losses[place] += _cross_entropy(_logits(known[left_out], weights), answers[left_out], "sum")
        progress(done + 1, len(numbers) + 1)
    best = losses.argmin(dim=0)
    every = torch.stack([_logits(wanted, weights) for weights in _path(known, answers)])
    progress(len(numbers) + 1, len(numbers) + 1)
    chosen = every[best, :, torch.arange(answers.shape[1], device=best.device)].T
    return chosen, [STRENGTHS[place] for place in best.tolist()]


def neighbour_scores(fitted: Tensor, answers: Tensor, asked: Tensor) -> Tensor:
    """Share of the votes of the 20 nearest images by cosine, each weighing exp(cosine / 0.07).

    The vote of DINO, appendix F.1 (Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294), on embeddings whose
    mean over the fitted images is taken off. Neighbours of which the answer is not known do not vote.

    Args:
        fitted: `[N, E]`.
        answers: `[N, K]`.
        asked: `[M, E]`.

    Returns:
        `[M, K]`, 0 to 1.
    """
    mean = fitted.double().mean(dim=0)
    rows, columns = (F.normalize(each.double() - mean, dim=1) for each in (asked, fitted))
    shares = torch.nanmean(answers.double(), dim=0)
    scores = []
    for chunk in rows.split(4096):
        nearest = (chunk @ columns.T).topk(min(NEIGHBOURS, len(columns)), dim=1)
        weights = ((nearest.values - 1) / TEMPERATURE).exp()[..., None]
        votes = answers.double()[nearest.indices]
        is_known = ~votes.isnan()
        total = (weights * is_known).sum(dim=1)
        positive = (weights * votes.nan_to_num()).sum(dim=1)
        scores.append(torch.where(total > 0, positive / total.clamp(min=1e-300), shares))
    return torch.cat(scores)


def _standardised(fitted: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the mean and spread of the first; in the space of its rows where that is the smaller one.

    A penalised regression never leaves that space, so nothing is lost.
    """
    wide = fitted.double()
    mean, spread = wide.mean(dim=0), wide.std(dim=0, correction=0)
    scale = spread + 1e-6 * (1 + mean.abs())
    known, wanted = (wide - mean) / scale, (asked.double() - mean) / scale
    if known.shape[1] > known.shape[0]:
        basis = torch.linalg.qr(known.T).Q
        known, wanted = known @ basis, wanted @ basis
    return known, wanted


def _path(features: Tensor, answers: Tensor) -> Sequence[Tensor]:
    """Weights with the bias in the last row, `[E + 1, K]`, for every strength."""
    weights = features.new_zeros(features.shape[1] + 1, answers.shape[1])
    found = []
    for strength in STRENGTHS:
        weights = _fit(features, answers, strength, weights)
        found.append(weights)
    return found


def _fit(features: Tensor, answers: Tensor, strength: float, start: Tensor) -> Tensor:
    weights = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([weights], max_iter=ROUNDS, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def objective() -> Tensor:
        solver.zero_grad()
        penalty = strength / 2 * weights[:-1].square().sum()
        total = _cross_entropy(_logits(features, weights), answers, "mean").sum() + penalty
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(objective)
    return weights.detach()


def _logits(features: Tensor, weights: Tensor) -> Tensor:
    return features @ weights[:-1] + weights[-1]


def _cross_entropy(logits: Tensor, answers: Tensor, reduction: str) -> Tensor:
    """Cross-entropy of each class over the images of which it is known, `[K]`."""
    is_known = ~answers.isnan()
    terms = F.binary_cross_entropy_with_logits(logits, answers.double().nan_to_num(), reduction="none") * is_known
    return terms.sum(dim=0) / (is_known.sum(dim=0).clamp(min=1) if reduction == "mean" else 1)
