"""Losses of trivial predictors where no formula gives them: measured on what the first steps of a training show."""

from collections.abc import Mapping, Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn

from medssl_cli.nn.distributed import sum_over_processes, world_size

NUM_BATCHES: Final = 50


class MeasuredBaselines(nn.Module):
    """Means over the first batches, part of the state of a run. They change no loss.

    Args:
        names: Names of the predictors.
        num_batches: Batches to measure.
    """

    sums: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str], num_batches: int = NUM_BATCHES) -> None:
        super().__init__()
        self.names, self.num_batches = tuple(names), num_batches
        self.register_buffer("sums", torch.zeros(len(self.names), dtype=torch.float32))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def is_open(self) -> bool:
        """Whether another batch is wanted."""
        return bool(self.names) and self.training and int(self.count) < self.num_batches

    @torch.no_grad()
    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of one batch of this process, scalars; a batch with one that is not finite does not count."""
        values = torch.stack([losses[name].detach().to(self.sums) for name in self.names])
        values = sum_over_processes(values) / world_size()
        if values.isfinite().all():
            self.sums.add_(values)
            self.count.add_(1)

    def values(self) -> dict[str, float]:
        """Mean losses by name; empty before the first batch."""
        number = int(self.count)
        if not number:
            return {}
        return {
            name: float(total) / number
            for name, total in zip(self.names, cast(list[float], self.sums.tolist()), strict=True)
        }
