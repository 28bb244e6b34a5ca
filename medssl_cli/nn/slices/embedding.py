"""One vector per slice from all feature maps of a 2D network: f_intra's multi-level embedding.

Nguyen et al., Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter Contrastive Clustering, AAAI
2023, https://arxiv.org/abs/2212.01893, as in its released code.

Shapes: N slices, L levels, E embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SliceEmbedding(nn.Module):
    """Mean over each feature map, brought to length 1 so that levels weigh alike, side by side, then a linear map.

    Args:
        channels: Channels of the feature maps, fine to coarse.
        embedding_dim: E.
        repeats_last: Put the last level in twice, as the released code does; only for its weights.
    """

    def __init__(self, channels: Sequence[int], embedding_dim: int, *, repeats_last: bool = False) -> None:
        super().__init__()
        self.repeats_last = repeats_last
        self.linear = nn.Linear(sum(channels) + (channels[-1] if repeats_last else 0), embedding_dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Feature maps [N, channels[i], ...] to [N, E]."""
        embedded: Tensor = self.linear(levels(maps, repeats_last=self.repeats_last))
        return embedded


def levels(maps: Sequence[Tensor], *, repeats_last: bool = False) -> Tensor:
    """Unit means of feature maps [N, channels[i], ...], side by side: [N, sum of channels], of length sqrt(L)."""
    means = [F.normalize(level.flatten(2).mean(dim=2), dim=1) for level in maps]
    return torch.cat([*means, means[-1]] if repeats_last else means, dim=1)
