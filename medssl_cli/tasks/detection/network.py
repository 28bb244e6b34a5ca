"""The network of a detection: a backbone's coarsest maps, a feature pyramid, and a head without anchors.

Every place of every map says which classes it lies in, and how far the edges of the box around it are: Tian et al.,
FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019, https://arxiv.org/abs/1904.01355, with its later
overlap as the loss of the edges. In volumes places answer for the boxes nearest to them, which they need not lie in, so
they say where the centre of a box is and how long its sides are; see `assignment`.

Shapes: B batch, C channels, X Y Z space (X Y in 2D), P places of all maps, K classes, D axes of space.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Final, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from medssl_cli.base.strict import PositiveFloat, PositiveInt, Probability, Strict
from medssl_cli.data.boxes import IGNORED
from medssl_cli.nn.axes import Axes
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.distributed import sum_over_processes, world_size
from medssl_cli.tasks import BoxNames, ClassName, TaskLosses, TaskNetwork, each_by_itself
from medssl_cli.tasks.detection.assignment import Assignment
from medssl_cli.tasks.detection.decode import Grid
from medssl_cli.tasks.detection.feature_pyramid import FeaturePyramid

NUM_GROUPS: Final = 8
TOWER_DEPTH: Final = 2
PRIOR: Final = 0.01
"""Share of the places that a new network takes for a box."""
FOCUS: Final = 2.0
BALANCE: Final = 0.25
MAX_LOG: Final = 8.0
"""Largest logarithm of a length in strides; longer ones are no boxes."""
Definitions = Annotated[dict[ClassName, BoxNames], Field(min_length=1), BeforeValidator(each_by_itself)]


class HardNegatives(Strict):
    """Learn from the places that are most wrong, instead of from all of them.

    Args:
        per_box: So many places without a box for each place with one.
        least: Least number of them in each image.
    """

    per_box: PositiveFloat = 3.0
    least: PositiveInt = 16


class DetectionOptions(Strict):
    """What to find.

    Args:
        label_set: Name of the set of boxes in the cache.
        classes: Classes by name: the names of the boxes that are of the class, or `any`. A list makes each name a
            class.
        num_levels: Number of the backbone's maps, the coarsest; the pyramid adds one of twice the last stride.
        width: Channels of the pyramid; a multiple of 8.
        min_score: Boxes below it are not reported.
        max_overlap: Largest overlap (intersection over union) of two boxes of a class; beyond it the better one is
            reported.
        max_boxes: Largest number of boxes per image.
        match_overlap: Least intersection over union at which a box counts as found.
        ignore: Names of boxes that count for nothing, in training and in scores.
        min_readers: Boxes of which it is known that fewer readers have marked them count for nothing.
        assignment: Which places answer for a box: `centre`, those in it around its centre, by its size; `overlap`,
            those near to it whose anchors overlap it best. By default the first in pictures, the second in volumes.
        hard_negatives: Cross-entropy of the places with a box and of the hardest ones without, instead of a focal loss
            of all places; `{}` for three times as many.
    """

    label_set: str
    classes: Definitions
    num_levels: PositiveInt = 3
    width: Annotated[int, Field(gt=0, multiple_of=8)] = 128
    min_score: Probability = 0.05
    max_overlap: Probability = 0.5
    max_boxes: PositiveInt = 100
    match_overlap: Annotated[float, Field(gt=0, lt=1)] = 0.5
    ignore: tuple[str, ...] = ()
    min_readers: PositiveInt = 1
    assignment: Assignment | None = None
    hard_negatives: HardNegatives | None = None

    @model_validator(mode="after")
    def _has_names(self) -> "DetectionOptions":
        if any(names == () for names in self.classes.values()):
            raise ValueError("a class needs at least one name of boxes")
        taken: dict[str, str] = {}
        for own, names in self.classes.items():
            if "any" in taken:
                raise ValueError(f"all boxes are of {taken['any']!r}: put a class of any last")
            for name in ("any",) if names == "any" else names:
                if taken.setdefault(name, own) != own:
                    raise ValueError(f"boxes {name!r} are of {taken[name]!r} and of {own!r}: a box has one class")
        both = sorted(taken.keys() & set(self.ignore))
        if both:
            raise ValueError(f"boxes {both[0]!r} are of {taken[both[0]]!r} and ignored")
        return self


class Answers(NamedTuple):
    """What a network says of every place.

    Args:
        classes: Logits [B, P, K].
        centre: Logit of how good its box is, [B, P]: how near to the box's centre it lies, or how much of the true box
            it overlaps.
        edges: Distances to the D low and the D high edges, in voxels, [B, P, 2 D].
    """

    classes: Tensor
    centre: Tensor
    edges: Tensor

    @classmethod
    def split(cls, logits: Tensor, dims: int = 2) -> "Answers":
        """From [B, P, K + 1 + 2 D]."""
        return cls(logits[..., : -2 * dims - 1], logits[..., -2 * dims - 1], logits[..., -2 * dims :])


class DetectionHead(nn.Module):
    """Two small towers of convolutions, shared by all maps.

    Args:
        width: C of the maps.
        num_classes: K.
        strides: Strides of the maps, along each axis.
        assignment: Edges are a distance each (`centre`), or a centre with the sides around it (`overlap`).
    """

    def __init__(
        self, width: int, num_classes: int, strides: Sequence[Axes], assignment: Assignment = "centre"
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.is_around_centre = assignment == "overlap"
        self.class_tower, self.edge_tower = _tower(convolution, width), _tower(convolution, width)
        self.classes = convolution(width, num_classes, 3, padding=1)
        self.centre = convolution(width, 1, 3, padding=1)
        self.edges = convolution(width, 2 * dims, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(strides)))
        steps = torch.tensor(strides, dtype=torch.float32).repeat(1, 2)
        self.register_buffer("steps", steps.reshape(len(strides), 2 * dims, *(1,) * dims), persistent=False)
        nn.init.constant_(self.classes.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    steps: Tensor

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, C, X_i, Y_i, Z_i] to [B, P, K + 1 + 2 D]: see `Answers`."""
        found = []
        for level, step, scale in zip(maps, self.steps, self.scales, strict=True):
            said, around = self.class_tower(level), self.edge_tower(level)
            edges = self._distances((scale * self.edges(around)).float()) * step
            parts = torch.cat([self.classes(said).float(), self.centre(around).float(), edges], dim=1)
            found.append(parts.flatten(2).transpose(1, 2))
        return torch.cat(found, dim=1)

    def _distances(self, edges: Tensor) -> Tensor:
        """Distances to the low and the high edges in strides, [B, 2 D, ...], from what the last layer gives."""
        if not self.is_around_centre:
            return edges.clamp(max=MAX_LOG).exp()
        offset, side = edges.chunk(2, dim=1)
        half = side.clamp(max=MAX_LOG).exp()
        return torch.cat([half - offset, half + offset], dim=1)


