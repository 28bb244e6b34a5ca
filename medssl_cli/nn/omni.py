"""What labels add to a self-supervised method: a decoder on the backbone, trained by labels and by pseudo-labels.

Supervised branch: the decoder segments labelled crops, and the encoder learns with it. Pseudo-label branch: from a
share of the steps on, a frozen copy of encoder and decoder labels the random crops of the self-supervised method, and
the decoder learns those labels too.

Wu et al., Large-Scale 3D Medical Image Pre-training with Geometric Context Priors, https://arxiv.org/abs/2410.09890
("omni-supervised").

Shapes: L labelled crops, M unlabelled crops, C channels, X Y Z space, K classes with background.

Differences from the released code:

- There encoder outputs are detached in the pseudo-label branch, all but one of the skip connections, so half of the
  encoder learns from pseudo-labels. Here it is none of it, or with `pseudo_trains_encoder` all; the authors tried
  neither.
- Dice is pooled over the batch, not averaged over crops. Labelled crops have the size of the others and come from
  as many images; there all of a process's are from one.
"""

import copy
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medssl_cli.classes import Classes, Ignored, WantedClasses
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.crops import Augmentation, augment_
from medssl_cli.nn.decoder import Decoder, UNetDecoder
from medssl_cli.nn.momentum import freeze, update_teacher
from medssl_cli.nn.voxel_losses import best_constant_loss, frequencies, voxel_losses
from medssl_cli.recipe import NonNegativeFloat, PositiveFloat, PositiveInt, Probability
from medssl_cli.strict import Strict


class Options(Strict):
    """What is labelled, and how much each kind of supervision counts.

    Args:
        label_set: Name of the label maps in the cache.
        classes: By name, the names or values of labels that make up each, as `task.classes` of a segmentation.
        ignore: Names or values of voxels that count for nothing.
        batch_size: Labelled crops per batch on all devices together.
        foreground_prob: Share of labelled crops that show a random voxel of a random class.
        flip_prob: Of labelled crops, per axis. A mirrored left kidney looks like a right one: 0 if classes have sides.
        self_weight: Of the self-supervised loss; 0 leaves it out.
        supervised_weight: Of cross-entropy plus Dice on labelled crops.
        pseudo_weight: Of cross-entropy plus Dice on pseudo-labelled crops; 0 leaves them out.
        pseudo_from: Share of the steps before the model's copy is frozen and begins to label.
        pseudo_trains_encoder: Let pseudo-labels train the encoder too, not only the decoder.
        decoder: Shape of the decoder.
    """

    label_set: str = "seg"
    classes: Classes
    ignore: Ignored = ()
    batch_size: PositiveInt = 4
    foreground_prob: Probability = 0.9
    flip_prob: Probability = 0.2
    self_weight: NonNegativeFloat = 1.0
    supervised_weight: PositiveFloat = 1.0
    pseudo_weight: NonNegativeFloat = 1.0
    pseudo_from: Annotated[float, Field(ge=0, lt=1)] = 0.5
    pseudo_trains_encoder: bool = False
    decoder: Decoder = Decoder()

    @model_validator(mode="after")
    def _once(self) -> Self:
        WantedClasses.of(self)
        return self

    @property
    def wanted(self) -> WantedClasses:
        """Which labels make up which class."""
        return WantedClasses.of(self)

    @property
    def needs_unlabelled(self) -> bool:
        """Whether anything is learnt from images without their labels."""
        return self.self_weight > 0 or self.pseudo_weight > 0


class Labeller(nn.Module):
    """A frozen copy of encoder and decoder, always in evaluation mode.

    Args:
        backbone: To copy.
        decoder: To copy.
    """

    def __init__(self, backbone: Backbone, decoder: UNetDecoder) -> None:
        super().__init__()
        self.backbone = freeze(copy.deepcopy(backbone)).eval()
        self.decoder = freeze(copy.deepcopy(decoder)).eval()

    def train(self, mode: bool = True) -> "Labeller":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, crops: Tensor) -> Tensor:
        """Most probable class per voxel, int64 [M, X, Y, Z], of crops [M, C, X, Y, Z]."""
        labels: Tensor = self.decoder(self.backbone(crops)).argmax(dim=1)
        return labels


class Branches(nn.Module):
    """The supervised and the pseudo-label branch.

    Args:
        backbone: Its copy is frozen; the backbone itself stays with the method.
        options: See `Options`.
    """

    is_labelling: Tensor

    def __init__(self, backbone: Backbone, options: Options) -> None:
        super().__init__()
        self.options = options
        num_classes = len(options.classes) + 1
        self.decoder = UNetDecoder(backbone.channels, backbone.strides, num_classes, **options.decoder.model_dump())
        self.labeller = Labeller(backbone, self.decoder) if options.pseudo_weight > 0 else None
        self.register_buffer("is_labelling", torch.zeros((), dtype=torch.bool))

    def before_step(self, progress: float, backbone: Backbone) -> None:
        """Freeze the labeller, once, at the first step from `pseudo_from` on."""
        if self.labeller is None or progress < self.options.pseudo_from or self.is_labelling:
            return
        update_teacher(self.labeller.backbone, backbone, momentum=0.0)
        update_teacher(self.labeller.decoder, self.decoder, momentum=0.0)
        self.is_labelling.fill_(True)

    def to_label(self, crops: Tensor) -> Tensor:
        """Those of the unlabelled crops [M, C, X, Y, Z] that get pseudo-labels in this step: all or none."""
        return crops if self.is_labelling else crops[:0]

    def losses(self, maps: list[Tensor], labels: Tensor, crops: Tensor) -> dict[str, Tensor]:
        """Terms `supervised` and, where there are crops to label, `pseudo`, weighted; float32.

        Args:
            maps: Feature maps of unlabelled crops (any number of them), then of labelled crops, fine to coarse.
            labels: Of the labelled crops, int64 [L, X, Y, Z].
            crops: Those that `to_label` chose, [M, C, X, Y, Z]; the first M of the maps are theirs.
        """
        labelled = [level[len(level) - len(labels) :] for level in maps]
        losses = {"supervised": self.options.supervised_weight * self._loss(labelled, labels)}
        if self.labeller is not None and len(crops):
            own = [level[: len(crops)] for level in maps]
            if not self.options.pseudo_trains_encoder:
                own = [level.detach() for level in own]
            losses["pseudo"] = self.options.pseudo_weight * self._loss(own, self.labeller(crops))
        return losses

    def constant_loss(self, labels: Tensor) -> float:
        """Weighted supervised term of the best predictor that has one answer for every voxel.

        Args:
            labels: Of the labelled crops of some steps, [N, L, X, Y, Z].
        """
        shares = frequencies(labels, len(self.options.classes) + 1)
        return self.options.supervised_weight * float(best_constant_loss(shares))

    def _loss(self, maps: list[Tensor], labels: Tensor) -> Tensor:
        parts = voxel_losses(self.decoder(maps), labels)
        return parts["cross_entropy"] + parts["dice"]


def augmented(images: Tensor, labels: Tensor, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
    """Labelled crops, mirrored and turned together with their labels; new tensors.

    Args:
        images: [L, C, X, Y, Z].
        labels: [L, X, Y, Z].
        augmentation: For L crops; intensity shifts change images only.
    """
    moves = Augmentation(augmentation.flips, augmentation.quarter_turns, torch.zeros_like(augmentation.shifts))
    return augment_(images.clone(), augmentation), augment_(labels[:, None].clone(), moves)[:, 0]
