"""Bidirectional copy-paste: a box of a labelled image in an unlabelled one, and the reverse.

Bai et al., Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation, CVPR 2023,
https://arxiv.org/abs/2305.00673.

The student learns mixtures of a labelled and an unlabelled image: true labels on one part, the teacher's on the other.
So labelled and unlabelled content share images and the student cannot treat them apart. In the first stage boxes are
exchanged among labelled images only.

Shapes: B batch, C channels, K classes with background, or regions, X Y Z space.

Differences from the paper and the released code:

- Both stages are one training; the teacher is the running average from the first step on, not a copy of the best
  weights of the first stage, and it is what is kept.
- Every pair of images has a box of its own, which may lie anywhere; there the batch shares one, and it never reaches
  the last place.
- A step mixes B labelled and B unlabelled images to B mixtures. Half of them take the box from the labelled image, the
  others all but the box; which half is drawn.
- With `shows_whole` the student sees the labelled images as they are too, with the task's loss beside that of mixtures:
  at the end it gets whole images, and few steps of mixtures alone do not teach it those.
- The loss is the task's own, once over all voxels with true labels, once over those with the teacher's; there each
  mixture's two parts have a mean of their own, and Dice has squares in the denominator and background in the mean. For
  equal mixtures the weights of the parts are the same: (CE + Dice) of true labels plus `pseudo_weight` times the same.
- `min_confidence` is ours, and that `one_piece` may name classes.
"""

from typing import Annotated, Any, Final

import torch
from pydantic import Field
from torch import Tensor

from medssl_cli.base.classes import IGNORE
from medssl_cli.base.strict import NonNegativeFloat, Probability, Strict
from medssl_cli.data.augmentation import Draws
from medssl_cli.imaging.geometry import Shape
from medssl_cli.nn.distributed import gather, rank
from medssl_cli.nn.pseudo_labels import pseudo_labels
from medssl_cli.tasks import TaskLosses
from medssl_cli.unlabelled import (
    AnswerMeaning,
    Learnt,
    Networks,
    StepImages,
    UnlabelledMethod,
    agreement,
    class_shares,
    finest,
    places_of,
    rows,
)

ALL: Final = "all"
NONE: Final = "none"


class CopyPasteOptions(Strict):
    """How images are mixed, and what the teacher's labels count.

    Args:
        pseudo_weight: Weight of the loss on the teacher's labels, beside that on true ones.
        first_stage: Share of the training that mixes labelled images only.
        shows_whole: Labelled images are shown whole beside the mixtures, which doubles what a step costs; without, they
            are shown in mixtures only, as published.
        box: Share of a crop's side that is the box's.
        one_piece: Structures of which only the largest connected piece of an image (of 2D networks, of a slice) counts
            among the teacher's labels: `all`, `none`, or names of classes. Not for what has many parts, as lesions.
        min_confidence: The teacher's labels count only where it gives them at least this probability.
    """

    pseudo_weight: NonNegativeFloat = 0.5
    first_stage: Annotated[float, Field(ge=0, lt=1)] = 0.25
    shows_whole: bool = True
    box: Annotated[float, Field(gt=0, lt=1)] = 2 / 3
    one_piece: str | tuple[str, ...] = ALL
    min_confidence: Probability = 0.0


def paste_boxes(size: Shape, count: int, share: float, draws: Draws) -> Tensor:
    """Boxes at random places, bool [B, X, Y, Z], true inside.

    Args:
        size: Voxels (X, Y, Z) of the crops; an axis of one voxel lies inside as a whole.
        count: How many, B.
        share: Share of each side, rounded down, at least one voxel.
        draws: Source of the places.
    """
    sides = [max(1, int(share * length)) for length in size]
    starts = draws.uniform((count, 3))
    inside = torch.ones(count, *size, dtype=torch.bool)
    for axis, (length, side) in enumerate(zip(size, sides, strict=True)):
        first = (starts[:, axis] * (length - side + 1)).long().clamp(max=length - side)
        places = torch.arange(length)
        own = (places >= first[:, None]) & (places < first[:, None] + side)
        shape = [count, 1, 1, 1]
        shape[axis + 1] = length
        inside &= own.view(shape)
    return inside


def mixed(first: Tensor, second: Tensor, is_first: Tensor) -> Tensor:
    """One image of two [B, X, Y, Z] or [B, C, X, Y, Z], by the mask [B, X, Y, Z] of what is from the first."""
    return torch.where(is_first if first.ndim == is_first.ndim else is_first[:, None], first, second)


