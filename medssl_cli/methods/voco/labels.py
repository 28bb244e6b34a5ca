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

import torch
from torch import Tensor, nn

from medssl_cli.methods.voco.options import OmniOptions
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_decoder
from medssl_cli.nn.decoder import VoxelDecoder
from medssl_cli.nn.momentum import freeze, update_teacher
from medssl_cli.nn.pseudo_labels import most_probable
from medssl_cli.nn.voxel_losses import best_constant_loss, frequencies, voxel_losses


class Labeller(nn.Module):
    """A frozen copy of encoder and decoder, always in evaluation mode.

    Args:
        backbone: Backbone to copy.
        decoder: Decoder to copy.
    """

    def __init__(self, backbone: Backbone, decoder: VoxelDecoder) -> None:
        super().__init__()
        self.backbone = freeze(copy.deepcopy(backbone)).eval()
        self.decoder = freeze(copy.deepcopy(decoder)).eval()

    def train(self, mode: bool = True) -> "Labeller":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, crops: Tensor) -> Tensor:
        """Most probable class per voxel, int64 [M, X, Y, Z], of crops [M, C, X, Y, Z]."""
        return most_probable(self.decoder(self.backbone(crops)), "softmax")


class Branches(nn.Module):
    """The supervised and the pseudo-label branch.

    Args:
        backbone: Its copy is frozen; the backbone itself stays with the method.
        options: See `OmniOptions`.
    """

    is_labelling: Tensor

    def __init__(self, backbone: Backbone, options: OmniOptions) -> None:
        super().__init__()
        self.options = options
        num_classes = len(options.classes) + 1
        self.decoder = build_decoder(options.decoder, backbone, num_classes)
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
            labels: Labels of the labelled crops, int64 [L, X, Y, Z].
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
            labels: Labels of the labelled crops of some steps, [N, L, X, Y, Z].
        """
        shares = frequencies(labels, len(self.options.classes) + 1)
        return self.options.supervised_weight * float(best_constant_loss(shares))

    def _loss(self, maps: list[Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy plus Dice of what the decoder makes of feature maps."""
        parts = voxel_losses(self.decoder(maps), labels)
        return parts["cross_entropy"] + parts["dice"]
