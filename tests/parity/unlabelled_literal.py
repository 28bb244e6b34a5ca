"""The published equations of learning from unlabelled images, written out slowly in numpy and nothing else.

Sections 7.1 and 7.2 of the specification say where they are from.
"""

import math

import numpy as np


def waves(function: object, *shape: int, factor: float = 1.0) -> np.ndarray:
    """sin or cos of 0, 1, 2, ... times a factor, in C order."""
    values: np.ndarray = function(factor * np.arange(math.prod(shape), dtype=np.float64))  # type: ignore[operator]
    return values.reshape(shape)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the second axis."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def mean_squared(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean over rows and classes of squared differences of probabilities."""
    total, p, q = 0.0, softmax(student), softmax(teacher)
    for row in range(p.shape[0]):
        for place in range(p.shape[1]):
            total += (p[row, place] - q[row, place]) ** 2
    return total / p.size


def divergence(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean over rows of sum over classes of q ln(q / p)."""
    total, p, q = 0.0, softmax(student), softmax(teacher)
    for row in range(p.shape[0]):
        for place in range(p.shape[1]):
            total += q[row, place] * math.log(q[row, place] / p[row, place])
    return total / p.shape[0]


def uncertain(student: np.ndarray, teacher: np.ndarray, passes: list[np.ndarray], step: int, steps: int) -> tuple:
    """Limit, mean entropy, voxels used, and the mean squared difference over these and the classes."""
    num_classes = student.shape[1]
    ramp = math.exp(-5 * (1 - step / steps) ** 2)
    limit = (0.75 + 0.25 * ramp) * math.log(num_classes)
    mean = sum(softmax(logits) for logits in passes) / len(passes)
    entropies = -(mean * np.log(mean + 1e-6)).sum(axis=1)
    squared = (softmax(student) - softmax(teacher)) ** 2
    used, total = 0, 0.0
    for image, x, y in np.ndindex(entropies.shape):
        if entropies[image, x, y] < limit:
            used += 1
            total += squared[image, :, x, y].sum()
    return limit, entropies.mean(), used, total / (used * num_classes)


def published_mixture(
    logits: np.ndarray, outside: np.ndarray, inside: np.ndarray, is_inside: np.ndarray, weights: tuple[float, float]
) -> tuple[float, float]:
    """Dice and cross-entropy of the released 2D code, mended: each part has a mean and a Dice of its own.

    Dice counts background, has squares of the probabilities below, and sums over the batch.
    """
    p = softmax(logits)
    dice = cross_entropy = 0.0
    for labels, mask, weight in ((outside, ~is_inside, weights[0]), (inside, is_inside, weights[1])):
        chosen = np.broadcast_to(mask, labels.shape)
        scores = []
        for place in range(p.shape[1]):
            goal, own = (labels == place)[chosen].astype(float), p[:, place][chosen]
            overlap, below = (own * goal).sum(), goal.sum() + (own**2).sum()
            scores.append(1 - (2 * overlap + 1e-10) / (below + 1e-10))
        dice += weight * sum(scores) / len(scores)
        right = np.take_along_axis(p, labels[:, None], axis=1)[:, 0]
        cross_entropy += weight * -np.log(right[chosen]).mean()
    return dice, cross_entropy


def published_volume_mixture(
    logits: np.ndarray, outside: np.ndarray, inside: np.ndarray, is_inside: np.ndarray, weights: tuple[float, float]
) -> float:
    """Half of Dice and cross-entropy of the released 3D code: Dice per image and class, without squares."""
    p, total = softmax(logits), 0.0
    for labels, mask, weight in ((outside, ~is_inside, weights[0]), (inside, is_inside, weights[1])):
        scores = []
        for image, place in np.ndindex(p.shape[:2]):
            goal, own = (labels[image] == place)[mask].astype(float), p[image, place][mask]
            scores.append(1 - (2 * (own * goal).sum() + 1e-5) / (own.sum() + goal.sum() + 1e-5))
        chosen = np.broadcast_to(mask, labels.shape)
        right = np.take_along_axis(p, labels[:, None], axis=1)[:, 0]
        total += weight * (np.mean(scores) + -np.log(right[chosen]).mean()) / 2
    return total


def copy_paste_loss(
    logits: np.ndarray, true: np.ndarray, pseudo: np.ndarray, is_true: np.ndarray, weight: float
) -> float:
    """Ours: cross-entropy and Dice without background, over all true voxels, and over all others with a weight."""
    p, total = softmax(logits), 0.0
    for labels, chosen, factor in ((true, is_true, 1.0), (pseudo, ~is_true, weight)):
        scores = []
        for place in range(1, p.shape[1]):
            goal, own = (labels == place)[chosen].astype(float), p[:, place][chosen]
            scores.append(1 - (2 * (own * goal).sum() + 1e-5) / (own.sum() + goal.sum() + 1e-5))
        right = np.take_along_axis(p, labels[:, None], axis=1)[:, 0]
        total += factor * (np.mean(scores) - np.log(right[chosen]).mean())
    return total
