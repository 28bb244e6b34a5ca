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
        total = total + regulariser(bases[i], "one_sided")
    return total / batch


def v1_total(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Prediction in both directions at once, squares of untouched logits, one-sided regulariser."""
    (queries, bases), (teacher_queries, teacher_bases) = student, teacher
    total = ZERO
    for i in range(len(queries)):
        weighted, weights, negatives, num_negatives = ZERO, ZERO, ZERO, 0
        for r in range(len(queries[i])):
            for g in range(len(bases[i])):
                forth = logit(queries[i][r], teacher_bases[i][g].detach())
                back = logit(teacher_queries[i][r].detach(), bases[i][g])
                value, target = (forth + back) / 2, targets[i][r][g]
                weighted = weighted + target * -torch.log(1 - torch.abs(target - value) + EPSILON)
                weights = weights + target
                if target == 0:
                    negatives, num_negatives = negatives + value * value, num_negatives + 1
        total = total + weighted / (weights + EPSILON) + negatives / (num_negatives + EPSILON)
        total = total + regulariser(bases[i], "one_sided")
    return total / len(queries)


def fixed_total(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], targets: Tensor, *, slope: float, kind: str
) -> Tensor:
    """The terms of v2, with a slope below zero, every other volume's base crops, and two-sided regularisers."""
    (queries, bases), (teacher_queries, teacher_bases) = student, teacher
    batch = len(queries)
    total = ZERO
    for i in range(batch):
        intra = [
            [leaky_logit(q, b.detach(), targets[i][r][g], slope) for g, b in enumerate(teacher_bases[i])]
            for r, q in enumerate(queries[i])
        ]
        total = total + v2_volume_loss(intra, [list(row) for row in targets[i]]) + regulariser(bases[i], kind)
        for j in range(batch):
            if j == i:
                continue
            soft = [[logit(q, b).detach() for b in teacher_bases[j]] for q in teacher_queries[i]]
            inter = [
                [leaky_logit(q, b, soft[r][g], slope) for g, b in enumerate(bases[j])] for r, q in enumerate(queries[i])
            ]
            total = total + v2_volume_loss(inter, soft) / (batch - 1)
    return total / batch


def leaky_logit(a: Tensor, b: Tensor, target: Tensor, slope: float) -> Tensor:
    """As `logit`; where it is 0 because of the sign of a pair that overlaps, part of the cosine's gradient stays."""
    value = cosine(a, b)
    if value > 0:
        return value
    return slope * (value - value.detach()) if target > 0 else ZERO


def regulariser(bases: Tensor, kind: str) -> Tensor:
    """Mean over pairs of squared positive (`one_sided`, `squared`) or `absolute` cosines."""
    pairs = []
    for a in range(len(bases)):
        for b in range(a + 1, len(bases)):
            if kind == "absolute":
                pairs.append(torch.abs(cosine(bases[a], bases[b])))
            else:
                pairs.append(logit(bases[a], bases[b].detach() if kind == "one_sided" else bases[b]) ** 2)
    return sum(pairs, ZERO) / len(pairs)


def resized(crop: np.ndarray, size: list[int]) -> np.ndarray:
    """One crop [C, x, y, z] on another number of voxels between the same outermost voxel centres, axis by axis."""
    for axis, count in enumerate(size):
        lines = np.moveaxis(crop, 1 + axis, -1)
        places = np.arange(count) * (lines.shape[-1] - 1) / (count - 1)
        low = np.minimum(places.astype(int), lines.shape[-1] - 2)
        lines = lines[..., low] * (1 - (places - low)) + lines[..., low + 1] * (places - low)
        crop = np.moveaxis(lines, -1, 1 + axis)
    return crop


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
