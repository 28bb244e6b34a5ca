"""Probabilities of classes on the image as it came, beside the decision about them and from the same logits.

Logits are interpolated first and become probabilities then, so that the most probable class is that of the mask.

Shapes: K outputs, of which the first is background where classes exclude each other; T R S axes of a block.
"""

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.classes import Activation
from medssl_cli.imaging.geometry import Shape
from medssl_cli.imaging.probabilities import sigmoid
from medssl_cli.imaging.restoring import Block, RestoredPlanes

STEPS: Final = 255
"""Probabilities are kept in so many steps: as whole numbers from 0 to this."""


class ProbabilityPlanes(Protocol):
    """What holds probabilities of a whole image."""

    def begin(self, count: int, shape: Shape, slowest: int) -> NDArray[np.uint8]:
        """An array of zeros to write to.

        Args:
            count: Number of classes, background left out.
            shape: Size (X, Y, Z) of the image.
            slowest: Axis of the image along which its planes are written one after the other.

        Returns:
            `[count, X, Y, Z]`.
        """

    def settle(self) -> None:
        """Told after some planes were written, which are not looked at again before all are."""


class ProbabilityWriter:
    """Writes what a network's logits mean to the planes of an image, block by block.

    Args:
        restored: What decides about the same logits.
        planes: What holds the probabilities.
        activation: What outputs mean.
        count: Number of outputs.
    """

    def __init__(self, restored: RestoredPlanes, planes: ProbabilityPlanes, activation: Activation, count: int) -> None:
        self._activation, self.settle = activation, planes.settle
        whole = planes.begin(count - (activation == "softmax"), restored.source_shape, restored.slowest)
        self._seen = restored.seen_part(whole)

    def write(self, box: tuple[slice, slice, slice], block: Block) -> None:
        """Keep the probabilities of a block, whose voxels lie there along T, R and S."""
        self._seen[(slice(None), *box)] = block_probabilities(block, self._activation)


def block_probabilities(block: Block, activation: Activation) -> NDArray[np.uint8]:
    """Probabilities `[K, T, R, S]` in 255ths; of classes that exclude each other without the background."""
    logits = np.stack([block.interpolated(number) for number in range(len(block.values))])
    if not block.is_exact:
        for where, values in block.beyond():
            logits[(slice(None), *where)] = values
    if activation == "sigmoid":
        found = sigmoid(logits)
    else:
        logits -= logits.max(axis=0)
        np.exp(logits, out=logits)
        found = logits[1:] / logits.sum(axis=0)
    found *= STEPS
    return np.rint(found, out=found).astype(np.uint8)
