"""VoCo: learn what a crop shows by predicting how much of it lies in each cell of a grid over its surroundings.

The cells of a regular grid are the base crops. Cosines between a random crop and every base crop, negative ones set to
zero, must equal the fractions of the random crop inside each of them; base crops of one volume must differ.

Wu et al., VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis, CVPR 2024,
https://arxiv.org/abs/2402.17300 (`objective: paper`).
Wu et al., Large-Scale 3D Medical Image Pre-training with Geometric Context Priors, https://arxiv.org/abs/2410.09890
(`objective: v2`, as in the code that was released with it).

Shapes: B batch, R random crops, G base crops, P projection, N offsets.

Differences from the paper and the released code:

- `v2` follows the released code where it departs from the paper: random crops never start at the last legal voxel; the
  regulariser is the squared positive cosine and its second argument gets no gradient; "feature dropout" zeroes whole
  rows, so a fifth of the student's crops get one and the same projection (here in training mode only). Two of them in
  different volumes (4 % of pairs) have cosine 1 and cost 13.8 where the teacher sees 0, on average 0.55. In a small
  trial on synthetic volumes the total passed below its trivial baselines with `dropout_prob: 0` only.
- `paper` says nothing about cosines below 0 or |y - l| = 1. Its figure draws logits in 0...1, so they are ReLU(cos) as
  in `v2`, and 1 - |y - l| is kept above 1e-6, so a base crop costs at most 13.8 and a perfect prediction exactly 0.
  Random crops may start at every legal voxel. The weight of the regulariser is 1.
- The released code grids x and y only. Here z may have cells too; one cell along z is the published geometry.
- Cosines that rounding lifted above 1 count as 1: the released code gives NaN where they exceed it by 1e-6.
- The teacher moves once per optimiser step, which is once per forward pass unless gradients are accumulated.
"""

from math import prod
from operator import add
from typing import Annotated, Final, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.errors import UsageError
from medssl_cli.methods import Losses, MethodBase, ViewRequest, Views
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.crops import Size, augment_, base_crops, crops_at, draw_augmentation, draw_offsets
from medssl_cli.nn.momentum import freeze, update_teacher
from medssl_cli.nn.projector import Projector
from medssl_cli.recipe import PositiveInt, Probability
from medssl_cli.strict import Strict

EPSILON: Final = 1e-6
Projections = tuple[Tensor, Tensor]  # of random crops [B, R, P] and of base crops [B, G, P]
MIN_ROWS: Final = 16  # fewer make BatchNorm's statistics, and with them the projections, mostly noise


class Options(Strict):
    """Settings of VoCo; the defaults are those of the released `v2` code.

    Args:
        objective: `v2` (momentum teacher, between-volume term) or `paper` (CVPR 2024, one network).
        base_grid: Base crops along x, y, z. A step reads boxes of this many crops.
        num_random_crops: Per volume. More cost little, since the base crops are embedded once for all of them.
        projector_dim: Width of the projector and its output; 2048 in the code of the first paper.
        momentum: Of the teacher projector (`v2`).
        dropout_prob: Share of the student's crops whose embedding is replaced by zeros (`v2`); see above for its price.
        flip_prob: Per crop and axis.
        rot90_prob: Per crop, in the x-y plane; crops with unequal x and y are never turned.
        shift_prob: Per crop; 0.1 in the code of the first paper.
        shift: Largest intensity shift, on images scaled to 0...1.
    """

    objective: Literal["v2", "paper"] = "v2"
    base_grid: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 3, 1)
    num_random_crops: PositiveInt = 2
    projector_dim: PositiveInt = 1024
    momentum: Probability = 0.9
    dropout_prob: Annotated[float, Field(ge=0, lt=1)] = 0.2
    flip_prob: Probability = 0.2
    rot90_prob: Probability = 0.2
    shift_prob: Probability = 0.5
    shift: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1

    @model_validator(mode="after")
    def _two_base_crops(self) -> Self:
        if prod(self.base_grid) < 2:
            raise ValueError("base_grid needs at least two base crops: with one there is nothing to tell apart")
        return self


