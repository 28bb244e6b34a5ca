"""How far from the true boundary a network marks voxels: a loss that sees small and thin structures as well as large.

Kervadec et al., Boundary loss for highly unbalanced segmentation, MIDL 2019, https://arxiv.org/abs/1812.07032. Beside a
loss of overlap, which it does not replace: alone it is least where nothing is marked.

Shapes: B batch, K classes or regions, X Y Z space.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor


def boundary_loss(probabilities: Tensor, target: Tensor, is_judged: Tensor) -> Tensor:
    """Mean over voxels and structures of the probability times the signed distance to the true boundary, equation 5.

    Args:
        probabilities: Probabilities of structures, without background, `[B, K, X, Y, Z]`.
        target: One-hot, or regions, of the same shape.
        is_judged: 1 where somebody knows, broadcast to the same shape.

    Returns:
        Scalar, in voxels; 0 where a crop shows nothing of a structure, or nothing but it.
    """
    distances = signed_distances(target).to(probabilities)
    count = is_judged.expand_as(probabilities).sum().clamp(min=1)
    return (probabilities * distances * is_judged).sum() / count


@torch.no_grad()
def signed_distances(target: Tensor) -> Tensor:
    """Distance in voxels of each voxel to the boundary of the structure, negative inside.

    That is the distance to the nearest voxel of the other kind, less half a voxel.

    Args:
        target: `[B, K, X, Y, Z]` of 0 and 1.

    Returns:
        float32 of the same shape, on the CPU; 0 everywhere for a structure that is not there or fills the crop.
    """
    masks: NDArray[np.bool_] = target.detach().cpu().numpy() == 1
    found = np.zeros(masks.shape, dtype=np.float32)
    for index in np.ndindex(masks.shape[:2]):
        mask = masks[index]
        if mask.any() and not mask.all():
            outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
            found[index] = np.where(mask, 0.5 - inside, outside - 0.5)
    return torch.from_numpy(found)
