"""From a network's logits to probabilities of findings.

Shapes: N images, K classes.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medssl_cli.heads import FindingsHead
from medssl_cli.imaging.placement import ChannelImages
from medssl_cli.imaging.probabilities import sigmoid, softmax
from medssl_cli.imaging.volume import Volume
from medssl_cli.imaging.whole import whole_input
from medssl_cli.preprocessing import Preprocessing


def probabilities(logits: NDArray[np.float32], *, is_exclusive: bool) -> NDArray[np.float64]:
    """Probability of each class, `[N, K]`.

    Args:
        logits: `[N, K]`.
        is_exclusive: Every image is of exactly one class, so that those of an image sum to 1.
    """
    return (softmax(logits) if is_exclusive else sigmoid(logits)).astype(np.float64)


def answer(
    predict: Callable[..., NDArray[np.float32]],
    images: Volume | ChannelImages,
    *,
    preprocessing: Preprocessing,
    head: FindingsHead,
) -> NDArray[np.float64]:
    """Probability of each finding of an image, `[K]`, in the order of the head's names.

    Args:
        predict: The network: images, and of stacks which slices are there and where, to logits `[N, K]`.
        images: One per channel, as a reader or the cache returns them.
        preprocessing: What the network sees of them.
        head: How its answers are read.
    """
    seen = whole_input(images, preprocessing, num_slices=head.num_slices)
    return probabilities(predict(*seen.arrays), is_exclusive=head.is_exclusive)[0]
