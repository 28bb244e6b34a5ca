"""A transformer that relates the slices of a volume to each other, and what turns them into one vector.

f_inter of Nguyen et al., Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter Contrastive
Clustering, AAAI 2023, https://arxiv.org/abs/2212.01893. The released code lets its attention run over the elements of
an embedding; here it runs over the slices, as the abstract describes. Positions are ours: the released code has none.

Shapes: B volumes, S slices, E embedding.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

from medssl_cli.nn.slices.deformable_attention import DeformableAttention

# Waves of the positions in mm: from two slices 2 mm apart to a few times the length of a body.
SHORTEST_MM: Final = 4.0
LONGEST_MM: Final = 4000.0


class SliceEncoder(nn.Module):
    """Slices that know of their neighbours: [B, S, E] to [B, S, E], for any number of slices.

    Args:
        embedding_dim: E, even and a multiple of `num_heads`.
        num_layers: Number of layers, each of attention and a two-layer perceptron.
        num_heads: Number of heads of the attention.
        num_points: Places that each head looks at from each slice.
        ffn_ratio: Hidden width of the perceptron, in E.
        dropout: Probability.
        pre_norm: x + Drop(f(Norm(x))), and a norm at the end. False: Drop(Norm(x + f(x))), as in the released code.
        has_positions: Add a sinusoidal code of the position in mm to queries, never to values. False: only the order of
            slices counts.
        reference_spacing_mm: If given, offsets of the attention are in this many millimetres, so that it looks equally
            far in thin and thick slices. Without it, they are in slices.
    """

    def __init__(
        self,
        embedding_dim: int = 256,
        *,
        num_layers: int = 4,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_ratio: float = 4.0,
        dropout: float = 0.1,
        pre_norm: bool = True,
        has_positions: bool = True,
        reference_spacing_mm: float | None = None,
    ) -> None:
        super().__init__()
        self.has_positions = has_positions
        self.reference_spacing_mm = reference_spacing_mm
        self.layers = nn.ModuleList(
            SliceLayer(
                DeformableAttention(embedding_dim, num_heads=num_heads, num_points=num_points),
                embedding_dim,
                hidden_dim=round(ffn_ratio * embedding_dim),
                dropout=dropout,
                pre_norm=pre_norm,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embedding_dim) if pre_norm else nn.Identity()

    def forward(self, slices: Tensor, is_present: Tensor, positions_mm: Tensor) -> Tensor:
        """Encode.

        Args:
            slices: Embeddings in the order of their positions, [B, S, E].
            is_present: False where a slice is padding, bool [B, S].
            positions_mm: Positions of the slices along their normal, [B, S], any finite number at padding;
                `unknown_positions` where the spacing is unknown.

        Returns:
            [B, S, E]; 0 at padding.
        """
        code = position_code(positions_mm, slices.shape[-1]).to(slices.dtype) if self.has_positions else 0.0
        scale = None
        if self.reference_spacing_mm is not None:
            scale = slices_per_unit(positions_mm, is_present, unit_mm=self.reference_spacing_mm)
        for layer in self.layers:
            slices = layer(slices, code, is_present, scale)
        return self.norm(slices).masked_fill(~is_present[..., None], 0.0)


class SliceLayer(nn.Module):
    """Attention along the slices, then a perceptron on each slice; see `SliceEncoder`.

    Args:
        attention: Attention between embeddings of the size `embedding_dim`.
        embedding_dim: E.
        hidden_dim: Width of the hidden layer of the perceptron.
        dropout: Probability.
        pre_norm: See `SliceEncoder`.
    """

    def __init__(
        self, attention: DeformableAttention, embedding_dim: int, *, hidden_dim: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = attention
        self.perceptron = nn.Sequential(
            nn.Linear(embedding_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, embedding_dim)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(embedding_dim) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, slices: Tensor, code: Tensor | float, is_present: Tensor, scale: Tensor | None) -> Tensor:
        """One layer.

        Args:
            slices: [B, S, E].
            code: Code of the positions, [B, S, E], or 0.
            is_present: Bool [B, S].
            scale: Scale of the offsets, [B], or None.
        """
        if self.pre_norm:
            normed = self.norms[0](slices)
            slices = slices + self.dropout(self.attention(normed + code, normed, is_present, scale))
            return slices + self.dropout(self.perceptron(self.norms[1](slices)))
        attended = self.attention(slices + code, slices, is_present, scale)
        slices = self.dropout(self.norms[0](slices + attended))
        return self.dropout(self.norms[1](slices + self.perceptron(slices)))


class AttentionPool(nn.Module):
    """One vector per volume: a mean of its slices with learnt weights, at the start the plain mean.

    Args:
        embedding_dim: E.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(embedding_dim, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, slices: Tensor, is_present: Tensor) -> Tensor:
        """Pool slices [B, S, E] with bool [B, S] to [B, E]; 0 for a volume without slices."""
        scores = self.score(slices).squeeze(-1)
        lowest = torch.finfo(scores.dtype).min
        weights = scores.masked_fill(~is_present, lowest).softmax(dim=1) * is_present
        return (weights[..., None] * slices).sum(dim=1)


def mean_pool(slices: Tensor, is_present: Tensor) -> Tensor:
    """Mean of the slices [B, S, E] that are present, bool [B, S]: [B, E]; 0 for a volume without slices."""
    weights = is_present.to(slices.dtype)
    return (weights[..., None] * slices).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)[:, None]


def position_code(positions_mm: Tensor, embedding_dim: int) -> Tensor:
    """Sines, then cosines, of positions at wavelengths from 4 mm to 4 m, in equal ratios.

    Args:
        positions_mm: [...].
        embedding_dim: E, even.

    Returns:
        [..., E] in float32 or wider.

    Raises:
        ValueError: E is odd.
    """
    if embedding_dim % 2:
        raise ValueError(f"a position needs an even number of elements, not {embedding_dim}")
    places = positions_mm.to(torch.promote_types(positions_mm.dtype, torch.float32))
    steps = torch.linspace(0, 1, embedding_dim // 2, device=places.device, dtype=places.dtype)
    wavelengths = SHORTEST_MM * (LONGEST_MM / SHORTEST_MM) ** steps
    angles = places[..., None] * (2 * math.pi / wavelengths)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def slices_per_unit(positions_mm: Tensor, is_present: Tensor, *, unit_mm: float) -> Tensor:
    """How many slices a length is, by the least-squares line through the positions of the slices.

    Negative where positions fall from slice to slice, so that a length keeps its direction in space.

    Args:
        positions_mm: [B, S].
        is_present: Bool [B, S].
        unit_mm: The length.

    Returns:
        [B]; 1 for a single slice or equal positions.
    """
    weights = is_present.to(positions_mm.dtype)
    indices = torch.arange(positions_mm.shape[1], device=positions_mm.device).to(positions_mm.dtype)
    count = weights.sum(dim=1, keepdim=True).clamp(min=1.0)
    positions = positions_mm.masked_fill(~is_present, 0.0)
    index_gaps = (indices - (weights * indices).sum(dim=1, keepdim=True) / count) * weights
    position_gaps = (positions - positions.sum(dim=1, keepdim=True) / count) * weights
    spacing = (index_gaps * position_gaps).sum(dim=1) / index_gaps.square().sum(dim=1).clamp(min=1e-6)
    is_known = spacing.abs() > 1e-6
    return torch.where(is_known, unit_mm / torch.where(is_known, spacing, 1.0), 1.0)
