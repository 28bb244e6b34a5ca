"""Attention along the slices of a volume that looks at a few learnt places between slices instead of at all slices.

Zhu et al., Deformable DETR, ICLR 2021, equation 2 for one level and one axis: https://arxiv.org/abs/2010.04159

For the query of slice n, head m: y = sum over p of a_p S(v, n + d_p), with offsets d and weights a (softmax over p)
that are linear in the query, values v that are linear in the slices, and S the linear interpolation between slices, 0
outside the volume. No weight depends on the number of slices.

Shapes: B volumes, S slices, E embedding, M heads, P points, D = E / M, T queries.
"""

import torch
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Deformable attention along the slice axis.

    At the start every head looks at the slices 1, 2, ... P away with equal weights, even heads up and odd heads down.

    Args:
        embedding_dim: E, a multiple of `num_heads`.
        num_heads: M.
        num_points: P of each head and query.
    """

    def __init__(self, embedding_dim: int, *, num_heads: int = 8, num_points: int = 4) -> None:
        super().__init__()
        if embedding_dim % num_heads:
            raise ValueError(f"embedding_dim {embedding_dim} is no multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.num_points = num_points
        self.offsets = nn.Linear(embedding_dim, num_heads * num_points)
        self.weights = nn.Linear(embedding_dim, num_heads * num_points)
        self.values = nn.Linear(embedding_dim, embedding_dim)
        self.output = nn.Linear(embedding_dim, embedding_dim)
        self._initialise()

    def forward(
        self,
        queries: Tensor,
        slices: Tensor,
        is_present: Tensor | None = None,
        offset_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            queries: Slices with their positions, [B, S, E].
            slices: Slices without positions, [B, S, E].
            is_present: False where a slice is padding, which then counts as outside the volume, bool [B, S].
            offset_scale: Slices per unit of the offsets, [B]; without it the unit is a slice.

        Returns:
            [B, S, E]; meaningless at padding.
        """
        values = self.values(slices)
        if is_present is not None:
            values = values.masked_fill(~is_present[..., None], 0.0)
        by_head = self.num_heads, self.num_points
        # A place needs more digits than bfloat16 has: between 32 and 64 it only knows quarters of a slice.
        offsets = _at_least_float32(self.offsets(queries)).unflatten(-1, by_head)
        if offset_scale is not None:
            offsets = offsets * offset_scale.to(offsets.dtype)[:, None, None, None]
        places = torch.arange(slices.shape[1], device=slices.device)[:, None, None] + offsets
        weights = _at_least_float32(self.weights(queries)).unflatten(-1, by_head).softmax(dim=-1)
        sampled = sample(_at_least_float32(values).unflatten(-1, (self.num_heads, -1)), places, weights)
        attended: Tensor = self.output(sampled.flatten(-2).to(values.dtype))
        return attended

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialise as Deformable DETR does, turned to one axis."""
        for linear in (self.offsets, self.weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        directions = 1.0 - 2.0 * (torch.arange(self.num_heads) % 2)
        distances = torch.arange(1.0, self.num_points + 1)
        self.offsets.bias.copy_((directions[:, None] * distances).flatten())
        for linear in (self.values, self.output):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)


def sample(values: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of values between slices, by picking both neighbours of each place.

    At a whole number the gradient of a place is that of the interval above it.

    Args:
        values: [B, S, M, D].
        places: Places in slices from the first, [B, T, M, P].
        weights: [B, T, M, P].

    Returns:
        [B, T, M, D].
    """
    num_slices, size = values.shape[1], values.shape[-1]
    below = places.floor()
    fraction = places - below
    indices = torch.stack([below, below + 1], dim=-1).long()
    is_inside = (indices >= 0) & (indices < num_slices)
    shares = torch.stack([1 - fraction, fraction], dim=-1) * weights[..., None] * is_inside
    flat = indices.clamp(min=0).clamp(max=num_slices - 1).permute(0, 2, 1, 3, 4).flatten(2)
    picked = values.permute(0, 2, 1, 3).gather(2, flat[..., None].expand(-1, -1, -1, size))
    by_query = picked.unflatten(2, (places.shape[1], 2 * places.shape[3]))
    return torch.einsum("btmk,bmtkd->btmd", shares.flatten(3), by_query)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
