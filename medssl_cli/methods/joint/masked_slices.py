"""Predict the embeddings of hidden slices from the others.

Nguyen et al., AAAI 2023, https://arxiv.org/abs/2212.01893, third signal. Unlike the released code, the loss covers the
hidden slices only, and its targets are detached and standardised: else the network makes all slices alike.

Shapes: B volumes of this process, S slices, E embedding.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.base.strict import Strict
from medssl_cli.nn.distributed import sum_over_processes, world_size


class MaskOptions(Strict):
    """Which slices are hidden.

    Args:
        ratio: Share of a volume's slices, rounded up; one at least, and one at least stays.
        block: Hide neighbours, which cannot be guessed from both sides.
        centred: Take what all hidden slices of the batch share out of their targets first: young networks embed slices
            nearly alike, and leave little to predict.
        shared: Both views of a volume hide the same slices (released).
        loss: Loss of `hidden` slices, or the `released` one: of all slices, whose embeddings are predicted as they are,
            divided by the number of hidden ones. With a trunk that learns it would make all slices alike.
    """

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15
    block: bool = False
    centred: bool = False
    shared: bool = False
    loss: Literal["hidden", "released"] = "hidden"


def num_masked(num_present: Tensor, ratio: float) -> Tensor:
    """Slices to hide of volumes with so many slices, [B]; none of a single slice."""
    wanted = (num_present.double() * ratio - 1e-9).ceil().long()
    return torch.minimum(wanted.clamp(min=1), (num_present - 1).clamp(min=0))


def choose_masked(is_present: Tensor, options: MaskOptions, numbers: Tensor) -> Tensor:
    """Which slices to hide, never padding.

    Args:
        is_present: Bool [B, S].
        options: See `MaskOptions`.
        numbers: Uniform random numbers in [0, 1), [B, S].

    Returns:
        Bool [B, S].
    """
    present = is_present.sum(dim=1)
    count = num_masked(present, options.ratio)[:, None]
    numbers = numbers.to(is_present.device)
    if options.block:
        first = (numbers[:, :1] * (present[:, None] - count + 1)).long()
        place = is_present.cumsum(dim=1) - 1
        return is_present & (place >= first) & (place < first + count)
    order = numbers.masked_fill(~is_present, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return order < count


class MaskedSlices(nn.Module):
    """The token that stands for a hidden slice, and the linear map from a related slice to its embedding.

    Args:
        embedding_dim: E.
        centred: See `MaskOptions`.
    """

    def __init__(self, embedding_dim: int, *, centred: bool = False) -> None:
        super().__init__()
        self.centred = centred
        self.token = nn.Parameter(torch.randn(embedding_dim))
        self.decoder = nn.Linear(embedding_dim, embedding_dim)

    def hide(self, slices: Tensor, is_masked: Tensor) -> Tensor:
        """Slices [B, S, E] with the token in the place of those that are masked, bool [B, S]."""
        return torch.where(is_masked[..., None], self.token.to(slices.dtype), slices)

    def loss(self, related: Tensor, slices: Tensor, is_masked: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared distance per element between predictions and standardised targets.

        Args:
            related: Output of the slice encoder for hidden slices, [B, S, E].
            slices: Embeddings before hiding, [B, S, E]; no gradient reaches them.
            is_masked: Bool [B, S].

        Returns:
            Scalar whose mean over processes is the mean over all hidden slices of all processes, 0 if none is hidden;
            and what the best constant prediction for the slices of this process would cost.
        """
        count = sum_over_processes(is_masked.sum()).clamp(min=1) / world_size()
        predicted = self.decoder(related[is_masked]).float()
        targets = standardised(slices[is_masked], centred=self.centred)
        return (predicted - targets).square().mean(dim=1).sum() / count, constant_distance(targets)

    def released_loss(
        self, related: Tensor, slices: Tensor, is_present: Tensor, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Mean squared distance per element between predictions and embeddings of all slices, hidden or not.

        Args:
            related: Output of the slice encoder for hidden slices, [B, S, E].
            slices: Embeddings before hiding, [B, S, E]; no gradient reaches them.
            is_present: Bool [B, S].
            scale: Factor of the mean.

        Returns:
            As `loss`.
        """
        count = sum_over_processes(is_present.sum()).clamp(min=1) / world_size()
        targets = slices[is_present].detach().float()
        predicted = self.decoder(related[is_present]).float()
        distance = (predicted - targets).square().mean(dim=1).sum() / count
        return scale * distance, scale * constant_distance(targets)


@torch.no_grad()
def standardised(targets: Tensor, *, centred: bool = False) -> Tensor:
    """Targets [N, E] to zero mean and unit variance row by row, in float32.

    Args:
        targets: Targets of this process; N may differ between processes.
        centred: Bring every element to zero mean and unit variance over the rows of all processes first.
    """
    targets = targets.float()
    if centred:
        count = sum_over_processes(targets.new_tensor(len(targets))).clamp(min=1)
        targets = targets - sum_over_processes(targets.sum(dim=0)) / count
        variance = sum_over_processes(targets.square().sum(dim=0)) / count
        targets = targets * variance.clamp(min=torch.finfo(variance.dtype).tiny).rsqrt()
    return F.layer_norm(targets, targets.shape[1:])


def constant_distance(targets: Tensor) -> Tensor:
    """Mean squared distance per element of the best constant prediction of targets [N, E]; 0 of none."""
    return targets.var(dim=0, correction=0).mean() if len(targets) else targets.new_zeros(())