def only(targets: Tensor, is_counted: Tensor) -> Tensor:
    """Targets [B, X, Y, Z] or [B, K, X, Y, Z] that count where a mask [B, X, Y, Z] says so, and are ignored elsewhere.

    With it, the loss of a task over a part of a mixture is its loss as it is.
    """
    return mixed(targets, torch.full_like(targets, IGNORE), is_counted)


def next_of_batch(images: Tensor) -> Tensor:
    """For each image of a batch, which processes may share, the next one; after the last comes the first."""
    everything = gather(images.contiguous())
    places = torch.arange(len(images), device=images.device) + rank() * len(images) + 1
    return everything[places % len(everything)]


class CopyPaste(UnlabelledMethod):
    """See the module.

    Raises:
        UsageError: `E_RECIPE`, `one_piece` names no class of the task.
    """

    annotations = frozenset({"labels"})
    pairs_images = True
    options: CopyPasteOptions

    def __init__(self, options: Any, target: AnswerMeaning) -> None:
        super().__init__(options, target)
        wanted = options.one_piece
        names = {ALL: target.classes, NONE: ()}.get(wanted, (wanted,)) if isinstance(wanted, str) else wanted
        self._one_piece = places_of(names, target.classes, "unlabelled.one_piece")

    def is_full(self, progress: float) -> bool:
        """See `UnlabelledMethod.is_full`."""
        return progress >= self.options.first_stage

    def loss(self, networks: Networks, shown: StepImages, progress: float, *, is_off: bool) -> Learnt:
        """See `UnlabelledMethod.loss`."""
        [images], size = shown.labelled, shown.labelled[0].shape[2:]
        box = paste_boxes((size[0], size[1], size[2]), len(images), self.options.box, shown.draws).to(images.device)
        if progress < self.options.first_stage:
            return self._among_labelled(networks, shown, box)
        return self._with_unlabelled(networks, shown, box, is_off=is_off)

    def _among_labelled(self, networks: Networks, shown: StepImages, box: Tensor) -> Learnt:
        """The first stage: the box of each image is from the next one, with its labels."""
        [images] = shown.labelled
        answers, whole = self._answers(networks, shown, mixed(next_of_batch(images), images, box))
        losses = networks.judge(answers, mixed(next_of_batch(shown.targets), shown.targets, box))
        if whole is None:
            return Learnt(losses.total, losses.parts)
        return Learnt(whole.total + losses.total, {**whole.parts, "unlabelled/mixtures": losses.total.detach()})

    def _answers(self, networks: Networks, shown: StepImages, mixtures: Tensor) -> tuple[Any, TaskLosses | None]:
        """The student's answers of mixtures, and its loss on labelled images that are shown whole beside them."""
        [images] = shown.labelled
        if not self.options.shows_whole:
            return networks.student(mixtures), None
        answers = networks.student(torch.cat([images, mixtures]))
        return rows(answers, len(images)), networks.judge(rows(answers, 0, len(images)), shown.targets)

    def _with_unlabelled(self, networks: Networks, shown: StepImages, box: Tensor, *, is_off: bool) -> Learnt:
        """The second stage: true labels on one part, the teacher's on the other."""
        [images], [others], options = shown.labelled, shown.unlabelled, self.options
        said = networks.teacher(others)
        labels = pseudo_labels(
            said,
            self.target.activation,
            min_confidence=options.min_confidence,
            largest_of=self._one_piece,
            spatial_dims=self.target.spatial_dims,
        )
        is_true = box ^ takes_the_rest(len(images), shown.draws).to(box.device)[:, None, None, None]
        answers, whole = self._answers(networks, shown, mixed(images, others, is_true))
        supervised = networks.judge(answers, only(shown.targets, is_true))
        learnt = networks.judge(answers, only(labels, ~is_true))
        weight = 0.0 if is_off else options.pseudo_weight
        parts = {
            "unlabelled/loss": learnt.total.detach(),
            "unlabelled/weight": said.new_tensor(weight),
            "unlabelled/used": (labels != IGNORE).float().mean(),
            **agreement(finest(answers).detach(), said, self.target, ~is_true),
        }
        total, shares = supervised.total + weight * learnt.total, class_shares(labels, self.target)
        if whole is None:
            return Learnt(total, {**supervised.parts, **parts}, shares)
        return Learnt(
            whole.total + total, {**whole.parts, "unlabelled/mixtures": supervised.total.detach(), **parts}, shares
        )


def takes_the_rest(count: int, draws: Draws) -> Tensor:
    """Which mixtures take all but the box from the labelled image, bool [B]: every second; a coin says which."""
    is_odd = bool(torch.rand((), generator=draws.generator) < 0.5)
    places = torch.arange(count) + draws.rank * count
    return (places + is_odd) % 2 == 1


OPTIONS: Final = CopyPasteOptions
METHOD: Final = CopyPaste
