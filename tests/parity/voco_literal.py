"""VoCo's equations restated one crop, one base crop and one number at a time. Slow on purpose; shares no code with it.

Vectors are 1D float64 tensors and numbers are float64 scalars, so that gradients can be compared too.
"""

import numpy as np
import torch
from torch import Tensor

EPSILON = 1e-6
ZERO = torch.zeros((), dtype=torch.float64)


def overlap_by_counting_voxels(offset: list[int], cell: list[int], size: list[int]) -> float:
    """Share of a crop's voxels that lie in a grid cell."""
    shared = 1
    for start, index, extent in zip(offset, cell, size, strict=True):
        crop = set(range(start, start + extent))
        base = set(range(index * extent, (index + 1) * extent))
        shared *= len(crop & base)
    return shared / (size[0] * size[1] * size[2])


def labels(offset: list[int], grid: list[int], size: list[int]) -> list[float]:
    """Overlap with every cell, x slowest."""
    return [
        overlap_by_counting_voxels(offset, [i, j, k], size)
        for i in range(grid[0])
        for j in range(grid[1])
        for k in range(grid[2])
    ]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    dot, aa, bb = ZERO, ZERO, ZERO
    for x, y in zip(a, b, strict=True):
        dot, aa, bb = dot + x * y, aa + x * x, bb + y * y
    return dot / (aa.sqrt() * bb.sqrt())


def logit(a: Tensor, b: Tensor) -> Tensor:
    value = cosine(a, b)
    return value if value > 0 else ZERO


def v2_volume_loss(logits: list[list[Tensor]], targets: list[list[Tensor]]) -> Tensor:
    """Positive and negative term over all (random crop, base crop) pairs of one volume."""
    weighted, weights, negatives, num_negatives = ZERO, ZERO, ZERO, 0
    for row, target_row in zip(logits, targets, strict=True):
        for value, target in zip(row, target_row, strict=True):
            distance = target - value if target >= value else value - target
            weighted = weighted + target * -torch.log(1 - distance + EPSILON)
            weights = weights + target
            if target == 0:
                negatives = negatives - torch.log(1 - value + EPSILON)
                num_negatives += 1
    return weighted / (weights + EPSILON) + negatives / (num_negatives + EPSILON)


def v2_total(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Intra + inter + regulariser, each a mean over volumes; projections [B, R, P] and [B, G, P], targets [B, R, G]."""
    (queries, bases), (teacher_queries, teacher_bases) = student, teacher
    batch = len(queries)
    total = ZERO
    for i in range(batch):
        j = (i + 1) % batch
        intra = [[logit(q, b.detach()) for b in teacher_bases[i]] for q in queries[i]]
        soft = [[logit(q, b).detach() for b in teacher_bases[j]] for q in teacher_queries[i]]
        inter = [[logit(q, b) for b in bases[j]] for q in queries[i]]
        total = total + v2_volume_loss(intra, [list(row) for row in targets[i]]) + v2_volume_loss(inter, soft)
        pairs = [
            logit(bases[i][a], bases[i][b].detach()) ** 2
            for a in range(len(bases[i]))
            for b in range(a + 1, len(bases[i]))
        ]
        total = total + sum(pairs, ZERO) / len(pairs)
    return total / batch


def paper_total(student: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Equations 3, 5 and 7 of the CVPR paper with lambda = 1."""
    queries, bases = student
    total = ZERO
    for i in range(len(queries)):
        for r in range(len(queries[i])):
            for g in range(len(bases[i])):
                distance = torch.abs(targets[i][r][g] - logit(queries[i][r], bases[i][g].detach()))
                cost = -torch.log(torch.clamp(1 - distance, min=EPSILON))
                total = total + cost / (len(queries[i]) * len(bases[i]))
        n = len(bases[i])
        for a in range(n):
            for b in range(a + 1, n):
                total = total + 2 / (n * (n - 1)) * torch.abs(cosine(bases[i][a], bases[i][b]))
    return total / len(queries)


def augmented(crop: np.ndarray, flips: list[bool], quarter_turns: int, shift: float) -> np.ndarray:
    """One crop [C, x, y, z], mirrored along x, y, z, then turned in the x-y plane, then shifted in intensity."""
    for axis in range(3):
        if flips[axis]:
            crop = np.flip(crop, axis=1 + axis)
    return np.rot90(crop, k=quarter_turns, axes=(1, 2)) + shift


def projected(rows: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Linear, standardise each column over the rows, ReLU; twice; then Linear. `layers` are (weight, bias)."""
    for index, (weight, bias) in enumerate(layers):
        rows = torch.stack([weight @ row + bias for row in rows])
        if index < 2:
            centred = rows - rows.mean(dim=0)
            rows = torch.clamp(centred / torch.sqrt((centred**2).mean(dim=0) + 1e-5), min=0)
    return rows
