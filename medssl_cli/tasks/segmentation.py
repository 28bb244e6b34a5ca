"""Segmentation: one class per voxel, trained with soft Dice and cross-entropy.

Shapes: B batch, K classes with background, X Y Z space.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.decoder import UNetDecoder
from medssl_cli.recipe import PositiveInt, Probability
from medssl_cli.strict import Strict
from medssl_cli.tasks import TaskLosses


class Decoder(Strict):
    """Shape of the decoder; see `medssl_cli.nn.decoder.UNetDecoder`."""

    widths: tuple[PositiveInt, ...] | None = None
    num_res_units: Annotated[int, Field(ge=0)] = 0
    norm: str = "instance"
    activation: str = "prelu"
    dropout_prob: Probability = 0.0


class Options(Strict):
    """What to segment.

    Args:
        label_set: Name of the label maps in the cache.
        classes: Names by label value, background left out; values run from 1 without gaps.
        decoder: Shape of the decoder.
        include_background_in_dice: Count background as a structure of the Dice loss.
    """

    label_set: str = "seg"
    classes: dict[int, str] = Field(min_length=1)
    decoder: Decoder = Decoder()
    include_background_in_dice: bool = False

    @field_validator("classes")
    @classmethod
    def _without_gaps(cls, classes: dict[int, str]) -> dict[int, str]:
        if sorted(classes) != list(range(1, len(classes) + 1)):
            raise ValueError("label values must be 1, 2, 3 ... without gaps")
        if len(set(classes.values())) != len(classes):
            raise ValueError("class names must differ")
        return classes


def dice_loss(probabilities: Tensor, target: Tensor, *, smooth: float = 1e-5) -> Tensor:
    """One minus soft Dice, pooled over the batch and averaged over classes.

    Pooling over the batch (Milletari et al., V-Net, https://arxiv.org/abs/1606.04797, equation 1, with the batch as
    one volume) keeps small structures that are absent from single crops from dominating.

    Args:
        probabilities: `[B, K, X, Y, Z]`.
        target: One-hot of the same shape.
        smooth: Added above and below; an absent class that is predicted nowhere costs nothing.

    Returns:
        Scalar in [0, 1].
    """
    axes = (0, 2, 3, 4)
    overlap = (probabilities * target).sum(dim=axes)
    total = probabilities.sum(dim=axes) + target.sum(dim=axes)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


class Task(nn.Module):
    """A backbone with a decoder, and its loss.

    Args:
        backbone: Maps `[B, C, X, Y, Z]` to feature maps.
        options: See `Options`.
    """

    def __init__(self, backbone: Backbone, options: Options) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        self.decoder = UNetDecoder(
            backbone.channels, backbone.strides, len(options.classes) + 1, **options.decoder.model_dump()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, K, X, Y, Z]` of images `[B, C, X, Y, Z]`."""
        logits: Tensor = self.decoder(self.backbone(images))
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> TaskLosses:
        """Soft Dice plus cross-entropy, both in float32.

        Args:
            logits: `[B, K, X, Y, Z]`.
            labels: `[B, X, Y, Z]` int64; values beyond the classes count as background.
        """
        num_classes = len(self.options.classes) + 1
        labels = torch.where(labels < num_classes, labels, 0)
        log_probabilities = logits.float().log_softmax(dim=1)
        target = F.one_hot(labels, num_classes).movedim(-1, 1).float()
        cross_entropy = -(target * log_probabilities).sum(dim=1).mean()
        first = 0 if self.options.include_background_in_dice else 1
        dice = dice_loss(log_probabilities.exp()[:, first:], target[:, first:])
        return TaskLosses(cross_entropy + dice, {"cross_entropy": cross_entropy, "dice": dice})
