"""Segmentation: one class per voxel, trained with soft Dice and cross-entropy.

Shapes: B batch, K classes with background, X Y Z space.
"""

from typing import Final

from torch import Tensor, nn

from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.decoder import Decoder, UNetDecoder
from medssl_cli.nn.segmentation import Classes, segmentation_losses
from medssl_cli.strict import Strict
from medssl_cli.tasks import TaskLosses

SUPERVISION: Final = "label_maps"


class Options(Strict):
    """What to segment.

    Args:
        label_set: Name of the label maps in the cache.
        classes: Names by label value, background left out; values run from 1 without gaps.
        decoder: Shape of the decoder.
        include_background_in_dice: Count background as a structure of the Dice loss.
    """

    label_set: str = "seg"
    classes: Classes
    decoder: Decoder = Decoder()
    include_background_in_dice: bool = False


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
        parts = segmentation_losses(logits, labels, include_background=self.options.include_background_in_dice)
        return TaskLosses(parts["cross_entropy"] + parts["dice"], parts)
