"""A sliding window whose answer is there as a whole, for tests."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.tiling import Predict, rolling_window


def sliding_window(predict: Predict, voxels: NDArray[np.float32], *, along: int = 0, **given: Any) -> NDArray[Any]:
    """Logits `[K, X, Y, Z]`, put together from what `rolling_window` gives."""
    parts: list[NDArray[Any]] = []
    for _, planes in rolling_window(predict, voxels, along=along, **given):
        parts.append(planes[:, 1 if parts else 0 :].copy())
    return np.moveaxis(np.concatenate(parts, axis=1), 1, along + 1)
