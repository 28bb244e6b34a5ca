"""The attention of MONAI's Swin transformer with the same parameters and results, for less time and memory.

Two things are left out. Windows that reach over the edge are padded there: queries of padding are not computed, since
their results are thrown away, and all keys of padding in a window are equal, so one key stands for them whose bias is
log sum exp of theirs. And the weights, 343^2 per head and window of 7^3 tokens, never exist all at once; a batch of
crops would have gigabytes of them. On a CPU a few windows are computed at a time, in the backward pass too; on CUDA the
library's fused kernel is used, where the width of a head is one that it takes.

Shapes: B images, W windows, H heads, Q queries, K keys, D width of a head, T tokens of an image, C channels.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

import numpy as np
import torch
from monai.networks.nets.swin_unetr import BasicLayer, SwinTransformer, SwinTransformerBlock, get_window_size
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Sizes = tuple[int, ...]
MASKED: Final = -100.0  # added between tokens that only the shift brought together, as in MONAI
CPU_CHUNK_BYTES: Final = 4 * 2**20
CHUNK_BYTES: Final = 256 * 2**20
FUSED_WIDTH: Final = 8  # the fused kernel takes heads whose width is a multiple of this, in any precision


def attend_in_chunks(transformer: SwinTransformer) -> None:
    """Give a Swin transformer this module's attention; its parameters stay where and what they are."""
    for module in list(transformer.modules()):
        if type(module) is SwinTransformerBlock:
            module.__class__ = _Block  # MONAI builds its blocks itself and takes no other class for them
        elif type(module) is BasicLayer:
            module.__class__ = _Layer


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """As `chunked_attention`, by the library's memory-efficient kernel; the bias gets the values' precision."""
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(values.dtype)[None])


def chunked_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, a few windows at a time.

    Args:
        queries: [W, H, Q, D].
        keys: [W, H, K, D].
        values: [W, H, K, D].
        bias: The same for all windows, [H, Q, K]; scores have its precision.

    Returns:
        [W, H, Q, D].
    """
    return cast(Tensor, _ChunkedAttention.apply(queries, keys, values, bias))


@dataclass(frozen=True)
class WindowGroup:
    """Windows of an image that are alike: the same tokens are padding, the same ones may see each other.

    Args:
        tokens: Which tokens of the image each window has, [W, Q].
        places: Their places in the window, [Q].
        padding: Places of padding in the window.
        mask: Added to the scores of a window's places, [Q, places of the window].
    """

    tokens: NDArray[np.int64]
    places: NDArray[np.int64]
    padding: NDArray[np.int64]
    mask: NDArray[np.float32]


@lru_cache(maxsize=256)
def window_groups(sizes: Sizes, window: Sizes, shift: Sizes) -> tuple[WindowGroup, ...]:
    """All windows of an image, alike ones together; every token is in exactly one of them.

    Args:
        sizes: Tokens along each axis.
        window: Places of a window along each axis.
        shift: How far windows are moved along each axis, cyclically over the padded image.
    """
    padded = tuple(-(-size // extent) * extent for size, extent in zip(sizes, window, strict=True))
    tokens = np.full(padded, -1)
    tokens[tuple(map(slice, sizes))] = np.arange(np.prod(sizes)).reshape(sizes)
    tokens = np.roll(tokens, [-by for by in shift], axis=tuple(range(len(sizes))))
    regions = np.zeros(padded, np.int64)
    for axis, (length, extent, by) in enumerate(zip(padded, window, shift, strict=True)):
        place = np.arange(length).reshape([-1 if other == axis else 1 for other in range(len(sizes))])
        crossed = (place >= length - extent).astype(np.int64) + (place >= length - by) if by else 0 * place
        regions = 3 * regions + crossed
    alike: dict[tuple[bytes, bytes], list[NDArray[np.int64]]] = defaultdict(list)
    for mine, region in zip(_partition(tokens, window), _partition(regions, window), strict=True):
        names = np.unique(region, return_inverse=True)[1]
        alike[(mine >= 0).tobytes(), names.tobytes()].append(mine)
    groups = []
    for (real, zones), windows in alike.items():
        is_real, region = np.frombuffer(real, bool), np.frombuffer(zones, np.int64)
        places = np.flatnonzero(is_real)
        mask = np.where(region[places, None] == region[None], 0, MASKED).astype(np.float32)
        groups.append(WindowGroup(np.stack(windows)[:, places], places, np.flatnonzero(~is_real), mask))
    return tuple(group for group in groups if len(group.places))


def _partition(grid: NDArray[np.int64], window: Sizes) -> NDArray[np.int64]:
    """Places of a grid by window: [number of windows, places of a window]."""
    counts = [length // extent for length, extent in zip(grid.shape, window, strict=True)]
    split = grid.reshape([size for pair in zip(counts, window, strict=True) for size in pair])
    axes = range(split.ndim)
    return split.transpose([*axes[::2], *axes[1::2]]).reshape(-1, int(np.prod(window)))


class _Layer(BasicLayer):
    """MONAI's stage without the mask over all windows, which nobody needs here."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return cast(Tensor, super().forward(x))
        x = x.movedim(1, -1)
        for block in self.blocks:
            x = block(x, None)
        if self.downsample is not None:
            x = self.downsample(x)
        return x.movedim(-1, 1)


