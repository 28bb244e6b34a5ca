"""The pre-training step that was released with VoCo, restated from its description: what ours is measured against.

Its costs are kept on purpose: crops are cut and changed one by one on the CPU, cosines are taken row by row and pair by
pair, the loss is float64 and read back several times, the encoder computes its activations twice, and two random crops
share the work of embedding all base crops. Nothing of the package uses it.

`v1`: the code of Wu et al., CVPR 2024, https://arxiv.org/abs/2402.17300; crops are resized, the teacher is a
whole network.
`v2`: the code of https://arxiv.org/abs/2410.09890; the teacher is a projector, and a term compares volumes.

Shapes: B volumes, R random crops, G base crops, P projection.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from monai.transforms import Compose, RandFlip, RandRotate90, RandShiftIntensity, Resize, SpatialCrop
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.nn.backbones import Backbone

EPSILON = 1e-6
MOMENTUM = 0.9
NUM_QUERIES = 2
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Form:
    """One of the two released steps.

    Args:
        name: Which.
        grid: Base crops along x and along y.
        projector_dim: P.
        shift_prob: Of an intensity shift.
    """

    name: Literal["v1", "v2"]
    grid: int
    projector_dim: int
    shift_prob: float


V1 = Form("v1", grid=4, projector_dim=2048, shift_prob=0.1)
V2 = Form("v2", grid=3, projector_dim=1024, shift_prob=0.5)


class PublishedStep:
    """Network, teacher, optimiser and one step.

    Args:
        backbone: The encoder; the released one computes activations twice.
        form: Which step.
        cell: Voxels (x, y, z) of a base crop in the canvas.
        crop_size: Voxels of the network's input; resized where it differs from `cell`.
        has_dropout: `v2` blanks a fifth of the embeddings.
        device: Of the network.
    """

    def __init__(
        self,
        backbone: Backbone,
        form: Form,
        *,
        cell: Size,
        crop_size: Size,
        has_dropout: bool = True,
        device: str = "cpu",
    ) -> None:
        self.form, self.cell, self.crop_size, self.has_dropout, self.device = form, cell, crop_size, has_dropout, device
        self.backbone = backbone.to(device)
        self.student = projector(backbone.embedding_dim, form.projector_dim).to(device)
        self.teacher = projector(backbone.embedding_dim, form.projector_dim).to(device).requires_grad_(False)
        self.teacher_backbone = copy.deepcopy(self.backbone).requires_grad_(False) if form.name == "v1" else None
        trained = [*self.backbone.parameters(), *self.student.parameters()]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, amsgrad=True)
        self.is_cuda = torch.device(device).type == "cuda"
        self.scaler = torch.amp.GradScaler(enabled=self.is_cuda)

    @property
    def canvas_size(self) -> Size:
        """Voxels of the canvas."""
        x, y, z = self.cell
        return self.form.grid * x, self.form.grid * y, z

    def step(self, canvases: Tensor, number: int) -> list[float]:
        """One optimiser step on canvases [B, 1, X, Y, Z]; returns the terms of the loss, read back one by one."""
        crops, labels = self.cut(canvases, np.random.default_rng(number))
        with torch.autocast("cuda", torch.float16, enabled=self.is_cuda):
            terms = self.losses(crops.to(self.device), labels)
        read = [term.item() for term in terms]
        torch.autograd.backward(self.scaler.scale(torch.stack(terms).sum()))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return read

    def cut(self, canvases: Tensor, rng: np.random.Generator) -> tuple[Tensor, list[NDArray[np.float64]]]:
        """Crops [B * R + B * G, 1, x, y, z], random ones first, and labels [R, G] of each volume."""
        x, y, _ = self.cell
        random: list[Tensor] = []
        bases: list[Tensor] = []
        labels = []
        for canvas in canvases:
            rows = []
            for _ in range(NUM_QUERIES):
                centre = [int(rng.integers(size // 2, self.form.grid * size - size // 2)) for size in (x, y)]
                start = (centre[0] - x // 2, centre[1] - y // 2)
                random.append(self._crop(canvas, start))
                rows.append(overlaps(start, self.form.grid, (x, y)))
            for i in range(self.form.grid):
                bases.extend(self._crop(canvas, (i * x, j * y)) for j in range(self.form.grid))
            labels.append(np.stack(rows))
        return torch.stack([*random, *bases]), labels

    def _crop(self, canvas: Tensor, start: tuple[int, int]) -> Tensor:
        end = (start[0] + self.cell[0], start[1] + self.cell[1], self.cell[2])
        changes: list[Any] = [SpatialCrop(roi_start=(*start, 0), roi_end=end)]
        if self.cell != self.crop_size:
            changes.append(Resize(self.crop_size, mode="trilinear", align_corners=True))
        changes += [RandFlip(prob=0.2, spatial_axis=axis) for axis in range(3)]
        changes += [RandRotate90(prob=0.2, max_k=3), RandShiftIntensity(offsets=0.1, prob=self.form.shift_prob)]
        cropped = Compose(changes)(canvas)  # made anew for every crop, as released
        return torch.as_tensor(cropped.as_tensor()) if hasattr(cropped, "as_tensor") else torch.as_tensor(cropped)

    def losses(self, crops: Tensor, labels: Sequence[NDArray[np.float64]]) -> list[Tensor]:
        """Terms of the loss, whose sum is minimised, for crops as `cut` returns them."""
        batch, bases = len(labels), self.form.grid**2
        features = self.backbone.embed(crops)
        move(self.teacher, self.student)
        kept = F.dropout1d(features, 0.2, training=True) if self.form.name == "v2" and self.has_dropout else features
        student = self.student(kept)
        with torch.no_grad():
            if self.teacher_backbone is not None:
                move(self.teacher_backbone, self.backbone)
                features = self.teacher_backbone.embed(crops)
            teacher = self.teacher(features)
        num_random = len(crops) - batch * bases
        parts = [(p[:num_random].chunk(batch), p[num_random:].chunk(batch)) for p in (student, teacher)]
        (queries, cells), (teacher_queries, teacher_cells) = parts
        terms = []
        for index, label in enumerate(labels):
            target, after = torch.from_numpy(label).to(self.device), (index + 1) % batch
            if self.form.name == "v1":
                there = similarities(queries[index], teacher_cells[index])
                back = similarities(teacher_queries[index], cells[index])
                terms.append([*v1_terms((there + back) / 2, target), regulariser(cells[index])])
                continue
            intra = v2_term(similarities(queries[index], teacher_cells[index].detach()), target)
            soft = similarities(teacher_queries[index], teacher_cells[after]).detach()
            inter = v2_term(similarities(queries[index], cells[after]), soft)
            terms.append([intra, inter, regulariser(cells[index])])
        return [torch.stack([row[term].double() for row in terms]).mean() for term in range(3)]


def projector(embedding_dim: int, width: int) -> nn.Sequential:
    """Two hidden layers that are normalised over the batch, then a linear one."""
    layers: list[nn.Module] = []
    for size in (embedding_dim, width):
        layers += [nn.Linear(size, width), nn.BatchNorm1d(width, affine=False, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, width))


@torch.no_grad()
def move(teacher: nn.Module, student: nn.Module) -> None:
    """Parameter by parameter, t <- 0.9 t + 0.1 s."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.data = slow.data * MOMENTUM + fast.data * (1 - MOMENTUM)


