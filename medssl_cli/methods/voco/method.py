"""VoCo: learn what a crop shows by predicting how much of it lies in each cell of a grid over its surroundings.

The cells of a regular grid are the base crops. Cosines between a random crop and every base crop, negative ones set to
zero, must equal the fractions of the random crop inside each of them; base crops of one volume must differ.

Wu et al., VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis, CVPR 2024,
https://arxiv.org/abs/2402.17300 (`objective: paper`; `v1`, as in the code that was released with it).
Wu et al., Large-Scale 3D Medical Image Pre-training with Geometric Context Priors, https://arxiv.org/abs/2410.09890
(`objective: v2`, as in the code that was released with it).

With `dense`, the same is asked of every voxel: see `dense.py`; ours.
With `omni`, labels of part of the images teach the encoder too: see `labels.py`.

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
- With a backbone of two dimensions boxes are single slices, at random places of volumes, and pictures: `crop_size` and
  `base_grid` have 1 along z. So stacks of thick slices are learnt slice by slice.
- Cosines that rounding lifted above 1 count as 1: the released code gives NaN where they exceed it by 1e-6.
- The teacher moves once per optimiser step, which is once per forward pass unless gradients are accumulated. A random
  teacher encoder is the student's with the entries of each tensor shuffled.
- `v1` resizes crops of 96 voxels to 64 after cutting (`resize: crops`). By default the canvas is resized once, which
  costs a fraction and puts every cell's border on a voxel's border; values differ a little between the two.
"""

