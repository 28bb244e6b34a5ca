"""Scores of the coarser levels of a decoder, so that the loss reaches them directly in training.

As nnU-Net has it (Isensee et al., Nature Methods 2021, https://doi.org/10.1038/s41592-020-01008-z): the loss of each
coarser level counts half as much, the coarsest level of the decoder has none, and the weights sum to 1.

Shapes: B batch, K classes, X Y Z space.
"""

from collections.abc import Sequence

from torch import Tensor, nn


class DeepScores(nn.Module):
    """One linear map to classes for each level of a decoder but the finest, which has its own, and the coarsest.

    Args:
        widths: Channels of the decoder's features, fine to coarse.
        out_channels: Outputs per voxel.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: The decoder has no level between.
    """

    def __init__(self, widths: Sequence[int], out_channels: int, *, spatial_dims: int) -> None:
        super().__init__()
        if len(widths) < 3:
            raise ValueError(
                f"deep_supervision needs a backbone of at least 4 feature maps, this one has {len(widths) + 1}"
            )
        linear = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.levels = nn.ModuleList([linear(width, out_channels, kernel_size=1) for width in widths[1:-1]])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Logits of each level between, fine to coarse, of the features of all levels."""
        return [level(x) for level, x in zip(self.levels, features[1:-1], strict=True)]


def level_weights(number: int) -> list[float]:
    """What the losses of so many levels, fine to coarse, count: each half of the one before, together 1.

    >>> level_weights(2)
    [0.6666666666666666, 0.3333333333333333]
    """
    halves = [0.5**level for level in range(number)]
    return [half / sum(halves) for half in halves]


def thinned(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets of a coarser grid: of each of its cells the voxel at the centre, or beyond it where the centre is none.

    Args:
        targets: `[B, X, Y, Z]`, or regions `[B, K, X, Y, Z]`.
        logits: `[B, K, X', Y', Z']`, where X' divides X, Y' divides Y and Z' divides Z.
    """
    for axis in (-3, -2, -1):
        step = targets.shape[axis] // logits.shape[axis]
        targets = targets.movedim(axis, -1)[..., step // 2 :: step].movedim(-1, axis)
    return targets
