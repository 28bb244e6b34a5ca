"""The network of a segmentation: one class per voxel, or regions, trained with soft Dice and cross-entropy.

Classes that exclude each other are outputs of a softmax, after background. Regions, classes that overlap, are each an
output of its own, with a sigmoid, and there is no background.

A backbone of two dimensions segments slice by slice: slices go through it as a batch, and their answers are stacked
again. With `relation` they know of each other.

Shapes: B batch, C channels, K classes with background, or regions, X Y Z space.
"""

from typing import Final, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from medssl_cli.base.classes import IGNORE, Activation, Classes, Ignored, WantedClasses
from medssl_cli.base.errors import UsageError
from medssl_cli.base.strict import NonNegativeFloat, PositiveFloat, Strict
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.boundary_loss import boundary_loss
from medssl_cli.nn.build import build_decoder
from medssl_cli.nn.decoder import UNET_SCORES, Decoder, UNetDecoder
from medssl_cli.nn.deep_supervision import DeepScores, level_weights, thinned
from medssl_cli.nn.slices.relation import Relation, SliceRelation
from medssl_cli.nn.swinunetr_decoder import SCORES, SwinUNETRDecoder
from medssl_cli.nn.voxel_losses import DiceRule, LossTerms, region_losses, voxel_losses
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks import SLICES, PublishedDecoder, TaskLosses, TaskNetwork


class Tversky(Strict):
    """Weights of a Tversky loss; 0.5 and 0.5 are Dice.

    Args:
        false: Weight of voxels that are marked and should not be.
        missed: Weight of voxels that should be marked and are not; more than `false` finds more of small lesions.
    """

    false: PositiveFloat = 0.3
    missed: PositiveFloat = 0.7


class SegmentationOptions(Strict):
    """What to segment.

    Args:
        label_set: Name of the label maps in the cache.
        classes: Names or values of labels that make up each, by name: `{kidneys: [left_kidney, right_kidney]}`,
            `{left_ventricle: [500]}`. A list of names makes each a class of its own; `{1: liver}` is liver by name, and
            value 1 where labels have no names. The k-th is output k of the network; other labels are background.
            Classes that share a name or value are regions, which overlap:
            `{whole_tumour: [edema, core], tumour_core: [core]}`.
        ignore: Names or values of voxels that take part in no loss and no score.
        decoder: Shape of the decoder; `{name: swinunetr}` is that of published weights, which then start it too.
        deep_supervision: Let the loss reach coarser levels of the decoder too, in training alone; each counts half as
            much as the one before.
        dice: Dice over the whole batch at once, so that small structures absent from single crops weigh little; or over
            each crop by itself, `sample`, so that each counts the same however much of a structure it shows.
        include_background_in_dice: Count background as a structure of the Dice loss; regions have none.
        tversky: Instead of Dice, a loss in which missed voxels cost more than false ones; `{}` for 0.7 and 0.3.
        focus: Exponent of a focal cross-entropy, such as 2: voxels that are nearly right count little; 0 for a plain
            one.
        boundary_weight: Weight of the mean signed distance in voxels at which the network marks, beside the other
            losses, such as 0.01: for thin and small structures.
        relation: Relation of slices under a backbone of 2D images: how slices know of each other; none segments each by
            itself.
        keep_largest: `where_it_pays`: of all classes together, and of each, only the largest connected part counts
            where that raises the Dice of the validation images, which decide when the training has ended.
    """

    label_set: str = "seg"
    classes: Classes
    ignore: Ignored = ()
    decoder: Decoder = Decoder()
    deep_supervision: bool = False
    dice: DiceRule = "batch"
    include_background_in_dice: bool = False
    tversky: Tversky | None = None
    focus: NonNegativeFloat = 0.0
    boundary_weight: NonNegativeFloat = 0.0
    relation: Relation | None = None
    keep_largest: Literal["never", "where_it_pays"] = "never"

    @model_validator(mode="after")
    def _once(self) -> Self:
        if self.wanted.are_regions and self.include_background_in_dice:
            raise ValueError("include_background_in_dice: classes that overlap have no background")
        return self

    @property
    def wanted(self) -> WantedClasses:
        """Which labels make up which class."""
        return WantedClasses.of(self)

    @property
    def terms(self) -> LossTerms:
        """Terms of the loss of every level."""
        tversky = None if self.tversky is None else (self.tversky.false, self.tversky.missed)
        return LossTerms(self.dice, self.include_background_in_dice, tversky, self.focus)


