"""Detection in 2D images: boxes of each class, with scores.

A backbone's coarsest maps, a feature pyramid, and a head without anchors (`nn.detection`).

Shapes: B batch, C channels, X Y pixels, P places, K classes.
"""

from typing import Annotated, Final

from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.detection import Answers, DetectionHead, Grid, detection_losses
from medssl_cli.nn.feature_pyramid import FeaturePyramid
from medssl_cli.recipe import PositiveInt, Probability
from medssl_cli.strict import Strict
from medssl_cli.tasks import BoxNames, ClassName, TaskBase, TaskLosses, each_by_itself

SUPERVISION: Final = "boxes"
Definitions = Annotated[dict[ClassName, BoxNames], Field(min_length=1), BeforeValidator(each_by_itself)]


class Options(Strict):
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
    def _has_names(self) -> "Options":
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


class Task(TaskBase):
    """A backbone with a pyramid and a head, and their loss.

    Args:
        backbone: Maps `[B, C, X, Y]` to feature maps.
        options: See `Options`.

    Raises:
        ValueError: Options and backbone do not go together.
    """

    def __init__(self, backbone: Backbone, options: Options) -> None:
        super().__init__()
        if backbone.spatial_dims != 2:
            raise ValueError("detection is for 2D images: set backbone.spatial_dims to 2")
        if options.num_levels > len(backbone.channels):
            raise ValueError(f"num_levels {options.num_levels}: the backbone has {len(backbone.channels)} feature maps")
        self.backbone = backbone
        self.options = options
        strides = backbone.strides[-options.num_levels :]
        self.strides = (*strides, 2 * strides[-1])
        self.pyramid = FeaturePyramid(backbone.channels[-options.num_levels :], options.width)
        self.head = DetectionHead(options.width, len(options.classes), self.strides)

    def forward(self, images: Tensor) -> Tensor:
        """What every place says, `[B, P, K + 5]` float32; see `nn.detection.Answers`."""
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
            targets: Of every place, `[B, P, 5]`; see `nn.detection.assign`.
        """
        parts = detection_losses(Answers.split(logits), targets)
        return TaskLosses(parts["classes"] + parts["boxes"] + parts["centre"], parts)
