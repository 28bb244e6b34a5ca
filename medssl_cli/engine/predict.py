"""A network as everything that scores it wants it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medssl_cli.tasks import Answer


def torch_predict(network: nn.Module, device: str) -> Answer:
    """A network from numbers to numbers: float32 tiles or images in, float32 logits out."""
    network.eval()

    @torch.inference_mode()
    def predict(*arrays: NDArray[np.generic]) -> NDArray[np.float32]:
        inputs = [torch.from_numpy(array).to(device) for array in arrays]
        logits: NDArray[np.float32] = network(*inputs).float().cpu().numpy()
        return logits

    return predict
