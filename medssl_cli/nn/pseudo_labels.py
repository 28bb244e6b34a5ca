"""From a network's answers to labels that nobody drew: what a teacher says of images, and how sure it is.

Shapes: B batch, K classes with background, or regions, X Y Z space.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medssl_cli.base.classes import IGNORE, Activation


def most_probable(logits: Tensor, activation: Activation) -> Tensor:
    """The classes that logits say, int64 [B, ...], or with a sigmoid the regions, uint8 [B, K, ...].

    Args:
        logits: [B, K, ...].
        activation: `softmax` of classes that exclude each other, `sigmoid` of regions that may overlap.
    """
    return logits.argmax(dim=1) if activation == "softmax" else (logits >= 0).to(torch.uint8)


def probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """Probabilities in float32, of the same shape as logits [B, K, ...]."""
    return logits.float().softmax(dim=1) if activation == "softmax" else logits.float().sigmoid()


def entropy(values: Tensor, activation: Activation, *, floor: float = 0.0) -> Tensor:
    """How unsure probabilities [B, K, ...] are: [B, 1, ...] of classes, at most ln K; [B, K, ...] of regions, ln 2.

    Args:
        values: Probabilities.
        activation: What made them.
        floor: Added within the logarithm; 0 is exact.
    """
    own = -values * _log(values, floor)
    if activation == "softmax":
        return own.sum(dim=1, keepdim=True)
    return own - (1 - values) * _log(1 - values, floor)


def largest_entropy(num_outputs: int, activation: Activation) -> float:
    """The entropy of an answer that says nothing."""
    return math.log(num_outputs if activation == "softmax" else 2)


def pseudo_labels(
    logits: Tensor,
    activation: Activation,
    *,
    min_confidence: float = 0.0,
    largest_of: frozenset[int] = frozenset(),
    spatial_dims: int = 3,
) -> Tensor:
    """Labels from a teacher's logits [B, K, X, Y, Z], without gradient; see `most_probable`.

    Args:
        logits: Logits of the teacher.
        activation: See `most_probable`.
        min_confidence: Voxels whose answer has a smaller probability become `IGNORE`.
        largest_of: Classes, or regions counted from 1, that are one piece: of each image only the largest remains, and
            the others become background.
        spatial_dims: Pieces of 2D images are counted slice by slice.
    """
    labels = most_probable(logits, activation)
    if largest_of:
        labels = _largest_only(labels, largest_of, spatial_dims)
    if min_confidence > 0:
        values = probabilities(logits, activation)
        sure = values.amax(dim=1) if activation == "softmax" else torch.maximum(values, 1 - values)
        labels = labels.masked_fill(sure < min_confidence, IGNORE)
    return labels


def _log(values: Tensor, floor: float) -> Tensor:
    return (values + floor).log() if floor else values.clamp_min(torch.finfo(values.dtype).tiny).log()


def _largest_only(labels: Tensor, classes: frozenset[int], spatial_dims: int) -> Tensor:
    """Labels in which each of some classes is one piece in each image."""
    array = labels.cpu().numpy()
    for image in array:
        for place in sorted(classes):
            mask = image == place if labels.ndim == 4 else image[place - 1] == 1
            rest = mask & ~largest_piece(mask, spatial_dims)
            (image if labels.ndim == 4 else image[place - 1])[rest] = 0
    return torch.from_numpy(array).to(labels.device)


def largest_piece(mask: NDArray[np.bool_], spatial_dims: int = 3) -> NDArray[np.bool_]:
    """The largest connected piece of a mask [X, Y, Z], corners included; the first of equally large ones.

    Args:
        mask: Where the structure is.
        spatial_dims: 2 takes the largest of each slice.
    """
    if spatial_dims == 2:
        return np.stack([_largest(mask[..., place]) for place in range(mask.shape[2])], axis=-1)
    return _largest(mask)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, number = ndimage.label(mask, np.ones((3,) * mask.ndim, dtype=bool))
    if number < 2:
        return mask
    found: NDArray[np.bool_] = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    return found
