"""A network as everything that scores it wants it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medssl_cli.imaging.tiling import Predict


def torch_predict(network: nn.Module, device: str) -> Predict:
    """A network from numbers to numbers: float32 tiles or images in, float32 logits out."""
    network.eval()

    @torch.inference_mode()
    def predict(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = network(torch.from_numpy(tiles).to(device)).float().cpu().numpy()
        return logits

    return predict
