"""VoCo: learn what a crop shows by predicting how much of it lies in each cell of a grid over its surroundings.

The cells of a regular grid are the base crops. Cosines between a random crop and every base crop, negative ones set to
zero, must equal the fractions of the random crop inside each of them; base crops of one volume must differ.

Wu et al., VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis, CVPR 2024,
https://arxiv.org/abs/2402.17300 (`objective: paper`; `v1`, as in the code that was released with it).
Wu et al., Large-Scale 3D Medical Image Pre-training with Geometric Context Priors, https://arxiv.org/abs/2410.09890
(`objective: v2`, as in the code that was released with it).

With `omni`, labels of part of the images teach the encoder too: see `medssl_cli/nn/omni.py`.

Shapes: B batch, R random crops, G base crops, P projection, E embedding, N crops of any kind.

Differences from the papers and the released code:

- `v1` and `v2` follow the released code where it departs from its paper: random crops never start at the last legal
  voxel; the regulariser is the squared positive cosine and its second argument gets no gradient; the teacher starts at
  random. In `v2` "feature dropout" zeroes whole rows, so a fifth of the student's crops get one and the same projection
  (here in training mode only). Two of them in different volumes (4 % of pairs) have cosine 1 and cost 13.8 where the
  teacher sees 0, on average 0.55. In a small trial on synthetic volumes the total passed below its trivial baselines
  with `dropout_prob: 0` only.
- `paper` says nothing about cosines below 0 or |y - l| = 1. Its figure draws logits in 0...1, so they are ReLU(cos) as
  in the code, and 1 - |y - l| is kept above 1e-6, so a base crop costs at most 13.8 and a perfect prediction exactly 0.
  Random crops may start at every legal voxel. The weight of the regulariser is 1.
- `fixed` is `v2` with `Corrections`, our own; none of them was tried by the authors.
- The released code grids x and y only. Here z may have cells too; one cell along z is the published geometry.
- Cosines that rounding lifted above 1 count as 1: the released code gives NaN where they exceed it by 1e-6.
- The teacher moves once per optimiser step, which is once per forward pass unless gradients are accumulated. A random
  teacher encoder is the student's with the entries of each tensor shuffled.
- `v1` resizes crops of 96 voxels to 64 after cutting (`resize: crops`). By default the canvas is resized once, which
  costs a fraction and puts every cell's border on a voxel's border; values differ a little between the two.
"""

import copy
from functools import partial
from math import prod
from typing import Annotated, Any, Final, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.errors import UsageError
from medssl_cli.methods import LabelRequest, Losses, MethodBase, ViewRequest, Views
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.crops import (
    Augmentation,
    Size,
    augment_,
    base_crops,
    crops_at,
    draw_augmentation,
    draw_dropout,
    draw_offsets,
    own_rows,
)
from medssl_cli.nn.momentum import cosine_momentum, freeze, random_like, update_teacher
from medssl_cli.nn.omni import Branches, augmented
from medssl_cli.nn.omni import Options as Omni
from medssl_cli.nn.overlap import (
    cosines,
    overlap_fractions,
    overlap_loss,
    similarity,
    squared_overlap_loss,
    uniform_overlap_loss,
)
from medssl_cli.nn.overlap_rules import PUBLISHED, Corrections
from medssl_cli.nn.overlap_terms import (
    Projections,
    constant_predictors,
    mutual_similarity,
    paper_terms,
    split_projections,
    spread_of,
    typical_targets,
    v1_terms,
    v2_terms,
)
from medssl_cli.nn.projector import Projector, require_rows
from medssl_cli.recipe import PositiveInt, Probability
from medssl_cli.strict import Strict

# What an objective has, and its value. A name that is missing keeps the default; see `OBJECTIVE_ONLY`.
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "paper": {},
    "v1": {"projector_dim": 2048, "shift_prob": 0.1, "sync_norm": True, "momentum": 0.9},
    "v2": {"momentum": 0.9, "dropout_prob": 0.2},
    "fixed": {"sync_norm": True, "momentum": 0.9, "dropout_prob": 0.2, "corrections": {}},
}
OBJECTIVE_ONLY: Final = ("momentum", "dropout_prob", "corrections")


