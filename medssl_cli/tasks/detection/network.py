"""The network of a detection: a backbone's coarsest maps, a feature pyramid, and a head without anchors.

Every place of every map says which classes it lies in, and how far the edges of the box around it are: Tian et al.,
FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019, https://arxiv.org/abs/1904.01355, with its later
overlap as the loss of the edges.

Shapes: B batch, C channels, X Y pixels, P places of all maps, K classes.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Final, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from medssl_cli.base.strict import PositiveInt, Probability, Strict
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.distributed import sum_over_processes, world_size
from medssl_cli.tasks import BoxNames, ClassName, TaskLosses, TaskNetwork, each_by_itself
from medssl_cli.tasks.detection.decode import Grid
from medssl_cli.tasks.detection.feature_pyramid import FeaturePyramid

NUM_GROUPS: Final = 8
TOWER_DEPTH: Final = 2
PRIOR: Final = 0.01
"""Share of the places that a new network takes for a box."""
FOCUS: Final = 2.0
BALANCE: Final = 0.25
Definitions = Annotated[dict[ClassName, BoxNames], Field(min_length=1), BeforeValidator(each_by_itself)]


class DetectionOptions(Strict):
    """What to find.

    Args:
        label_set: Name of the set of boxes in the cache.
        classes: By name, the names of the boxes that are of the class, or `any`. A list makes each name a class.
        num_levels: Of the backbone's maps, the coarsest; the pyramid adds one of twice the last stride.
        width: Channels of the pyramid; a multiple of 8.
        min_score: Boxes below it are not reported.
        max_overlap: Of two boxes of a class that overlap more (intersection over union) the better one is reported.
        max_boxes: Per image.
        match_overlap: Least intersection over union at which a box counts as found.
    """

    label_set: str
    classes: Definitions
    num_levels: PositiveInt = 3
    width: Annotated[int, Field(gt=0, multiple_of=8)] = 128
    min_score: Probability = 0.05
    max_overlap: Probability = 0.5
    max_boxes: PositiveInt = 100
    match_overlap: Annotated[float, Field(gt=0, lt=1)] = 0.5

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
        return self


class Answers(NamedTuple):
    """What a network says of every place.

    Args:
        classes: Logits [B, P, K].
        centre: Logit of how near to a box's centre it lies, [B, P].
        edges: Distances to the low x, low y, high x and high y edge, in pixels, [B, P, 4].
    """

    classes: Tensor
    centre: Tensor
    edges: Tensor

    @classmethod
    def split(cls, logits: Tensor) -> "Answers":
        """From [B, P, K + 5]."""
        return cls(logits[..., :-5], logits[..., -5], logits[..., -4:])


class DetectionHead(nn.Module):
    """Two small towers of convolutions, shared by all maps.

    Args:
        width: C of the maps.
        num_classes: K.
        strides: Of the maps.
    """

    def __init__(self, width: int, num_classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.class_tower, self.edge_tower = _tower(width), _tower(width)
        self.classes = nn.Conv2d(width, num_classes, 3, padding=1)
        self.centre = nn.Conv2d(width, 1, 3, padding=1)
        self.edges = nn.Conv2d(width, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        nn.init.constant_(self.classes.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, C, X_i, Y_i] to [B, P, K + 5]: see `Answers`."""
        found = []
        for level, stride, scale in zip(maps, self.strides, self.scales, strict=True):
            said, around = self.class_tower(level), self.edge_tower(level)
            edges = (scale * self.edges(around)).float().clamp(max=8).exp() * stride
            parts = torch.cat([self.classes(said).float(), self.centre(around).float(), edges], dim=1)
            found.append(parts.flatten(2).transpose(1, 2))
        return torch.cat(found, dim=1)


def _tower(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(TOWER_DEPTH):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(NUM_GROUPS, width), nn.ReLU()]
    return nn.Sequential(*layers)


