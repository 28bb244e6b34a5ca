"""Do clusters tell more than the modality? Counts of first choices by cluster and group, in which old steps fade.

Shapes: B images of this process, N images of the training set, K clusters, G groups.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.nn.distributed import sum_over_processes

FADE: Final = 0.99


class GroupTable(nn.Module):
    """First choices of the last hundred steps or so.

    Args:
        num_clusters: K.
    """

    counts: Tensor
    groups: Tensor

    def __init__(self, num_clusters: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_clusters, 1))
        self.register_buffer("groups", torch.zeros(0, dtype=torch.long), persistent=False)

    def begin(self, groups: Tensor) -> None:
        """Remember the group of each image, integers [N] from 0."""
        self.groups = groups.to(self.groups.device)
        self.counts = self.counts.new_zeros(len(self.counts), int(groups.max()) + 1 if len(groups) else 1)

    @torch.no_grad()
    def add(self, ids: Tensor, codes: Tensor) -> None:
        """Count the first choices of a step.

        Args:
            ids: Places of the images in the training set, [B].
            codes: [B, K].
        """
        if not len(self.groups):
            return
        of_image = self.groups[ids.to(self.groups.device)]
        chosen = F.one_hot(codes.argmax(dim=1).to(of_image.device), len(self.counts)).to(self.counts)
        step = chosen.T @ F.one_hot(of_image, self.counts.shape[1]).to(self.counts)
        self.counts.mul_(FADE).add_(sum_over_processes(step))

    @torch.no_grad()
    def forget(self) -> None:
        """Begin anew, because the clusters are others now."""
        self.counts.zero_()

    @torch.no_grad()
    def information(self) -> float:
        """Mutual information of clusters and groups over the geometric mean of their entropies; 0 of a single group.

        Strehl & Ghosh, JMLR 3 (2002), equation 2: https://www.jmlr.org/papers/v3/strehl02a.html. Of many clusters and
        few groups it is 1 only if the clusters say nothing but the group.
        """
        joint = self.counts.double() / self.counts.sum().clamp(min=1e-12)
        entropies = [torch.special.entr(joint.sum(dim=axis)).sum() for axis in (0, 1)]
        mutual = entropies[0] + entropies[1] - torch.special.entr(joint).sum()
        scale = float((entropies[0] * entropies[1]).sqrt())
        return max(0.0, float(mutual) / scale) if scale > 1e-9 else 0.0