def overlap_fractions(
    offsets: Tensor, base_grid: Size, crop_size: Size, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Fraction of each random crop inside each base crop.

    Along one axis a crop that starts at o overlaps cell i by max(0, 1 - |o / size - i|); the fraction is the product
    over the axes, so at most eight cells are touched and the fractions of a crop inside the canvas sum to 1.

    Args:
        offsets: First voxels, integers [..., 3].
        base_grid: Cells along x, y, z.
        crop_size: Size of a cell and of a crop in voxels.

    Returns:
        [..., G]; cell (i, j, k) has the index (i * gy + j) * gz + k.
    """
    x, y, z = (
        _overlaps_along_axis(offsets[..., axis], cells, size).to(dtype) / size
        for axis, (cells, size) in enumerate(zip(base_grid, crop_size, strict=True))
    )
    return torch.einsum("...i,...j,...k->...ijk", x, y, z).flatten(-3)


def similarity(queries: Tensor, bases: Tensor) -> Tensor:
    """Cosines of queries [..., R, P] to bases [..., G, P], clamped to 0...1: [..., R, G].

    A cosine below 0 gets no gradient, even where the target is positive (so in the released code).
    """
    return _cosines(queries, bases).relu().clamp(max=1.0)


def overlap_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Prediction loss of `v2`: overlap-weighted mean over touched base crops plus mean over untouched ones.

    sum y c / (sum y + eps) + sum c [y = 0] / (number of y = 0 + eps) with c = -log(1 - |y - l| + eps), over R and G.

    Args:
        logits: In 0...1, [..., R, G].
        targets: In 0...1, [..., R, G].

    Returns:
        Per volume, [...]; -2e-6 (by eps) where logits equal targets, at most 27.6.
    """
    over = (-2, -1)
    costs = -torch.log(1.0 - (targets - logits).abs() + EPSILON)
    is_untouched = (targets == 0).to(costs.dtype)
    touched = (targets * costs).sum(over) / (targets.sum(over) + EPSILON)
    untouched = (costs * is_untouched).sum(over) / (is_untouched.sum(over) + EPSILON)
    return touched + untouched


def uniform_overlap_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Prediction loss of `paper`, equation 3: mean over all base crops of -log(1 - |y - l|).

    Args:
        logits: In 0...1, [..., R, G].
        targets: In 0...1, [..., R, G].

    Returns:
        Per volume, [...]; 0 where logits equal targets, at most -log(1e-6) = 13.8.
    """
    return -(1.0 - (targets - logits).abs()).clamp(min=EPSILON).log().mean((-2, -1))


def one_sided_regulariser(bases: Tensor) -> Tensor:
    """Regulariser of `v2`: mean over i < j of ReLU(cos(q_i, sg[q_j]))^2.

    Only the first of each pair gets a gradient, so the last base crop gets none.

    Args:
        bases: Projected base crops, [..., G, P].

    Returns:
        Per volume, [...]; 0 for orthogonal or opposite base crops, 1 for identical ones.
    """
    return _pairs(_cosines(bases, bases.detach())).relu().square().mean(-1)


def absolute_regulariser(bases: Tensor) -> Tensor:
    """Regulariser of `paper`, equation 5: mean over i < j of |cos(q_i, q_j)|, for bases [..., G, P]."""
    return _pairs(_cosines(bases, bases)).abs().mean(-1)


def v2_losses(student: Projections, teacher: Projections, targets: Tensor) -> dict[str, Tensor]:
    """The three terms of `v2`, each averaged over the batch.

    Args:
        student: Projections of random crops [B, R, P] and base crops [B, G, P].
        teacher: The same by the teacher; gets no gradient.
        targets: Overlap fractions, [B, R, G].
    """
    random, bases = student
    teacher_random, teacher_bases = (projections.detach() for projections in teacher)
    other_bases, teacher_other_bases = bases.roll(-1, dims=0), teacher_bases.roll(-1, dims=0)
    other_targets = similarity(teacher_random, teacher_other_bases)
    return {
        "prediction": overlap_loss(similarity(random, teacher_bases), targets).mean(),
        "inter": overlap_loss(similarity(random, other_bases), other_targets).mean(),
        "regulariser": one_sided_regulariser(bases).mean(),
    }


def paper_losses(student: Projections, targets: Tensor) -> dict[str, Tensor]:
    """The two terms of `paper`, each averaged over the batch; the prediction gives base crops no gradient.

    Args:
        student: Projections of random crops [B, R, P] and base crops [B, G, P].
        targets: Overlap fractions, [B, R, G].
    """
    random, bases = student
    return {
        "prediction": uniform_overlap_loss(similarity(random, bases.detach()), targets).mean(),
        "regulariser": absolute_regulariser(bases).mean(),
    }


def drop_rows(embeddings: Tensor, prob: float, generator: torch.Generator) -> Tensor:
    """Zero whole rows of [N, E] with the given probability and scale the others by 1 / (1 - prob)."""
    kept = torch.rand(len(embeddings), 1, generator=generator, device=generator.device) >= prob
    return embeddings * (kept.to(embeddings) / (1.0 - prob))


class Method(MethodBase):
    """VoCo on volumes of `base_grid` x `crop_size` voxels.

    Args:
        backbone: Of three spatial dimensions.
        options: See `Options`.
        crop_size: Voxels (x, y, z) of a base crop and of a random crop.
    """

    dims = frozenset({3})

    def __init__(self, backbone: Backbone, options: Options, crop_size: Size) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        self.student = Projector(backbone.embedding_dim, options.projector_dim)
        self.teacher: Projector | None = None
        if options.objective == "v2":
            self.teacher = freeze(Projector(backbone.embedding_dim, options.projector_dim))

    def views(self) -> ViewRequest:
        """One box per item: the base crops side by side."""
        x, y, z = (cells * size for cells, size in zip(self.options.base_grid, self.crop_size, strict=True))
        return ViewRequest((x, y, z))

    def before_step(self, progress: float) -> None:
        """Move the teacher, from the first step on and before the forward pass, as the released code does."""
        if self.teacher is not None:
            update_teacher(self.teacher, self.student, momentum=self.options.momentum)

    def loss(self, views: Views, progress: float) -> Losses:
        """Loss of one step, in float64 where the device has it.

        So does the released code, since its targets are float64. At its minimum -log(1 - |y - l| + 1e-6) is -1e-6, of
        which float32 keeps one digit; the tensors have only B x R x G entries.

        Raises:
            UsageError: `E_CANVAS`, images are not what `views` asks for; `E_USAGE`, fewer than 16 crops in the batch.
        """
        canvas = self._canvas(views.images)
        crops, targets = self._cut(canvas, views.generator)
        embeddings = self.backbone.embed(crops)
        features = embeddings
        if self.teacher is not None and self.training:
            features = drop_rows(embeddings, self.options.dropout_prob, views.generator)
        student = _split(self.student(features), targets)
        teacher = None if self.teacher is None else _split(self.teacher(embeddings.detach()), targets)
        with torch.autocast(canvas.device.type, enabled=False):  # it spares float64, not the float32 of mps
            parts = paper_losses(student, targets) if teacher is None else v2_losses(student, teacher, targets)
        total = torch.stack(list(parts.values())).sum()
        return Losses(total, {name: part.detach() for name, part in parts.items()}, {"spread": _spread(student)})

    def baselines(self) -> dict[str, float]:
        """Total loss without having learnt where a crop lies; see `trivial_losses`."""
        return trivial_losses(self.options, self.crop_size)

    def _canvas(self, images: Tensor) -> Tensor:
        size, (batch, num_views) = self.views().size, images.shape[:2]
        if num_views != 1 or tuple(images.shape[3:]) != size:
            raise UsageError(
                "E_CANVAS",
                f"voco needs one view of {size} voxels per item and got {num_views} of {tuple(images.shape[3:])}",
                hint="the size is method.base_grid x data.crop_size; change one of them, or the spacing",
            )
        per_volume = self.options.num_random_crops + prod(self.options.base_grid)
        if batch * per_volume < MIN_ROWS:
            raise UsageError(
                "E_USAGE",
                f"{batch} volumes of {per_volume} crops are {batch * per_volume} rows for batch normalisation; "
                f"voco needs {MIN_ROWS}",
                hint="raise data.batch_size or method.num_random_crops",
            )
        return images[:, 0]

    def _cut(self, canvas: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented crops [B * R + B * G, C, x, y, z], random ones first, and the random crops' targets [B, R, G]."""
        options, size = self.options, self.crop_size
        offsets = draw_offsets((len(canvas), options.num_random_crops), _num_starts(options, size), generator)
        crops = torch.cat([crops_at(canvas, offsets, size).flatten(0, 1), base_crops(canvas, size).flatten(0, 1)])
        augmentation = draw_augmentation(
            len(crops),
            flip_prob=options.flip_prob,
            rot90_prob=options.rot90_prob,
            shift_prob=options.shift_prob,
            shift=options.shift,
            generator=generator,
        )
        dtype = torch.float32 if canvas.device.type == "mps" else torch.float64
        targets = overlap_fractions(offsets, options.base_grid, size, dtype=dtype)
        return augment_(crops, augmentation), targets.to(canvas.device)


def trivial_losses(options: Options, crop_size: Size) -> dict[str, float]:
    """Expected total loss of predictors that do not look where a random crop lies, over the legal places.

    Returns:
        `zero_logits`: every crop orthogonal to every other; about 4 - pi^2 / 3 = 0.71 for `v2` on a flat grid.
        `constant_logit`: base crops orthogonal, each random crop equally similar to all G of them, at the best of the
            similarities that geometry allows (0 to 1 / sqrt(G)).
        `collapsed`: all crops, base crops too, equally similar to one another, at the best similarity.
    """
    targets = _typical_targets(options, crop_size)
    is_v2 = options.objective == "v2"
    predict = overlap_loss if is_v2 else uniform_overlap_loss
    logits = [step / 100 for step in range(100)]
    predictions = []
    for logit in logits:
        constant = torch.full_like(targets, logit)
        inter = overlap_loss(constant[:1], constant[:1]).item() if is_v2 else 0.0
        predictions.append(predict(constant, targets).item() + inter)
    regularisers = [logit**2 if is_v2 else logit for logit in logits]
    highest = targets.shape[-1] ** -0.5
    return {
        "zero_logits": predictions[0],
        "constant_logit": min(loss for logit, loss in zip(logits, predictions, strict=True) if logit <= highest),
        "collapsed": min(map(add, predictions, regularisers)),
    }


def _typical_targets(options: Options, crop_size: Size, limit: int = 2**14) -> Tensor:
    """Targets [N, G] at all legal places of a random crop, or at `limit` of them drawn with a fixed seed."""
    num_starts = _num_starts(options, crop_size)
    if prod(num_starts) <= limit:
        offsets = torch.cartesian_prod(*(torch.arange(count) for count in num_starts))
    else:
        offsets = draw_offsets((limit,), num_starts, torch.Generator().manual_seed(0))
    return overlap_fractions(offsets, options.base_grid, crop_size)


def _num_starts(options: Options, crop_size: Size) -> Size:
    """Legal first voxels of a random crop along each axis; `v2` leaves out the last of several."""
    last = 0 if options.objective == "v2" else 1
    x, y, z = (max(1, (cells - 1) * size + last) for cells, size in zip(options.base_grid, crop_size, strict=True))
    return x, y, z


def _split(projections: Tensor, targets: Tensor) -> Projections:
    """Projections [B * R + B * G, P] as [B, R, P] and [B, G, P], in the precision of the targets [B, R, G]."""
    batch, num_random, num_bases = targets.shape
    random, bases = projections.to(targets.dtype).split([batch * num_random, batch * num_bases])
    return random.unflatten(0, (batch, num_random)), bases.unflatten(0, (batch, num_bases))


def _overlaps_along_axis(offsets: Tensor, cells: int, size: int) -> Tensor:
    """Voxels that segments of `size` share with each cell, integers [..., cells]."""
    starts = torch.arange(cells, device=offsets.device) * size
    return (size - (offsets[..., None] - starts).abs()).clamp(min=0)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a, dim=-1, eps=1e-8) @ F.normalize(b, dim=-1, eps=1e-8).mT


def _pairs(square: Tensor) -> Tensor:
    """Entries i < j of matrices [..., G, G] as [..., G (G - 1) / 2]."""
    count = square.shape[-1]
    rows, columns = torch.triu_indices(count, count, offset=1, device=square.device)
    return square[..., rows, columns]


@torch.no_grad()
def _spread(projections: Projections) -> Tensor:
    """Standard deviation of the unit projections over crops, scaled: 1 for independent directions, 0 when collapsed."""
    unit = F.normalize(torch.cat([part.flatten(0, 1) for part in projections]), dim=-1)
    return (unit.var(dim=0, correction=0).sum()).sqrt()
