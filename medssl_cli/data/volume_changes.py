"""The released augmentation of joint learning: of seven changes of whole volumes, each view gets one.

The seven are TorchIO's `RandomFlip`, `RandomAffine`, `RandomAnisotropy`, `RandomNoise`, `RandomBlur`,
`RandomBiasField` and `RandomGamma` with its defaults of version 0.19; the views of a volume get different ones.

Shapes: B volumes of this process, V views, N = V B, one view after the other; C channels, X Y Z space.
"""

import math
from typing import Final

import torch
from torch import Tensor

from medssl_cli.data.augmentation import Changes, Draws, rotation_matrices
from medssl_cli.data.degradation import BIAS_POWERS

KINDS: Final = ("flip", "affine", "coarse", "noise", "blur", "bias", "gamma")
FLIP_PROB: Final = 0.5
DEGREES: Final = 10.0
SCALE: Final = 0.1
COARSE: Final = (1.5, 5.0)
NOISE: Final = 0.25
BLUR: Final = 2.0
BIAS: Final = 0.5
LOG_GAMMA: Final = 0.3


def draw_one_of_seven(size: torch.Size, num_views: int, draws: Draws) -> Changes:
    """Draw one change for each view of each volume.

    Args:
        size: Size of all views, [N, C, X, Y, Z]; Z runs over the slices.
        num_views: V, at most seven.
        draws: Random draws of the step.
    """
    batch = size[0] // num_views

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return draws.uniform((batch, num_views, *shape), low, high).transpose(0, 1).flatten(0, 1)

    kinds = draws.uniform((batch, len(KINDS))).argsort(dim=1)[:, :num_views].T.flatten()
    of = {name: kinds == number for number, name in enumerate(KINDS)}
    along_slices = of["flip"] & (uniform() < FLIP_PROB)
    matrices = _matrices(uniform(3, low=-DEGREES, high=DEGREES), uniform(3, low=1 - SCALE, high=1 + SCALE), size)
    factors = torch.where(
        torch.arange(3) == uniform(1, high=3.0).long(), uniform(1, low=COARSE[0], high=COARSE[1]), 1.0
    )
    deviations = uniform(high=NOISE) * of["noise"]
    sigmas = uniform(3, high=BLUR) * of["blur"][:, None]
    bias = uniform(len(BIAS_POWERS), low=-BIAS, high=BIAS) * of["bias"][:, None]
    gamma = torch.where(of["gamma"], uniform(low=-LOG_GAMMA, high=LOG_GAMMA).exp(), 1.0)
    noise = draws.normal((batch, num_views, *size[1:])).transpose(0, 1).flatten(0, 1)
    moved = of["affine"].nonzero()[:, 0]
    return Changes(
        torch.stack([torch.zeros_like(along_slices), torch.zeros_like(along_slices), along_slices], dim=1),
        moved=moved if len(moved) else None,
        matrices=matrices[moved],
        coarse=torch.where(of["coarse"][:, None], factors, 1.0),
        blur=sigmas,
        bias=bias,
        gamma=gamma,
        scale=torch.ones(len(kinds)),
        shift=torch.zeros(len(kinds)),
        noise=noise * deviations.view(-1, 1, 1, 1, 1),
    )


def _matrices(degrees: Tensor, scales: Tensor, size: torch.Size) -> Tensor:
    """Matrices of turns about the three axes and scales along them, voxels being cubes; see `Changes.matrices`."""
    half = torch.tensor(size[:1:-1], dtype=torch.float32) / 2
    return rotation_matrices(degrees * (math.pi / 180)) / scales[:, None] * half[None, None, :] / half[None, :, None]
