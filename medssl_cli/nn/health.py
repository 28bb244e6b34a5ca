"""How well embeddings spread, and what can be read off them: figures that tell a collapse from learning.

Shapes: N crops, B images of this process, E embedding, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.nn.distributed import gather

NEIGHBOURS = 5
RIDGE = 1e-2
MIN_SPREAD: Final = 0.1
MIN_RANK: Final = 2.0
JUDGED_STEPS: Final = 100


def embedding_std(embeddings: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit embeddings [N, E].

    Near 1 / sqrt(E) where directions are spread evenly, 0 where all are the same (SimSiam, section 4.1,
    https://arxiv.org/abs/2011.10566).
    """
    return float(F.normalize(embeddings.double(), dim=1).std(dim=0, correction=0).mean())


def rank_me(embeddings: Tensor) -> float:
    """Effective rank of embeddings [N, E]: exp of the entropy of their singular values, from 1 to min(N, E).

    RankMe, equation 1: https://arxiv.org/abs/2210.02885.
    """
    values = torch.linalg.svdvals(embeddings.double())
    shares = values / values.sum().clamp(min=1e-300) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def neighbour_accuracy(embeddings: Tensor, classes: Tensor, is_fitted: Tensor) -> float:
    """Balanced accuracy of a vote of the nearest neighbours by cosine.

    Args:
        embeddings: [N, E].
        classes: Integers 0...K-1, [N].
        is_fitted: The crops that vote, [N]; the others are classified.
    """
    centred = F.normalize(embeddings.double() - embeddings[is_fitted].double().mean(0), dim=1)
    cosines = centred[~is_fitted] @ centred[is_fitted].T
    nearest = cosines.topk(min(NEIGHBOURS, cosines.shape[1]), dim=1)
    votes = F.one_hot(classes[is_fitted], int(classes.max()) + 1).double()[nearest.indices]
    weights = (1 + nearest.values).unsqueeze(-1)
    return balanced_accuracy((votes * weights).sum(1).argmax(1), classes[~is_fitted])


def linear_accuracy(embeddings: Tensor, classes: Tensor, is_fitted: Tensor) -> float:
    """Balanced accuracy of ridge regression onto one-hot classes, every class with the same weight.

    Args:
        embeddings: [N, E].
        classes: Integers 0...K-1, [N].
        is_fitted: The crops that fit; the others are classified.
    """
    wide = embeddings.double()
    mean, std = wide[is_fitted].mean(0), wide[is_fitted].std(0, correction=0)
    features = (wide - mean) / (std + 1e-6 * (1 + mean.abs()))
    inputs = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
    targets = F.one_hot(classes, int(classes.max()) + 1).double()
    counts = targets[is_fitted].sum(0).clamp(min=1)
    weights = (1 / counts)[classes[is_fitted]].unsqueeze(1).sqrt()
    x, y = inputs[is_fitted] * weights, targets[is_fitted] * weights
    kernel = x @ x.T
    solution = x.T @ torch.linalg.solve(kernel + RIDGE * kernel.trace() / len(x) * torch.eye(len(x)).to(x), y)
    return balanced_accuracy((inputs[~is_fitted] @ solution).argmax(1), classes[~is_fitted])


def balanced_accuracy(predicted: Tensor, classes: Tensor) -> float:
    """Mean over the classes present of the share that is recognised; 1 / K by chance."""
    shares = [(predicted[classes == value] == value).double().mean() for value in classes.unique()]
    return float(torch.stack(shares).mean())


def mean_cosine(matrix: Tensor) -> float:
    """Mean off the diagonal of a square matrix of cosines: 1 where all rows are the same."""
    size = len(matrix)
    return float((matrix.sum() - matrix.trace()) / (size * (size - 1)))


@torch.no_grad()
def spread_figures(projections: Tensor) -> dict[str, Tensor]:
    """How the projections [B, E] of a step spread, over the batches of all processes.

    Returns:
        `spread`, the standard deviation of the elements of unit projections times sqrt(E): 1 where they point
        everywhere, 0 where all are equal; and `rank`, see `rank_me`.
    """
    everything = gather(projections.detach().float())
    spread = embedding_std(everything) * everything.shape[1] ** 0.5
    return {"spread": torch.tensor(spread), "rank": torch.tensor(rank_me(everything))}


def collapse_signs(logged: Sequence[Mapping[str, float]]) -> list[str]:
    """What says that all projections have become the same, by `spread_figures` of the last hundred steps.

    Args:
        logged: Numbers of the logged steps so far.
    """
    last = last_steps(logged, "spread")
    signs = []
    if last and max(entry["spread"] for entry in last) < MIN_SPREAD:
        signs.append(f"projections of all images are nearly equal: spread {last[-1]['spread']:.3f} of 1")
    if last and max(entry["rank"] for entry in last) < MIN_RANK:
        signs.append(f"projections lie on a line: effective rank {last[-1]['rank']:.2f}")
    return signs


def last_steps(logged: Sequence[Mapping[str, float]], name: str) -> list[Mapping[str, float]]:
    """Logged numbers of the last hundred steps, of those that have a number; none before there were so many.

    Args:
        logged: Numbers of the logged steps so far, each with its `step`.
        name: Name of the number.
    """
    having = [entry for entry in logged if entry.get(name) is not None]
    if not having or having[-1]["step"] - having[0]["step"] < JUDGED_STEPS:
        return []
    return [entry for entry in having if entry["step"] >= having[-1]["step"] - JUDGED_STEPS]