def overlaps(start: tuple[int, int], grid: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Share of a crop's area in each cell, [G], one cell after the other."""
    shares = []
    for i in range(grid):
        for j in range(grid):
            along = [
                max(0, min(first + length, (cell + 1) * length) - max(first, cell * length))
                for first, cell, length in zip(start, (i, j), size, strict=True)
            ]
            shares.append(along[0] * along[1] / (size[0] * size[1]))
    return np.array(shares, dtype=np.float64)


def similarities(queries: Tensor, cells: Tensor) -> Tensor:
    """ReLU of the cosines, [R, G], one row after the other."""
    rows = [F.cosine_similarity(query[None].expand_as(cells), cells, dim=1) for query in queries]
    return F.relu(torch.stack(rows))


def v1_terms(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Overlap-weighted mean of -log(1 - |y - l|), and mean square of logits where the label is 0."""
    costs = -torch.log(1 - (labels - logits).abs() + EPSILON)
    untouched = (labels == 0).to(labels.dtype)
    positive = (costs * labels).sum() / (labels.sum() + EPSILON)
    return positive, (logits**2 * untouched).sum() / (untouched.sum() + EPSILON)


def v2_term(logits: Tensor, labels: Tensor) -> Tensor:
    """The first of `v1_terms`, and the mean of -log(1 - l) where the label is 0."""
    untouched = (labels == 0).to(labels.dtype)
    negative = (-torch.log(1 - logits + EPSILON) * untouched).sum() / (untouched.sum() + EPSILON)
    return v1_terms(logits, labels)[0] + negative


def regulariser(cells: Tensor) -> Tensor:
    """Mean over pairs i < j of ReLU(cos(q_i, sg[q_j]))^2, one pair after the other."""
    pairs = [
        F.relu(F.cosine_similarity(cells[i][None], cells[j][None].detach())) ** 2
        for i in range(len(cells))
        for j in range(i + 1, len(cells))
    ]
    return torch.cat(pairs).mean()
