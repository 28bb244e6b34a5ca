"""Detection without anchors: every place of every map says which classes it lies in, and how far their edges are.

Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019, https://arxiv.org/abs/1904.01355, with its
later centre sampling and overlap as the loss of the edges.

Shapes: B batch, P places of all maps, M boxes, K classes, C channels, X Y pixels. Boxes are low x, low y, high x, high
y in pixel edges of the input; pixel i covers [i, i + 1].
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_GROUPS: Final = 8
TOWER_DEPTH: Final = 2
PRIOR: Final = 0.01
"""Share of the places that a new network takes for a box."""
CENTRE_RADIUS: Final = 1.5
"""Of a box, in strides: places that far from its centre answer for it."""
SIZE_PER_STRIDE: Final = 8
"""A map answers for boxes whose farthest edge is at most so many of its strides away, and no finer map's."""
FOCUS: Final = 2.0
BALANCE: Final = 0.25


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


class Grid(NamedTuple):
    """The places of all maps.

    Args:
        places: Centres in pixel edges, [P, 2].
        strides: Of each place's map, [P].
        sizes: Least and most distance to the farthest edge that a place answers for, [P, 2].
    """

    places: Tensor
    strides: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, size: tuple[int, int], strides: Sequence[int]) -> "Grid":
        """Places of maps of an image of X x Y pixels, in the order of `DetectionHead`."""
        places, steps, sizes = [], [], []
        low = 0.0
        for place, stride in enumerate(strides):
            counts = [-(-extent // stride) for extent in size]
            axes = [(torch.arange(count) + 0.5) * stride for count in counts]
            own = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)
            high = math.inf if place + 1 == len(strides) else float(SIZE_PER_STRIDE * stride)
            places.append(own)
            steps.append(torch.full((len(own),), float(stride)))
            sizes.append(torch.tensor([low, high]).expand(len(own), 2))
            low = high
        return cls(torch.cat(places), torch.cat(steps), torch.cat(sizes))

    def boxes(self, edges: Tensor) -> Tensor:
        """Boxes [B, P, 4] from distances to their edges."""
        return torch.cat([self.places - edges[..., :2], self.places + edges[..., 2:]], dim=-1)


def assign(grid: Grid, boxes: Tensor) -> Tensor:
    """Which box each place answers for: of those of its size around whose centre it lies, the smallest.

    Args:
        grid: Of the image.
        boxes: [B, M, 5]: corners and class, negative for none.

    Returns:
        What the places should say, [B, P, 5]: distances to the edges, and the class, -1 for background.
    """
    corners, classes = boxes[..., :4], boxes[..., 4]
    low = grid.places[None, :, None] - corners[:, None, :, :2]
    high = corners[:, None, :, 2:] - grid.places[None, :, None]
    edges = torch.cat([low, high], dim=-1)
    centres = (corners[..., :2] + corners[..., 2:]) / 2
    away = (grid.places[None, :, None] - centres[:, None]).abs().amax(dim=-1)
    farthest = edges.amax(dim=-1)
    fits = (edges.amin(dim=-1) > 0) & (away <= CENTRE_RADIUS * grid.strides[None, :, None])
    fits &= (farthest > grid.sizes[None, :, None, 0]) & (farthest <= grid.sizes[None, :, None, 1])
    fits &= classes[:, None] >= 0
    areas = (corners[..., 2:] - corners[..., :2]).prod(dim=-1)
    smallest, chosen = areas[:, None].masked_fill(~fits, math.inf).min(dim=-1)
    found = torch.gather(classes, 1, chosen).masked_fill(smallest.isinf(), -1)
    picked = torch.gather(edges, 2, chosen[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
    return torch.cat([picked, found[..., None]], dim=-1)


def detection_losses(answers: Answers, targets: Tensor) -> dict[str, Tensor]:
    """Focal loss of the classes, generalised overlap of the boxes, cross-entropy of centredness (`classes`, `boxes`,
    `centre`), all in float32.

    Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, https://arxiv.org/abs/1708.02002, equation 5, with
    gamma 2 and alpha 0.25; Rezatofighi et al., CVPR 2019, https://arxiv.org/abs/1902.09630; centredness: FCOS,
    equation 3.

    Args:
        answers: Of a batch.
        targets: Of the same, [B, P, 5]; see `assign`.
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
    count = is_box.sum().clamp(min=1)
    return {
        "classes": focal / count,
        "boxes": (near * (1 - overlap)).sum() / near.sum().clamp(min=1e-6),
        "centre": centre / count,
    }


def centredness(edges: Tensor) -> Tensor:
    """Of places by the distances to their box's edges, [..., 4]: 1 in its centre, 0 on an edge."""
    horizontal, vertical = edges[..., 0::2], edges[..., 1::2]
    ratio = horizontal.amin(-1) / horizontal.amax(-1) * vertical.amin(-1) / vertical.amax(-1)
    return ratio.clamp(min=0).sqrt()


class Found(NamedTuple):
    """Boxes of one image, best first: corners [M, 4], scores [M], classes [M]."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def decode(
    logits: Tensor, grid: Grid, size: tuple[int, int], *, min_score: float, max_overlap: float, max_boxes: int
) -> Found:
    """The boxes of one image, of those that overlap the best.

    A score is the geometric mean of the probability of the class and the centredness.

    Args:
        logits: [P, K + 5].
        grid: Of the image.
        size: Its pixels along x and y, at which boxes end.
        min_score: Boxes below it are dropped.
        max_overlap: Of two boxes of a class that overlap more (intersection over union) the better one stays.
        max_boxes: Of all classes together.
    """
    from monai.data.box_utils import non_max_suppression

    answers = Answers.split(logits.float())
    scores = (answers.classes.sigmoid() * answers.centre.sigmoid()[:, None]).sqrt()
    limit = torch.tensor([*size, *size], dtype=torch.float32)
    corners = torch.minimum(grid.boxes(answers.edges).clamp(min=0), limit)
    boxes, marks, classes = [], [], []
    for number in range(scores.shape[1]):
        best = scores[:, number].topk(min(len(scores), 10 * max_boxes)).indices
        best = best[scores[best, number] >= min_score]
        best = best[(corners[best, 2:] > corners[best, :2]).all(dim=1)]
        kept = best[non_max_suppression(corners[best], scores[best, number], max_overlap, max_boxes)]
        boxes.append(corners[kept])
        marks.append(scores[kept, number])
        classes.append(torch.full((len(kept),), number))
    together = Found(torch.cat(boxes), torch.cat(marks), torch.cat(classes))
    order = together.scores.argsort(descending=True, stable=True)[:max_boxes]
    return Found(*(part[order] for part in together))
