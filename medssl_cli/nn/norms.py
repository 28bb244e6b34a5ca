"""Normalisation between convolutions, by one name for a whole network: its encoder and the decoder that stands on it.

| name | mean and variance are of | scale and shift |
|---|---|---|
| `instance` | one channel of one image | none |
| `instance_affine` | one channel of one image | learnt |
| `batch` | one channel of all images of a batch; in evaluation, of those of the training | learnt |
| `group` | a group of channels of one image, at most `GROUPS` groups | learnt |
| `layer` | all channels of one image, as one group | learnt |

Instance norm: Ulyanov et al., https://arxiv.org/abs/1607.08022; batch norm: Ioffe and Szegedy, ICML 2015,
https://arxiv.org/abs/1502.03167; group norm: Wu and He, ECCV 2018, https://arxiv.org/abs/1803.08494; layer norm:
Ba et al., https://arxiv.org/abs/1607.06450.
"""

import math
from typing import Any, Final, Literal, get_args

from torch import nn

Norm = Literal["instance", "instance_affine", "batch", "group", "layer"]

NORM_EPSILON: Final = 1e-5
"""Addend of all of them, which keeps a constant channel from being divided by 0."""
NORMS: Final[tuple[str, ...]] = get_args(Norm)
GROUPS: Final = 8
"""Groups of a group norm where that many divide the channels; else the largest number that divides both."""
WITHOUT_BIAS: Final = frozenset({"instance", "instance_affine", "batch"})
"""Norms that subtract the mean of each channel, and with it any bias of the convolution before."""


def norm_layer(name: Norm, channels: int, spatial_dims: int) -> nn.Module:
    """A normalisation of so many channels.

    Args:
        name: See the table above.
        channels: C of what it normalises, `[B, C, X, Y, Z]`.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: There is no such norm.
    """
    is_flat = spatial_dims == 2
    if name == "batch":
        return nn.BatchNorm2d(channels) if is_flat else nn.BatchNorm3d(channels)
    if name in ("group", "layer"):
        return nn.GroupNorm(_groups(name, channels), channels)
    if name not in NORMS:
        raise ValueError(f"norm {name} is not one of {', '.join(NORMS)}")
    is_affine = name == "instance_affine"
    return nn.InstanceNorm2d(channels, affine=is_affine) if is_flat else nn.InstanceNorm3d(channels, affine=is_affine)


def monai_norm(name: str, channels: int) -> str | tuple[str, dict[str, Any]]:
    """The same for MONAI's blocks, which know others beside them by names of their own."""
    if name == "instance_affine":
        return "instance", {"affine": True}
    if name in ("group", "layer"):
        return "group", {"num_groups": _groups(name, channels)}
    return name


def _groups(name: str, channels: int) -> int:
    return 1 if name == "layer" else math.gcd(GROUPS, channels)