import copy
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from medssl_cli.data.views import own_rows, times
from medssl_cli.imaging.geometry import Shape
from medssl_cli.methods import BoxCrops, CellGrid, CropChanges, LabelRequest, Losses, MethodBase, ViewRequest, Views
from medssl_cli.methods.voco.dense import DenseQuestion, place_within_crop_loss
from medssl_cli.methods.voco.labels import Branches
from medssl_cli.methods.voco.options import Options
from medssl_cli.methods.voco.overlap import (
    cosines,
    overlap_fractions,
    overlap_loss,
    similarity,
    squared_overlap_loss,
    uniform_overlap_loss,
)
from medssl_cli.methods.voco.projector import Projector, require_rows
from medssl_cli.methods.voco.terms import (
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
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.momentum import cosine_momentum, freeze, random_like, update_teacher


class Method(MethodBase):
    """VoCo on boxes of `base_grid` x `crop_size` voxels.

    Args:
        backbone: Backbone of three spatial dimensions, or of two for single slices.
        options: See `Options`.
        crop_size: Voxels (x, y, z) of a base crop and of a random crop, before any resizing.
    """

    dims = frozenset({2, 3})

    def __init__(self, backbone: Backbone, options: Options, crop_size: Shape) -> None:
        super().__init__(backbone, options, options.network_size or crop_size)
        if backbone.spatial_dims == 2:
            options.require_slices(crop_size)
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
        self.dense = None if options.dense is None else DenseQuestion(backbone, options.dense, options.base_grid)

    def views(self) -> ViewRequest:
        """Request of random crops and the base crops of each volume side by side; with `omni` of labelled crops too."""
        options, omni = self.options, self.options.omni
        size = self._cut_size
        crops = BoxCrops(
            options.base_grid,
            options.num_random_crops,
            size,
            self.crop_size,
            num_starts(options, size),
            self._changes(options.flip_prob),
            has_places=self.dense is not None,
        )
        box = times(options.base_grid, self.cell_size)
        if omni is None:
            return ViewRequest(box, crops)
        labelled = LabelRequest(
            omni.label_set,
            omni.wanted,
            self.crop_size,
            omni.batch_size,
            omni.foreground_prob,
            "method.omni",
            self._changes(omni.flip_prob),
        )
        if not omni.needs_unlabelled:
            return ViewRequest(self.crop_size, labelled=labelled)
        return ViewRequest(box, crops, labelled)

    def _changes(self, flip_prob: float) -> CropChanges:
        """What may happen to a crop, labelled or not."""
        options = self.options
        return CropChanges(flip_prob, options.rot90_prob, options.shift_prob, options.shift)

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
            UsageError: `E_USAGE`, fewer than 16 crops to normalise.
        """
        options = self.options
        crops, targets = self._shown(views)
        if self.learns_itself:
            require_rows(len(targets), options.num_random_crops + prod(options.base_grid), sync_norm=options.sync_norm)
        parts: dict[str, Tensor] = {}
        shown: dict[str, Tensor] = {}
        if self.branches is None:
            maps = self.backbone(crops)
        else:
            if views.labelled is None:
                raise ValueError("omni needs labelled crops")
            labels = views.labelled.labels
            shown["supervised_constant"] = torch.tensor(self.branches.constant_loss(labels[None]))
            to_label = self.branches.to_label(crops[: targets.shape[:2].numel()])
            maps = self.backbone(torch.cat([crops if self.learns_itself else to_label, views.labelled.images]))
            parts = self.branches.losses(maps, labels, to_label)
        if self.learns_itself:
            student, teacher = self._project(maps, crops, targets, views, drops=self.training)
            with torch.autocast(targets.device.type, enabled=False):  # it spares float64, but not float32
                terms = self._terms(student, teacher, targets)
            weight = 1.0 if options.omni is None else options.omni.self_weight
            if self.dense is not None and views.box_places is not None:
                terms["dense"] = self.dense.loss(maps, views.box_places)
            parts |= {name: weight * term for name, term in terms.items()}
            shown["spread"] = spread_of(student)
        total = torch.stack(list(parts.values())).sum()
        return Losses(total, {name: part.detach() for name, part in parts.items()}, shown)

    def kept(self) -> dict[str, nn.Module]:
        """See `DecodingOptions.kept`."""
        return {} if self.dense is None else self.dense.options.kept(self.dense.decoder)

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

    @classmethod
    def grid(cls, options: Options) -> CellGrid:
        """The base crops."""
        resizing = tuple(name for name in ("network_size", "resize") if getattr(options, name) is not None)
        return CellGrid(options.base_grid, "base_grid", options.network_size, resizing)

    @torch.no_grad()
    def matrices(self, views: Views) -> dict[str, Tensor]:
        """Matrices of the first volume: cosines of its base crops [G, G], logits and overlaps of its crops [R, G]."""
        if not self.learns_itself:
            return {}
        crops, targets = self._shown(views)
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
    def _cut_size(self) -> Shape:
        """Size of a crop when it is cut; with `resize: crops` it changes afterwards."""
        return self.cell_size if self.options.resize == "crops" else self.crop_size

    def _terms(self, student: Projections, teacher: Projections | None, targets: Tensor) -> dict[str, Tensor]:
        """The terms of the objective, by name."""
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
            factors = draw_dropout((len(crops) * views.draws.num_processes, width), prob, views.draws.generator)
            counts = self.options.num_random_crops, prod(self.options.base_grid)
            rows = own_rows(len(targets), counts, views.draws)
            features = embeddings * factors[rows].to(embeddings)
        student = split_projections(self.student(features), targets)
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                seen = embeddings if self.teacher_backbone is None else self.teacher_backbone.embed(crops)
                teacher = split_projections(self.teacher(seen), targets)
        return student, teacher

    def _shown(self, views: Views) -> tuple[Tensor, Tensor]:
        """Crops [B * R + B * G, C, x, y, z], random ones first, and the random crops' targets [B, R, G].

        There are none where labels are all that counts.
        """
        options, [images] = self.options, views.images
        if views.offsets is None:
            return images[:0], torch.empty(0, options.num_random_crops, prod(options.base_grid))
        is_single = options.rules.float32_loss or images.device.type == "mps"
        dtype = torch.float32 if is_single else torch.float64
        targets = overlap_fractions(views.offsets, options.base_grid, self._cut_size, dtype=dtype)
        return images, targets.to(images.device)


def draw_dropout(shape: tuple[int, ...], prob: float, generator: torch.Generator) -> Tensor:
    """Factors of dropout: 0 with the given probability, else 1 / (1 - prob). A shape [N, 1] drops whole rows."""
    kept = torch.rand(shape, generator=generator, device=generator.device) >= prob
    return kept / (1.0 - prob)


def trivial_losses(options: Options, crop_size: Shape) -> dict[str, float]:
    """Expected total loss of an objective for predictors that do not look where a random crop lies."""
    predict = {"paper": uniform_overlap_loss, "v1": squared_overlap_loss}.get(options.objective, overlap_loss)
    starts = num_starts(options, crop_size)
    found = constant_predictors(
        typical_targets(starts, options.base_grid, crop_size),
        predict,
        has_inter=options.objective in ("v2", "fixed"),
        is_absolute=options.objective == "paper" or options.rules.regulariser == "absolute",
    )
    if options.dense is None:
        return found
    dense = place_within_crop_loss(options.dense, starts, options.base_grid, crop_size)
    return {name: loss + dense for name, loss in found.items()}


def num_starts(options: Options, crop_size: Shape) -> Shape:
    """Legal first voxels of a random crop along each axis; the released code leaves out the last of several."""
    last = 1 if options.objective == "paper" or options.rules.inclusive_offsets else 0
    x, y, z = (max(1, (cells - 1) * size + last) for cells, size in zip(options.base_grid, crop_size, strict=True))
    return x, y, z
