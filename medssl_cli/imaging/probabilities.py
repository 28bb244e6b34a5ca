"""From a network's logits to probabilities, in the precision of the logits."""

import numpy as np
from numpy.typing import NDArray


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of each class by itself; no logit is too large."""
    tail = np.exp(-np.abs(logits))
    probabilities: NDArray[np.float32] = np.where(logits >= 0, np.float32(1), tail) / (1 + tail)
    return probabilities


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of classes that exclude each other, along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities
