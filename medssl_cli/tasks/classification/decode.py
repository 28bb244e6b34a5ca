"""From a network's logits to probabilities of findings.

Shapes: N images, K classes.
"""

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.probabilities import sigmoid, softmax


def probabilities(logits: NDArray[np.float32], *, is_exclusive: bool) -> NDArray[np.float64]:
    """Probability of each class, `[N, K]`.

    Args:
        logits: `[N, K]`.
        is_exclusive: Every image is of exactly one class, so that those of an image sum to 1.
    """
    return (softmax(logits) if is_exclusive else sigmoid(logits)).astype(np.float64)
