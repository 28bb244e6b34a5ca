"""A network of convolutions that sees the visible blocks of its images only, with the weights of the ordinary one.

After every convolution and pooling, hidden places are 0 again; norms take their statistics from visible places. Levels
that are coarser than the blocks count as fully visible.

Tian et al., Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling (SparK), ICLR 2023,
https://arxiv.org/abs/2301.03580; in 3D: Wald et al., https://arxiv.org/abs/2410.23132.

Shapes: B images, C channels, G groups of channels, X Y Z space (X Y in 2D), X' Y' Z' blocks along each axis.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medssl_cli.base.errors import UsageError
from medssl_cli.nn.axes import Axes
from medssl_cli.nn.backbones import Backbone, spread_blocks
from medssl_cli.nn.distributed import sum_over_processes, world_size

TOKEN_STD: Final = 0.02


class Visibility:
    """Which blocks the images of the present pass show, as all layers of a network know it."""

    hidden: Tensor | None = None
    """Bool [B, X', Y', Z']; None while all of them are visible."""

    @contextmanager
    def of(self, hidden: Tensor) -> Iterator[None]:
        """Hide these blocks within the context."""
        self.hidden = hidden
        try:
            yield
        finally:
            self.hidden = None

    def seen(self, maps: Tensor) -> Tensor | None:
        """Which places of maps [B, C, X, Y, Z] are visible, bool [B, 1, X, Y, Z]; None for all of them."""
        if self.hidden is None or not is_masked(maps.shape[2:], self.hidden.shape[1:]):
            return None
        return ~spread_blocks(self.hidden, maps.shape[2:])[:, None]

    def cover(self, maps: Tensor) -> Tensor:
        """Maps [B, C, X, Y, Z] that are 0 where they are hidden."""
        seen = self.seen(maps)
        return maps if seen is None else torch.where(seen, maps, 0)


def is_masked(size: Sequence[int], grid: Sequence[int]) -> bool:
    """Whether blocks of a grid are hidden in maps of a size: where they are no coarser than the blocks."""
    return all(extent % count == 0 for extent, count in zip(size, grid, strict=True))


def make_sparse(backbone: Backbone) -> Visibility:
    """Let all layers of a network of convolutions heed what is hidden. Its parameters stay what and where they are.

    Raises:
        UsageError: `E_RECIPE`, the network has other layers, or computes activations twice.
    """
    visibility = Visibility()
    if getattr(backbone, "use_checkpoint", False):
        raise _unfit("with use_checkpoint: what is computed again would not know what was hidden")
    for part in list(backbone.modules()):
        if any(True for _ in part.children()) or isinstance(part, POINTWISE):
            continue
        sparse = SPARSE.get(type(part))
        if sparse is None:
            raise _unfit(f"with a layer {type(part).__name__}: convolutions, pooling and norms know how")
        part.__class__ = sparse
        cast(Any, part).visibility = visibility
    return visibility


def _unfit(why: str) -> UsageError:
    return UsageError(
        "E_RECIPE",
        f"method mae: variant sparse cannot be had of a backbone {why}",
        hint="use method.variant=masked_input, or another backbone",
    )


def normalised(maps: Tensor, seen: Tensor, *, groups: int | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Visible places to mean 0 and variance 1; hidden ones are 0.

    Args:
        maps: [B, C, X, Y, Z].
        seen: Which places are visible, bool [B, 1, X, Y, Z].
        groups: Groups of channels that share a mean, in each image by itself; None for a mean of each channel over the
            images of all processes.
        eps: Added to the variance.

    Returns:
        Maps, and mean, variance and number of what they were taken of.
    """
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    space = tuple(range(2, maps.ndim))
    weights = seen.to(wide.dtype)
    count = weights.sum(space, keepdim=True)
    if groups is None:
        axes = (0, *space)
        count = sum_over_processes(count.sum(0, keepdim=True)).clamp(min=1)
        mean = sum_over_processes((wide * weights).sum(axes, keepdim=True)) / count
        centred = (wide - mean) * weights
        variance = sum_over_processes(centred.square().sum(axes, keepdim=True)) / count
    else:
        count = count.clamp(min=1) * (maps.shape[1] // groups)
        mean = _per_group(wide * weights, groups) / count
        centred = (wide - mean) * weights
        variance = _per_group(centred.square(), groups) / count
    return centred * torch.rsqrt(variance + eps), mean, variance, count


def _per_group(values: Tensor, groups: int) -> Tensor:
    """Sums over space and the channels of a group, for each channel, [B, C, 1, 1, 1]."""
    sums = values.flatten(2).sum(2).unflatten(1, (groups, -1))
    spread = sums.sum(2, keepdim=True).expand_as(sums).flatten(1)
    return spread.reshape(*spread.shape, *[1] * (values.ndim - 2))


class Densifier(nn.Module):
    """From the sparse maps of a network to full ones: a learnt vector in each hidden place, then a convolution.

    Args:
        channels: Channels of each map, fine to coarse.
        widths: Widths of each result; at the coarsest level equal widths need no convolution.
        sizes: Sizes of each map along each axis.
        grid: X', Y', Z'.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int], sizes: Sequence[Axes], grid: Axes) -> None:
        super().__init__()
        dims, last = len(grid), len(channels) - 1
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.InstanceNorm3d
        self.visibility = Visibility()
        self.norms, self.maps, self.tokens = nn.ModuleList(), nn.ModuleList(), nn.ParameterDict()
        for level, (before, after, size) in enumerate(zip(channels, widths, sizes, strict=True)):
            layer: Any = norm(before, affine=True)
            layer.__class__ = SPARSE[type(layer)]
            layer.visibility = self.visibility
            self.norms.append(layer)
            is_plain = level == last and before == after
            side = 1 if level == last else 3
            self.maps.append(nn.Identity() if is_plain else convolution(before, after, side, padding=side // 2))
            if is_masked(size, grid):
                token = torch.empty(before)
                nn.init.trunc_normal_(token, std=TOKEN_STD, a=-TOKEN_STD, b=TOKEN_STD)
                self.tokens[str(level)] = nn.Parameter(token)

    def forward(self, maps: Sequence[Tensor], hidden: Tensor) -> list[Tensor]:
        """Full maps [B, widths[i], ...], fine to coarse."""
        found = []
        with self.visibility.of(hidden):
            for level, (sparse, norm, layer) in enumerate(zip(maps, self.norms, self.maps, strict=True)):
                full = norm(sparse)
                seen = self.visibility.seen(sparse)
                if seen is not None:
                    token = self.tokens[str(level)].to(full.dtype)
                    full = torch.where(seen, full, token.view(1, -1, *[1] * (full.ndim - 2)))
                found.append(layer(full))
        return found


class _Covered:
    """A layer that puts 0 in hidden places of what comes out of it."""

    visibility: Visibility

    def forward(self, maps: Tensor) -> Tensor:
        return self.visibility.cover(super().forward(maps))  # type: ignore[misc]


class _SparseNorm:
    """A norm that takes its statistics from visible places."""

    visibility: Visibility

    def forward(self, maps: Tensor) -> Tensor:
        layer, seen = cast(Any, self), self.visibility.seen(maps)
        if seen is None and isinstance(self, _BatchNorm) and layer.training and world_size() > 1:
            seen = torch.ones_like(maps[:, :1], dtype=torch.bool)
        if seen is None:
            return cast(Tensor, super().forward(maps))  # type: ignore[misc]
        shape = [1, -1, *[1] * (maps.ndim - 2)]
        if isinstance(self, _BatchNorm) and not layer.training:
            mean, variance = layer.running_mean.view(shape), layer.running_var.view(shape)
            result = torch.where(seen, (maps - mean) * torch.rsqrt(variance + layer.eps), 0)
        else:
            result, mean, variance, count = normalised(maps, seen, groups=_groups(layer), eps=layer.eps)
            if isinstance(self, _BatchNorm):
                _remember(layer, mean.detach().flatten(), variance.detach().flatten(), float(count))
        if layer.weight is not None:
            result = result * layer.weight.view(shape) + torch.where(seen, layer.bias.view(shape), 0)
        return result.to(maps.dtype)


def _groups(layer: Any) -> int | None:
    """Groups of channels that a norm takes together in each image; None for a batch norm."""
    if isinstance(layer, _BatchNorm):
        return None
    return int(layer.num_groups) if isinstance(layer, nn.GroupNorm) else int(layer.num_features)


@torch.no_grad()
def _remember(layer: Any, mean: Tensor, variance: Tensor, count: float) -> None:
    """Move the running statistics of a batch norm, as torch does."""
    if layer.running_mean is None:
        return
    layer.num_batches_tracked.add_(1)
    momentum = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean), momentum)
    layer.running_var.lerp_((variance * count / max(1.0, count - 1)).to(layer.running_var), momentum)


def _sparse(kind: type[nn.Module], rule: type) -> type[nn.Module]:
    """A kind of layer that heeds what is hidden."""
    return type(f"Sparse{kind.__name__}", (rule, kind), {})


POINTWISE: Final = (
    nn.Identity,
    nn.Sequential,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.Dropout,
    nn.Dropout2d,
    nn.Dropout3d,
)
"""Layers that leave a 0 what it is."""
COVERED: Final = (nn.Conv2d, nn.Conv3d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d)
NORMS: Final = (nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)
SPARSE: Final[dict[type[nn.Module], type[nn.Module]]] = {
    **{kind: _sparse(kind, _Covered) for kind in COVERED},
    **{kind: _sparse(kind, _SparseNorm) for kind in NORMS},
}
