"""Batches that are spread over processes, treated as one batch. Without a process group each function is the identity.

Shapes: W processes, B rows of each process.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


def world_size() -> int:
    """Processes that train together; 1 without a process group."""
    return distributed.get_world_size() if _is_spread() else 1


def rank() -> int:
    """This process's place among them."""
    return distributed.get_rank() if _is_spread() else 0


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, with gradients to the process that made them.

    Args:
        rows: [B, ...], of the same shape in every process.

    Returns:
        [W * B, ...].
    """
    return _Gather.apply(rows) if _is_spread() else rows


def sum_over_processes(values: Tensor) -> Tensor:
    """Element-wise sum over processes; the gradient is summed over them too."""
    return _Sum.apply(values) if _is_spread() else values


@torch.no_grad()
def max_over_processes(values: Tensor) -> Tensor:
    """Element-wise maximum over processes, without gradients."""
    largest = values.clone()
    if _is_spread():
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return largest


def own_share(rows: Tensor) -> Tensor:
    """This process's part of rows that every process holds: consecutive rows, the parts in the order of the ranks.

    Args:
        rows: [B, ...], equal in every process.

    Returns:
        A view, [B / W, ...]; the first parts are one row longer where W does not divide B.
    """
    return rows.tensor_split(world_size())[rank()]


class BatchNorm(nn.Module):
    """Zero mean and unit variance over the rows of all processes; no learnt scale, no running statistics.

    With one process it is `torch.nn.BatchNorm1d(affine=False, track_running_stats=False)`.

    Args:
        eps: Added to the variance.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise [B, E]; every process has the same B."""
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        count = len(rows) * world_size()
        mean = sum_over_processes(wide.sum(0)) / count
        centred = wide - mean
        variance = sum_over_processes(centred.square().sum(0)) / count
        return (centred * torch.rsqrt(variance + self.eps)).to(rows.dtype)


class _SynchronisedNorm(_BatchNorm):
    """A batch norm over the images of all processes, each with equally many; with one process it is torch's."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalise [B, C, ...]."""
        if not self.training or world_size() == 1:
            normalised: Tensor = super().forward(images)
            return normalised
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        axes = [axis for axis in range(images.ndim) if axis != 1]
        count = images.numel() // images.shape[1] * world_size()
        mean = sum_over_processes(wide.sum(axes)) / count
        shape = [1, -1, *[1] * (images.ndim - 2)]
        centred = wide - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / max(1, count - 1))
        result = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(images.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(variance.to(self.running_var), momentum)


class _SynchronisedNorm1d(_SynchronisedNorm, nn.BatchNorm1d):
    pass


class _SynchronisedNorm2d(_SynchronisedNorm, nn.BatchNorm2d):
    pass


class _SynchronisedNorm3d(_SynchronisedNorm, nn.BatchNorm3d):
    pass


def synchronise_norms(module: nn.Module) -> None:
    """Let all batch norms inside a module see the images of all processes. Works with gloo too, unlike torch's."""
    kinds: dict[type[nn.Module], type[nn.Module]] = {
        nn.BatchNorm1d: _SynchronisedNorm1d,
        nn.BatchNorm2d: _SynchronisedNorm2d,
        nn.BatchNorm3d: _SynchronisedNorm3d,
    }
    for part in module.modules():
        if type(part) in kinds:
            part.__class__ = kinds[type(part)]


def _is_spread() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        distributed.all_reduce(total)
        return total[rank() * ctx.num_rows : (rank() + 1) * ctx.num_rows]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total
