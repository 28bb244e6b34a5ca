"""What scanners do to images: thicker slices, blur, and intensities that drift through the field of view.

The laws are TorchIO's (Perez-Garcia et al., Computer Methods and Programs in Biomedicine 2021,
https://arxiv.org/abs/2003.04696): `RandomAnisotropy`, `RandomBlur` and `RandomBiasField`.

Shapes: N images, C channels, X Y Z space, L voxels along one axis, T terms of a polynomial.
"""

import itertools
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

BIAS_ORDER: Final = 3
BIAS_POWERS: Final = tuple(
    powers for powers in itertools.product(range(BIAS_ORDER + 1), repeat=3) if sum(powers) <= BIAS_ORDER
)
"""Exponents of x, y and z in each term of the polynomial, [T, 3]."""
LEAST_BLUR: Final = 0.1
"""Voxels; a narrower Gaussian is one voxel wide."""


def coarsen_(images: Tensor, factors: Tensor) -> Tensor:
    """Take fewer voxels along some axes, the nearest ones, and interpolate between them, in place.

    Args:
        images: [N, C, X, Y, Z].
        factors: How many times wider the voxels become, 1 for as they are, [N, 3].

    Returns:
        The images.
    """
    sizes = torch.tensor(images.shape[2:]) / factors.cpu()
    for row in (factors.cpu() > 1).any(dim=1).nonzero()[:, 0].tolist():
        size = [max(1, round(each)) for each in sizes[row].tolist()]
        fewer = F.interpolate(images[row : row + 1], size, mode="nearest")
        images[row : row + 1] = F.interpolate(fewer, tuple(images.shape[2:]), mode="trilinear", align_corners=False)
    return images


def blur_(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur by Gaussians, in place; at the border of an image the part of a Gaussian inside counts.

    Args:
        images: [N, C, X, Y, Z].
        sigmas: Standard deviations in voxels along x, y, z, [N, 3]; below 0.1 nothing happens.

    Returns:
        The images.
    """
    for axis in range(3):
        rows = (sigmas[:, axis] >= LEAST_BLUR).nonzero()[:, 0].to(images.device)
        if not len(rows) or images.shape[2 + axis] == 1:
            continue
        kernels = gaussians(images.shape[2 + axis], sigmas.to(images)[rows, axis])
        moved = images[rows].movedim(2 + axis, -1)
        images[rows] = torch.einsum("n...j,nij->n...i", moved, kernels).movedim(-1, 2 + axis)
    return images


def gaussians(length: int, sigmas: Tensor) -> Tensor:
    """Gaussians about each of L voxels, [N, L, L] of standard deviations [N] in voxels; rows sum to 1."""
    places = torch.arange(length, device=sigmas.device, dtype=sigmas.dtype)
    gaps = (places[:, None] - places) / sigmas[:, None, None]
    return (-0.5 * gaps.square()).softmax(dim=2)


def bias_fields(coefficients: Tensor, size: tuple[int, ...]) -> Tensor:
    """Factors that vary smoothly: the exponential of a polynomial in coordinates from -1 to 1 over each axis.

    Args:
        coefficients: Coefficients of the terms `BIAS_POWERS`, [N, T].
        size: X, Y, Z.

    Returns:
        [N, 1, X, Y, Z].
    """
    axes = [torch.linspace(-1, 1, length, device=coefficients.device, dtype=coefficients.dtype) for length in size]
    powers = [torch.stack([axis**power for power in range(BIAS_ORDER + 1)]) for axis in axes]
    cube = coefficients.new_zeros(len(coefficients), *[BIAS_ORDER + 1] * 3)
    for term, (x, y, z) in enumerate(BIAS_POWERS):
        cube[:, x, y, z] = coefficients[:, term]
    return torch.einsum("nabc,ax,by,cz->nxyz", cube, *powers).exp()[:, None]