class _Block(SwinTransformerBlock):
    """MONAI's block; compilers and exporters still see MONAI's way, which has no loops."""

    def forward_part1(self, x: Tensor, mask_matrix: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            return cast(Tensor, super().forward_part1(x, mask_matrix))
        batch, *sizes, channels = x.shape
        window, shift = get_window_size(tuple(sizes), self.window_size, self.shift_size)
        attention, heads = self.attn, self.attn.num_heads
        qkv = attention.qkv(self.norm1(x)).reshape(batch, -1, 3 * channels)
        index = attention.relative_position_index[: np.prod(window), : np.prod(window)]
        bias = attention.relative_position_bias_table[index.reshape(-1)].unflatten(0, index.shape).permute(2, 0, 1)
        groups = window_groups(tuple(sizes), window, shift)
        attended = [_attend(qkv, attention.qkv.bias, bias.to(_wide(qkv)), group, heads) for group in groups]
        order = np.argsort(np.concatenate([group.tokens.reshape(-1) for group in groups]))
        gathered = torch.cat(attended, dim=1)[:, torch.from_numpy(order).to(x.device)]
        return cast(Tensor, attention.proj(gathered).reshape(x.shape))


def _attend(qkv: Tensor, padding: Tensor | None, bias: Tensor, group: WindowGroup, heads: int) -> Tensor:
    """Attention of one group of windows.

    Args:
        qkv: Queries, keys and values of all tokens, [B, T, 3 C].
        padding: Those of padding, whose tokens are zero, [3 C].
        bias: Bias by relative positions, [H, places, places].
        group: The windows.
        heads: H.

    Returns:
        [B, W * Q, C], in the order of the group's tokens.
    """

    def on_device(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(qkv.device)

    num_windows, num_queries = group.tokens.shape
    chosen = qkv[:, on_device(group.tokens.reshape(-1))].reshape(len(qkv) * num_windows, num_queries, 3, heads, -1)
    queries, keys, values = chosen.permute(2, 0, 3, 1, 4)
    scores = bias[:, on_device(group.places)] + on_device(group.mask)
    added = scores[:, :, on_device(group.places)]
    if len(group.padding):
        blank = qkv.new_zeros(3 * heads * keys.shape[-1]) if padding is None else padding.to(qkv.dtype)
        _, key, value = blank.reshape(3, 1, heads, 1, -1).expand(3, len(keys), -1, -1, -1)
        keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        added = torch.cat([added, scores[:, :, on_device(group.padding)].logsumexp(2, keepdim=True)], dim=2)
    is_fused = qkv.device.type == "cuda" and keys.shape[-1] % FUSED_WIDTH == 0
    attended = (fused_attention if is_fused else chunked_attention)(queries, keys, values, added)
    return attended.transpose(1, 2).reshape(len(qkv), num_windows * num_queries, -1)


class _ChunkedAttention(torch.autograd.Function):
    """Keeps what goes in and out; the weights are computed again for the gradients."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        attended = torch.empty_like(queries, memory_format=torch.contiguous_format)
        with torch.autocast(queries.device.type, enabled=False):
            for chunk in _chunks(queries, keys):
                weights = _weights(queries[chunk], keys[chunk], bias).to(values.dtype)
                attended[chunk] = weights @ values[chunk]
        ctx.save_for_backward(queries, keys, values, bias, attended)
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        queries, keys, values, bias, attended = ctx.saved_tensors
        scale = queries.shape[-1] ** -0.5
        d_queries, d_keys, d_values = (torch.empty_like(tensor) for tensor in (queries, keys, values))
        d_bias = torch.zeros_like(bias)
        with torch.autocast(queries.device.type, enabled=False):
            for chunk in _chunks(queries, keys):
                query, key, d_out = queries[chunk], keys[chunk], gradients[0][chunk]
                weights = _weights(query, key, bias)
                d_values[chunk] = weights.to(d_out.dtype).mT @ d_out
                d_scores = (d_out @ values[chunk].mT).to(d_bias.dtype)
                d_scores.sub_((d_out.to(d_bias.dtype) * attended[chunk]).sum(-1, keepdim=True)).mul_(weights)
                d_bias += d_scores.sum(0)
                d_scores = d_scores.to(query.dtype)
                d_queries[chunk] = d_scores @ (key * scale)
                d_keys[chunk] = d_scores.mT @ (query * scale)
        return d_queries, d_keys, d_values, d_bias


def _wide(tensor: Tensor) -> torch.dtype:
    """What scores are computed in: halves are too narrow for a softmax."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _weights(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    scores = ((queries * queries.shape[-1] ** -0.5) @ keys.mT).to(bias.dtype).add_(bias)
    return torch.softmax(scores, dim=-1, out=scores)


def _chunks(queries: Tensor, keys: Tensor) -> Iterator[slice]:
    """Windows whose weights fit the level-2 cache, about; on other devices, a small part of the memory."""
    budget = CPU_CHUNK_BYTES if queries.device.type == "cpu" else CHUNK_BYTES
    size = max(1, budget // (4 * queries.shape[1] * queries.shape[2] * keys.shape[2]))
    for start in range(0, len(queries), size):
        yield slice(start, start + size)