class DetectionNetwork(nn.Module, TaskNetwork):
    """A backbone with a pyramid and a head, and their loss.

    Args:
        backbone: Maps `[B, C, X, Y]` to feature maps.
        options: See `DetectionOptions`.

    Raises:
        ValueError: Options and backbone do not go together.
    """

    def __init__(self, backbone: Backbone, options: DetectionOptions) -> None:
        super().__init__()
        if backbone.spatial_dims != 2:
            raise ValueError("detection is for 2D images: set backbone.spatial_dims to 2")
        if options.num_levels > len(backbone.channels):
            raise ValueError(f"num_levels {options.num_levels}: the backbone has {len(backbone.channels)} feature maps")
        self.backbone = backbone
        self.options = options
        if any(along_x != along_y for along_x, along_y in backbone.strides):
            raise ValueError("detection needs a backbone whose strides are the same along x and y")
        strides = [stride for stride, _ in backbone.strides[-options.num_levels :]]
        self.strides = (*strides, 2 * strides[-1])
        self.pyramid = FeaturePyramid(backbone.channels[-options.num_levels :], options.width)
        self.head = DetectionHead(options.width, len(options.classes), self.strides)

    def forward(self, images: Tensor) -> Tensor:
        """What every place says, `[B, P, K + 5]` float32; see `Answers`."""
        maps = self.backbone(images)[-self.options.num_levels :]
        answers: Tensor = self.head(self.pyramid(maps))
        return answers

    def grid(self, size: tuple[int, int]) -> Grid:
        """The places of images of a size."""
        return Grid.of(size, self.strides)

    def loss(self, logits: Tensor, targets: Tensor) -> TaskLosses:
        """Focal loss, overlap and centredness.

        Args:
            logits: `[B, P, K + 5]`.
            targets: Of every place, `[B, P, 5]`; see `targets.assign`.
        """
        parts = detection_losses(Answers.split(logits), targets)
        return TaskLosses(parts["classes"] + parts["boxes"] + parts["centre"], parts)


def detection_losses(answers: Answers, targets: Tensor) -> dict[str, Tensor]:
    """Focal loss of the classes, generalised overlap of the boxes, cross-entropy of centredness (`classes`, `boxes`,
    `centre`), all in float32.

    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, https://arxiv.org/abs/1708.02002, equation 5, with
    gamma 2 and alpha 0.25; Rezatofighi et al., CVPR 2019, https://arxiv.org/abs/1902.09630; centredness: FCOS,
    equation 3.

    Args:
        answers: Of a batch.
        targets: Of the same, [B, P, 5]; see `targets.assign`.
    """
    from monai.data.box_utils import box_pair_giou

    logits, is_box = answers.classes.float(), targets[..., 4] >= 0
    truth = F.one_hot(targets[..., 4].long().clamp(min=0), logits.shape[-1]) * is_box[..., None]
    right = torch.where(truth == 1, logits, -logits)
    weight = torch.where(truth == 1, BALANCE, 1 - BALANCE)
    focal = -(weight * (-right).sigmoid().pow(FOCUS) * F.logsigmoid(right)).sum()
    wanted, predicted = targets[..., :4][is_box], answers.edges.float()[is_box]
    near, around = centredness(wanted), wanted.new_tensor([-1, -1, 1, 1])  # as if every place were the origin
    overlap = box_pair_giou(predicted * around, wanted * around)
    centre = F.binary_cross_entropy_with_logits(answers.centre.float()[is_box], near, reduction="sum")
    count = sum_over_processes(is_box.sum()).clamp(min=1) / world_size()
    nearness = sum_over_processes(near.sum()).clamp(min=1e-6) / world_size()
    return {
        "classes": focal / count,
        "boxes": (near * (1 - overlap)).sum() / nearness,
        "centre": centre / count,
    }


def centredness(edges: Tensor) -> Tensor:
    """Of places by the distances to their box's edges, [..., 4]: 1 in its centre, 0 on an edge."""
    horizontal, vertical = edges[..., 0::2], edges[..., 1::2]
    ratio = horizontal.amin(-1) / horizontal.amax(-1) * vertical.amin(-1) / vertical.amax(-1)
    return ratio.clamp(min=0).sqrt()


OPTIONS: Final = DetectionOptions
NETWORK: Final = DetectionNetwork
