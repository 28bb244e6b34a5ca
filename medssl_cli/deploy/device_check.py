"""Whether a device gives the answers that the CPU gives, on noise, before any scan is given to it.

Shapes: B batch, K outputs, X Y Z a tile.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.classes import Activation
from medssl_cli.base.errors import UsageError
from medssl_cli.heads import Port

TOLERANCE: Final = 1e-3
"""Largest difference of a number, relative to the largest of its output or 1."""
LEAST_AGREEMENT: Final = 0.999
"""Least share of voxels about which the same is decided; noise has more narrow races between classes than images."""
FREE_LENGTH: Final = 4


def noise_of(inputs: Sequence[Port]) -> list[NDArray[Any]]:
    """Uniform noise of seed 0 for each input of a network, and true for what is a flag; batches hold one."""
    generator = np.random.default_rng(0)
    made: list[NDArray[Any]] = []
    for port in inputs:
        shape = [FREE_LENGTH if size == "slices" else 1 if isinstance(size, str) else size for size in port.sizes]
        made.append(np.ones(shape, np.bool_) if port.is_bool else generator.random(shape, dtype=np.float32))
    return made


def require_agreement(
    device: str, expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]], *, activation: Activation | None
) -> None:
    """Refuse a device whose answers are others.

    Args:
        device: Name of the device.
        expected: Outputs of the network on the CPU; of a network of masks the first is `[B, K, X, Y, Z]`.
        found: Its outputs on the device.
        activation: How masks are read off the first output; None of other answers.

    Raises:
        UsageError: `E_DEVICE`.
    """
    apart = max(_difference(ours, theirs) for ours, theirs in zip(expected, found, strict=True))
    same = _decided(expected[0], activation) == _decided(found[0], activation)
    agreement = 1.0 if activation is None else float(same.mean())
    if apart > TOLERANCE or agreement < LEAST_AGREEMENT:
        raise UsageError(
            "E_DEVICE",
            f"{device} does not answer as the CPU does: numbers are {apart:.1e} apart, {TOLERANCE:.0e} are allowed, "
            f"and {100 * agreement:.2f} % of voxels are the same, {100 * LEAST_AGREEMENT:.1f} % at least",
            hint="pass --device cpu",
        )


def _difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    return float(np.abs(expected - found).max()) / max(1.0, float(np.abs(expected).max()))


def _decided(logits: NDArray[Any], activation: Activation | None) -> NDArray[Any]:
    return logits.argmax(axis=1) if activation == "softmax" else logits > 0