def _tower(convolution: type[nn.Conv2d | nn.Conv3d], width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(TOWER_DEPTH):
        layers += [convolution(width, width, 3, padding=1), nn.GroupNorm(NUM_GROUPS, width), nn.ReLU()]
    return nn.Sequential(*layers)


class DetectionNetwork(nn.Module, TaskNetwork):
    """A backbone with a pyramid and a head, and their loss.

    Args:
        backbone: Maps `[B, C, X, Y]` or `[B, C, X, Y, Z]` to feature maps.
        options: See `DetectionOptions`.

    Raises:
        ValueError: Options and backbone do not go together.
    """

    def __init__(self, backbone: Backbone, options: DetectionOptions) -> None:
        super().__init__()
        if options.num_levels > len(backbone.channels):
            raise ValueError(f"num_levels {options.num_levels}: the backbone has {len(backbone.channels)} feature maps")
        self.backbone = backbone
        self.options = options
        self.spatial_dims = backbone.spatial_dims
        self.assignment = assignment_of(options, self.spatial_dims)
        used = backbone.strides[-options.num_levels :]
        steps = (*used, tuple(2 * step for step in used[-1]))
        self.strides = tuple(step[0] if len(set(step)) == 1 else step for step in steps)
        self.pyramid = FeaturePyramid(backbone.channels[-options.num_levels :], options.width, self.spatial_dims)
        self.head = DetectionHead(options.width, len(options.classes), steps, self.assignment)

    def forward(self, images: Tensor) -> Tensor:
        """What every place says, `[B, P, K + 1 + 2 D]` float32; see `Answers`."""
        maps = self.backbone(images)[-self.options.num_levels :]
        answers: Tensor = self.head(self.pyramid(maps))
        return answers

    def grid(self, size: Sequence[int]) -> Grid:
        """The places of images of a size."""
        return Grid.of(size, self.strides)

    def loss(self, logits: Tensor, targets: Tensor) -> TaskLosses:
        """Focal loss, overlap of the boxes, and how good they are.

        Args:
            logits: `[B, P, K + 1 + 2 D]`.
            targets: What every place should say, `[B, P, 2 D + 1]`; see `assignment.assign`.
        """
        answers = Answers.split(logits, self.spatial_dims)
        parts = detection_losses(answers, targets, self.assignment, self.options.hard_negatives)
        return TaskLosses(parts["classes"] + parts["boxes"] + parts["centre"], parts)


def assignment_of(options: DetectionOptions, spatial_dims: int) -> Assignment:
    """Which places answer for a box, by the options or by default."""
    return options.assignment or ("centre" if spatial_dims == 2 else "overlap")


def detection_losses(
    answers: Answers, targets: Tensor, assignment: Assignment = "centre", hard: HardNegatives | None = None
) -> dict[str, Tensor]:
    """Focal loss of the classes, or cross-entropy of the hardest; overlap of the boxes; how good they are, in float32.

    The parts are `classes`, `boxes` (generalised overlap) and `centre` (cross-entropy).

    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, https://arxiv.org/abs/1708.02002, equation 5, with
    gamma 2 and alpha 0.25; Rezatofighi et al., CVPR 2019, https://arxiv.org/abs/1902.09630; how good a box is by where
    its place lies (centredness: FCOS, equation 3), which weighs its overlap too, or by how much of the true one it
    overlaps (Wu et al., IoU-aware detection, 2020, https://arxiv.org/abs/1912.05992).

    Args:
        answers: Answers of a batch.
        targets: What every place should say, [B, P, 2 D + 1]; see `assignment.assign`.
        assignment: Centredness (`centre`) or overlap.
        hard: Which places count for the classes; None for all, by the focal loss.
    """
    from monai.data.box_utils import box_pair_giou

    logits, is_box = answers.classes.float(), targets[..., -1] >= 0
    truth = F.one_hot(targets[..., -1].long().clamp(min=0), logits.shape[-1]) * is_box[..., None]
    right = torch.where(truth == 1, logits, -logits)
    if hard is None:
        weight = torch.where(truth == 1, BALANCE, 1 - BALANCE) * (targets[..., -1:] != IGNORED)
        weight = weight * (-right).sigmoid().pow(FOCUS)
    else:
        weight = (is_box | hardest(logits, targets, hard))[..., None]
    entropy = -(weight * F.logsigmoid(right)).sum()
    wanted, predicted = targets[..., :-1][is_box], answers.edges.float()[is_box]
    dims = wanted.shape[-1] // 2
    around = wanted.new_tensor([-1] * dims + [1] * dims)  # as if every place were the origin
    overlap = box_pair_giou(predicted * around, wanted * around)
    if assignment == "centre":
        good = weights = centredness(wanted)
    else:
        good, weights = edge_overlap(predicted.detach(), wanted), torch.ones_like(overlap)
    centre = F.binary_cross_entropy_with_logits(answers.centre.float()[is_box], good, reduction="sum")
    count = sum_over_processes(is_box.sum()).clamp(min=1) / world_size()
    total = sum_over_processes(weights.sum()).clamp(min=1e-6) / world_size()
    return {
        "classes": entropy / count,
        "boxes": (weights * (1 - overlap)).sum() / total,
        "centre": centre / count,
    }


@torch.no_grad()
def hardest(logits: Tensor, targets: Tensor, hard: HardNegatives) -> Tensor:
    """Places without a box that have the highest scores, image by image, bool [B, P].

    Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, https://arxiv.org/abs/1512.02325, section 2.2: three
    for each place with a box.

    Args:
        logits: [B, P, K].
        targets: [B, P, 2 D + 1].
        hard: How many.
    """
    said = targets[..., -1]
    is_free = (said < 0) & (said != IGNORED)
    wanted = ((said >= 0).sum(dim=1) * hard.per_box).ceil().clamp(min=hard.least)
    scores = logits.amax(dim=2).masked_fill(~is_free, -math.inf)
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return is_free & (rank < wanted[:, None])


def centredness(edges: Tensor) -> Tensor:
    """How central places lie, by the distances to their box's edges, [..., 2 D]: 1 in its centre, 0 on an edge."""
    dims = edges.shape[-1] // 2
    pairs = [edges[..., axis::dims] for axis in range(dims)]
    ratio = pairs[0].amin(-1) / pairs[0].amax(-1)
    for pair in pairs[1:]:
        ratio = ratio * pair.amin(-1) / pair.amax(-1)
    return ratio.clamp(min=0).sqrt() if dims == 2 else ratio.clamp(min=0).pow(1 / dims)


def edge_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of two boxes, each by the distances to its edges from one place, [..., 2 D] to [...]."""
    dims = first.shape[-1] // 2
    nearest = torch.minimum(first, second)
    common = (nearest[..., :dims] + nearest[..., dims:]).clamp(min=0).prod(dim=-1)
    volumes = [(edges[..., :dims] + edges[..., dims:]).prod(dim=-1) for edges in (first, second)]
    return common / (volumes[0] + volumes[1] - common)


OPTIONS: Final = DetectionOptions
NETWORK: Final = DetectionNetwork