class Options(Strict):
    """Settings of VoCo. Where the released codes differ, a setting that is absent or null has the objective's value.

    Args:
        objective: `v2` (momentum teacher, between-volume term), `fixed` (`v2` corrected), `v1` (teacher encoder, no
            between-volume term) or `paper` (CVPR 2024, one network).
        base_grid: Base crops along x, y, z. A step reads boxes of this many crops.
        num_random_crops: Per volume. More cost little, since the base crops are embedded once for all of them.
        network_size: Voxels (x, y, z) that crops are resized to; [64, 64, 64] from 96 in `v1`. Null: no resizing.
        resize: With `network_size`: the `canvas` once, or each of the `crops` after cutting, as published.
        projector_dim: Width of the projector and its output; 2048 in `v1`.
        sync_norm: Normalise projections over the crops of all processes; true in `v1` and `fixed`.
        momentum: Of the teacher (`v1`, `v2`, `fixed`).
        dropout_prob: Share of the student's crops whose embedding is replaced by zeros (`v2`; see above for its price),
            or of elements of embeddings (`fixed`).
        corrections: See `Corrections` (`fixed`).
        flip_prob: Per crop and axis.
        rot90_prob: Per crop, in the x-y plane; crops with unequal x and y are never turned.
        shift_prob: Per crop; 0.1 in `v1`.
        shift: Largest intensity shift, on images scaled to 0...1.
        omni: What labels add, where the cache has some.
    """

    objective: Literal["paper", "v1", "v2", "fixed"] = "v2"
    base_grid: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 3, 1)
    num_random_crops: PositiveInt = 2
    network_size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    resize: Literal["canvas", "crops"] | None = None
    projector_dim: PositiveInt = 1024
    sync_norm: bool = False
    momentum: Probability | None = None
    dropout_prob: Annotated[float, Field(ge=0, lt=1)] | None = None
    corrections: Corrections | None = None
    flip_prob: Probability = 0.2
    rot90_prob: Probability = 0.2
    shift_prob: Probability = 0.5
    shift: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    omni: Omni | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_objective(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(str(given.get("objective", "v2")), {})
        return {**given, **{name: value for name, value in preset.items() if given.get(name) is None}}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in OBJECTIVE_ONLY:
            if getattr(self, name) is not None and name not in PRESETS[self.objective]:
                owners = ", ".join(objective for objective, preset in PRESETS.items() if name in preset)
                raise ValueError(f"{name} belongs to {owners}; objective {self.objective} has none (null removes it)")
        if self.resize is not None and self.network_size is None:
            raise ValueError("resize does nothing without network_size")
        if prod(self.base_grid) < 2:
            raise ValueError("base_grid needs at least two base crops: with one there is nothing to tell apart")
        if self.omni is not None and self.network_size is not None:
            raise ValueError("omni does not go with network_size: labelled crops are not resized")
        return self

    @property
    def rules(self) -> Corrections:
        """What to do where the released code is corrected or not."""
        return self.corrections or PUBLISHED


class Method(MethodBase):
    """VoCo on volumes of `base_grid` x `crop_size` voxels.

    Args:
        backbone: Of three spatial dimensions.
        options: See `Options`.
        crop_size: Voxels (x, y, z) of a base crop and of a random crop, before any resizing.
    """

    dims = frozenset({3})

    def __init__(self, backbone: Backbone, options: Options, crop_size: Size) -> None:
        super().__init__(backbone, options, options.network_size or crop_size)
        self.options = options
        self.cell_size = crop_size
        projector = partial(Projector, backbone.embedding_dim, options.projector_dim, sync_norm=options.sync_norm)
        self.student = projector()
        self.teacher: Projector | None = None
        self.teacher_backbone: Backbone | None = None
        self.learns_itself = options.omni is None or options.omni.self_weight > 0
        if not self.learns_itself:
            freeze(self.student)
        elif options.momentum is not None:
            is_copy = options.rules.teacher_start == "student"
            self.teacher = freeze(copy.deepcopy(self.student) if is_copy else projector())
        if options.objective == "v1" and self.learns_itself:
            self.teacher_backbone = freeze(random_like(backbone))
        self.branches = None if options.omni is None else Branches(backbone, options.omni)

    def views(self) -> ViewRequest:
        """One box per item: the base crops side by side; with `omni` labelled crops too."""
        box, omni = _times(self.options.base_grid, self.cell_size), self.options.omni
        if omni is None:
            return ViewRequest(box)
        labelled = LabelRequest(
            omni.label_set, omni.wanted, self.crop_size, omni.batch_size, omni.foreground_prob, option="method.omni"
        )
        return ViewRequest(box if omni.needs_unlabelled else self.crop_size, labelled=labelled)

    def before_step(self, progress: float) -> None:
        """Move the teacher, from the first step on and before the forward pass, as the released code does."""
        if self.branches is not None:
            self.branches.before_step(progress, self.backbone)
        momentum, last = self.options.momentum, self.options.rules.final_momentum
        if self.teacher is None or momentum is None:
            return
        if last is not None:
            momentum = cosine_momentum(progress, first=momentum, last=last)
        update_teacher(self.teacher, self.student, momentum=momentum)
        if self.teacher_backbone is not None:
            update_teacher(self.teacher_backbone, self.backbone, momentum=momentum)

    def loss(self, views: Views, progress: float) -> Losses:
        """Loss of one step, in float64 where the device has it and `float32_loss` does not forbid it.

        So does the released code, since its targets are float64. At its minimum -log(1 - |y - l| + 1e-6) is -1e-6, of
        which float32 keeps one digit; the tensors have only B x R x G entries.

        Raises:
            UsageError: `E_CANVAS`, images are not what `views` asks for; `E_USAGE`, fewer than 16 crops to normalise.
        """
        options = self.options
        if self.learns_itself:
            require_rows(
                len(views.images), options.num_random_crops + prod(options.base_grid), sync_norm=options.sync_norm
            )
        crops, targets = self._cut(views)
        parts: dict[str, Tensor] = {}
        shown: dict[str, Tensor] = {}
        if self.branches is None:
            maps = self.backbone(crops)
        else:
            images, labels = self._labelled(views)
            shown["supervised_constant"] = torch.tensor(self.branches.constant_loss(labels[None]))
            to_label = self.branches.to_label(crops[: targets.shape[:2].numel()])
            maps = self.backbone(torch.cat([crops if self.learns_itself else to_label, images]))
            parts = self.branches.losses(maps, labels, to_label)
        if self.learns_itself:
            student, teacher = self._project(maps, crops, targets, views, drops=self.training)
            with torch.autocast(targets.device.type, enabled=False):  # it spares float64, but not float32
                terms = self._terms(student, teacher, targets)
            weight = 1.0 if options.omni is None else options.omni.self_weight
            parts |= {name: weight * term for name, term in terms.items()}
            shown["spread"] = spread_of(student)
        total = torch.stack(list(parts.values())).sum()
        return Losses(total, {name: part.detach() for name, part in parts.items()}, shown)

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Total loss without having learnt where a crop lies (`constant_predictors`) nor what it shows.

        Pseudo-labels have no baseline: they count as 0 here.
        """
        if self.branches is None:
            return trivial_losses(self.options, self._cut_size)
        if labels is None:
            return {}
        constant = self.branches.constant_loss(labels)
        if not self.learns_itself:
            return {"constant_labels": constant}
        own, weight = trivial_losses(self.options, self._cut_size), self.branches.options.self_weight
        return {name: weight * loss + constant for name, loss in own.items()}

    @torch.no_grad()
    def matrices(self, views: Views) -> dict[str, Tensor]:
        """Of the batch's first volume: cosines of its base crops [G, G], logits and overlaps of its crops [R, G]."""
        if not self.learns_itself:
            return {}
        crops, targets = self._cut(views)
        student, teacher = self._project(self.backbone(crops), crops, targets, views, drops=False)
        random, bases = student
        if teacher is None:
            logits = similarity(random, bases)
        elif self.options.objective == "v1":
            logits = mutual_similarity(student, teacher)
        else:
            logits = similarity(random, teacher[1])
        return {"base_cosines": cosines(bases[0], bases[0]), "logits": logits[0], "overlaps": targets[0]}

    @property
    def _cut_size(self) -> Size:
        """Size of a crop when it is cut; with `resize: crops` it changes afterwards."""
        return self.cell_size if self.options.resize == "crops" else self.crop_size

    def _terms(self, student: Projections, teacher: Projections | None, targets: Tensor) -> dict[str, Tensor]:
        if teacher is None:
            return paper_terms(student, targets)
        if self.options.objective == "v1":
            return v1_terms(student, teacher, targets)
        rules = self.options.rules
        return v2_terms(
            student,
            teacher,
            targets,
            negative_slope=rules.negative_slope,
            has_all_pairs=rules.inter_volume == "all_pairs",
            regulariser=rules.regulariser,
        )

    def _project(
        self, maps: list[Tensor], crops: Tensor, targets: Tensor, views: Views, *, drops: bool
    ) -> tuple[Projections, Projections | None]:
        """Projections of the crops, whose maps come first, by student and teacher."""
        embeddings = self.backbone.pool([level[: len(crops)] for level in maps])
        features = embeddings
        prob = self.options.dropout_prob
        if prob and drops:
            width = 1 if self.options.rules.dropout == "rows" else embeddings.shape[1]
            factors = draw_dropout((len(crops) * views.num_shards, width), prob, views.generator)
            features = embeddings * factors[self._rows(views)].to(embeddings)
        student = split_projections(self.student(features), targets)
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                seen = embeddings if self.teacher_backbone is None else self.teacher_backbone.embed(crops)
                teacher = split_projections(self.teacher(seen), targets)
        return student, teacher

    def _canvas(self, images: Tensor) -> Tensor:
        """Canvases [B, C, X, Y, Z] that crops are cut from."""
        size, num_views = self.views().size, images.shape[1]
        if num_views != 1 or tuple(images.shape[3:]) != size:
            raise UsageError(
                "E_CANVAS",
                f"voco needs one view of {size} voxels per item and got {num_views} of {tuple(images.shape[3:])}",
                hint="the size is method.base_grid x data.crop_size; change one of them, or the spacing",
            )
        target = _times(self.options.base_grid, self._cut_size)
        return images[:, 0] if target == size else F.interpolate(images[:, 0], target, mode="trilinear")

    def _rows(self, views: Views) -> Tensor:
        """Places of this process's crops among those of the step: random crops of all volumes, then base crops."""
        counts = self.options.num_random_crops, prod(self.options.base_grid)
        return own_rows(len(views.images), counts, views.shard_index, views.num_shards)

    def _labelled(self, views: Views) -> tuple[Tensor, Tensor]:
        """Augmented labelled crops [L, C, x, y, z] and their classes [L, x, y, z]."""
        if views.labelled is None or self.options.omni is None:
            raise ValueError("voco with omni needs labelled crops")
        count = len(views.labelled.images)
        draws = self._draw(count * views.num_shards, self.options.omni.flip_prob, views.generator)
        rows = own_rows(count, [1], views.shard_index, views.num_shards)
        return augmented(views.labelled.images, views.labelled.labels, draws[rows])

    def _cut(self, views: Views) -> tuple[Tensor, Tensor]:
        """Augmented crops [B * R + B * G, C, x, y, z], random ones first, and the random crops' targets [B, R, G].

        Random numbers are drawn for all processes. There are none where labels are all that counts.
        """
        options, size, batch = self.options, self._cut_size, len(views.images)
        if options.omni is not None and not options.omni.needs_unlabelled:
            return views.images[:0, 0], torch.empty(0, options.num_random_crops, prod(options.base_grid))
        canvas = self._canvas(views.images)
        shape = batch * views.num_shards, options.num_random_crops
        offsets = draw_offsets(shape, _num_starts(options, size), views.generator)
        offsets = offsets[views.shard_index * batch : (views.shard_index + 1) * batch]
        crops = torch.cat([crops_at(canvas, offsets, size).flatten(0, 1), base_crops(canvas, size).flatten(0, 1)])
        if size != self.crop_size:
            crops = F.interpolate(crops, self.crop_size, mode="trilinear", align_corners=True)
        augmentation = self._draw(len(crops) * views.num_shards, options.flip_prob, views.generator)
        is_single = options.rules.float32_loss or canvas.device.type == "mps"
        dtype = torch.float32 if is_single else torch.float64
        targets = overlap_fractions(offsets, options.base_grid, size, dtype=dtype)
        return augment_(crops, augmentation[self._rows(views)]), targets.to(canvas.device)

    def _draw(self, count: int, flip_prob: float, generator: torch.Generator) -> Augmentation:
        options = self.options
        return draw_augmentation(
            count,
            flip_prob=flip_prob,
            rot90_prob=options.rot90_prob,
            shift_prob=options.shift_prob,
            shift=options.shift,
            generator=generator,
        )


def trivial_losses(options: Options, crop_size: Size) -> dict[str, float]:
    """Expected total loss of an objective for predictors that do not look where a random crop lies."""
    predict = {"paper": uniform_overlap_loss, "v1": squared_overlap_loss}.get(options.objective, overlap_loss)
    return constant_predictors(
        typical_targets(_num_starts(options, crop_size), options.base_grid, crop_size),
        predict,
        has_inter=options.objective in ("v2", "fixed"),
        is_absolute=options.objective == "paper" or options.rules.regulariser == "absolute",
    )


def _num_starts(options: Options, crop_size: Size) -> Size:
    """Legal first voxels of a random crop along each axis; the released code leaves out the last of several."""
    last = 1 if options.objective == "paper" or options.rules.inclusive_offsets else 0
    x, y, z = (max(1, (cells - 1) * size + last) for cells, size in zip(options.base_grid, crop_size, strict=True))
    return x, y, z


def _times(cells: Size, size: Size) -> Size:
    x, y, z = (count * extent for count, extent in zip(cells, size, strict=True))
    return x, y, z