class SegmentationNetwork(nn.Module, TaskNetwork):
    """A backbone with a decoder, and its loss.

    Args:
        backbone: Maps `[B, C, X, Y, Z]` to feature maps, or slices `[B, C, X, Y]`.
        options: See `SegmentationOptions`.

    Raises:
        ValueError: Options and backbone do not go together.
    """

    takes_stacks = True

    def __init__(self, backbone: Backbone, options: SegmentationOptions) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        self.spatial_dims = backbone.spatial_dims
        num_outputs = len(options.classes) + (not options.wanted.are_regions)
        self.decoder = build_decoder(options.decoder, backbone, num_outputs)
        self.deep_scores = (
            DeepScores(self.decoder.widths, num_outputs, spatial_dims=self.spatial_dims)
            if options.deep_supervision
            else None
        )
        if options.relation is not None and self.spatial_dims != 2:
            raise ValueError("relation needs a backbone of 2D images: set backbone.spatial_dims to 2")
        self.relation = None if options.relation is None else SliceRelation(backbone.channels, options.relation)

    @classmethod
    def require_fit(cls, recipe: TaskRecipe, options: SegmentationOptions) -> None:
        """See `TaskNetwork.require_fit`: positions in millimetres must be those of the voxels that the network gets."""
        relation, spacing = options.relation, recipe.data.spacing_mm
        if relation is not None and spacing is not None and relation.slice_spacing_mm != spacing[2]:
            raise UsageError(
                "E_RECIPE",
                f"task.relation.slice_spacing_mm is {relation.slice_spacing_mm:g}, data.spacing_mm has {spacing[2]:g}",
                hint=f"set task.relation.slice_spacing_mm to {spacing[2]:g}",
            )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Logits `[B, K, X, Y, Z]` of images `[B, C, X, Y, Z]`; in training also those of coarser levels."""
        if self.spatial_dims == 3:
            return self._scored(self.backbone(images))
        num_slices = images.shape[-1]
        maps = self.backbone(images.movedim(-1, 1).flatten(0, 1))
        if self.relation is not None:
            maps = self.relation(maps, num_slices)
        logits = self._scored(maps)
        if isinstance(logits, list):
            return [_stacked(level, num_slices) for level in logits]
        return _stacked(logits, num_slices)

    def _scored(self, maps: list[Tensor]) -> Tensor | list[Tensor]:
        features = self.decoder.features(maps)
        logits = self.decoder.score(features[0])
        if self.deep_scores is None or not self.training:
            return logits
        return [logits, *self.deep_scores(features)]

    @property
    def activation(self) -> Activation:
        """See `TaskNetwork.activation`."""
        return self.options.wanted.activation

    def kept(self) -> dict[str, nn.Module]:
        """The slice encoder, which joint pre-training keeps under the same name."""
        return {} if self.relation is None else {SLICES: self.relation.volume_encoder}

    def published_decoder(self) -> PublishedDecoder | None:
        """See `TaskNetwork.published_decoder`."""
        is_published = isinstance(self.decoder, SwinUNETRDecoder)
        return PublishedDecoder(self.decoder, SCORES) if is_published else None

    def own_decoder(self) -> PublishedDecoder | None:
        """See `TaskNetwork.own_decoder`."""
        return PublishedDecoder(self.decoder, UNET_SCORES) if isinstance(self.decoder, UNetDecoder) else None

    def loss(self, logits: Tensor | list[Tensor], targets: Tensor) -> TaskLosses:
        """Soft Dice plus cross-entropy, in float32, or what the options say; the parts are those of the finest level.

        Args:
            logits: `[B, K, X, Y, Z]`; of several levels with deep supervision, fine to coarse.
            targets: `[B, X, Y, Z]` int64, or regions `[B, K, X, Y, Z]` uint8; see `nn.voxel_losses`.
        """
        levels = [logits] if isinstance(logits, Tensor) else logits
        found = self._level_loss(levels[0], targets)
        if len(levels) > 1:
            losses = [found, *(self._level_loss(level, thinned(targets, level)) for level in levels[1:])]
            weighted = [weight * own.total for weight, own in zip(level_weights(len(losses)), losses, strict=True)]
            found = TaskLosses(torch.stack(weighted).sum(), found.parts)
        if self.options.boundary_weight > 0:
            boundary = self.options.boundary_weight * self._boundary(levels[0], targets)
            found = TaskLosses(found.total + boundary, {**found.parts, "boundary": boundary})
        return found

    def _level_loss(self, logits: Tensor, targets: Tensor) -> TaskLosses:
        own = region_losses if self.options.wanted.are_regions else voxel_losses
        parts = own(logits, targets, self.options.terms)
        return TaskLosses(sum(list(parts.values())[1:], start=next(iter(parts.values()))), parts)

    def _boundary(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The boundary loss of the finest level."""
        if self.options.wanted.are_regions:
            is_judged = (targets != IGNORE).float()
            return boundary_loss(logits.float().sigmoid(), (targets == 1).float() * is_judged, is_judged)
        places = torch.arange(1, logits.shape[1], device=targets.device).view(-1, 1, 1, 1)
        is_judged = (targets != IGNORE)[:, None].float()
        return boundary_loss(logits.float().softmax(dim=1)[:, 1:], (targets[:, None] == places).float(), is_judged)


def _stacked(logits: Tensor, num_slices: int) -> Tensor:
    """`[B, K, X, Y, Z]` of `[B * Z, K, X, Y]`."""
    return logits.unflatten(0, (-1, num_slices)).movedim(1, -1)


OPTIONS: Final = SegmentationOptions
NETWORK: Final = SegmentationNetwork
