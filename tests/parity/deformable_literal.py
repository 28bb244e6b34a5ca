"""Deformable attention along one axis, written out place by place."""

import math

from torch import Tensor

from medssl_cli.nn.slices.deformable_attention import DeformableAttention


def value_between(values: list[float], place: float) -> float:
    """Linear interpolation; 0 outside."""
    below = math.floor(place)
    share = place - below
    total = 0.0
    if 0 <= below < len(values):
        total += (1 - share) * values[below]
    if 0 <= below + 1 < len(values):
        total += share * values[below + 1]
    return total


def linear(weight: Tensor, bias: Tensor, vector: list[float]) -> list[float]:
    return [
        sum(w * x for w, x in zip(row, vector, strict=True)) + b
        for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
    ]


def attend(module: DeformableAttention, queries: Tensor, slices: Tensor, num_present: int) -> list[list[float]]:
    """One volume: queries [S, E] and slices [S, E], of which the first `num_present` are no padding."""
    num_heads, num_points = module.num_heads, module.num_points
    values = [linear(module.values.weight, module.values.bias, row) for row in slices.tolist()[:num_present]]
    size = len(values[0]) // num_heads
    rows = []
    for n, query in enumerate(queries.tolist()):
        offsets = linear(module.offsets.weight, module.offsets.bias, query)
        logits = linear(module.weights.weight, module.weights.bias, query)
        heads: list[float] = []
        for m in range(num_heads):
            points = range(m * num_points, (m + 1) * num_points)
            total = sum(math.exp(logits[p]) for p in points)
            for e in range(m * size, (m + 1) * size):
                column = [row[e] for row in values]
                heads.append(
                    sum(math.exp(logits[p]) / total * value_between(column, n + offsets[p]) for p in points),
                )
        rows.append(linear(module.output.weight, module.output.bias, heads))
    return rows
