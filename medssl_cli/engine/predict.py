"""A network as everything that scores it wants it."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Answer = Callable[..., NDArray[np.float32]]
"""A network from numbers to numbers; most take one array of tiles or images."""


def torch_predict(network: nn.Module, device: str) -> Answer:
    """A network from numbers to numbers: float32 tiles or images in, float32 logits out."""
    network.eval()

    @torch.inference_mode()
    def predict(*arrays: NDArray[np.generic]) -> NDArray[np.float32]:
        inputs = [torch.from_numpy(array).to(device) for array in arrays]
        logits: NDArray[np.float32] = network(*inputs).float().cpu().numpy()
        return logits

    return predict
