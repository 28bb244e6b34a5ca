"""Self-supervised methods: a file here, or a folder where a method is large, is a method that a recipe can name.

A method declares its views, turns them into a loss and keeps what only training needs (projectors, teachers,
prototypes). It never reads files, moves tensors, steps optimisers or logs. `docs/guides/add-a-method.md` walks through
one.

Shapes: L labelled crops, X Y Z space, N steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl_cli.base.errors import UsageError
from medssl_cli.base.strict import PositiveInt, PositiveRange, Probability, Strict
from medssl_cli.data.augmentation import CropChanges
from medssl_cli.data.placed_views import GentleViews, PlacedAugmentation, PlacedCrops, PlacedWindows, ViewPlaces
from medssl_cli.data.slice_views import SliceAugmentation, canvas_for
from medssl_cli.data.views import (
    BoxCrops,
    Labelled,
    LabelRequest,
    SliceRequest,
    Slices,
    StackRequest,
    ViewRequest,
    Views,
)
from medssl_cli.imaging.geometry import Shape
from medssl_cli.nn.axes import Axes, misfit
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.distributed import synchronise_norms
from medssl_cli.nn.health import collapse_signs
from medssl_cli.nn.hidden_blocks import choose_hidden, constant_guesses, whole_blocks
from medssl_cli.nn.measured import MeasuredBaselines

__all__ = [
    "BoxCrops",
    "CellGrid",
    "CropChanges",
    "GentleViews",
    "HidingMethod",
    "ImageOptions",
    "LabelRequest",
    "Labelled",
    "Losses",
    "MethodBase",
    "PairMethod",
    "PairOptions",
    "Passes",
    "PlacedAugmentation",
    "PlacedCrops",
    "PlacedOptions",
    "PlacedWindows",
    "RestoringMethod",
    "RestoringOptions",
    "SliceRequest",
    "Slices",
    "StackRequest",
    "TrainingSet",
    "ViewPlaces",
    "ViewRequest",
    "Views",
]


@dataclass(frozen=True)
class TrainingSet:
    """How much there is to learn from.

    Args:
        image_groups: Number of the modality of each radiograph, and of each slice as a `SliceRequest` counts them,
            int64 [images]; their ids are their places.
        volume_groups: Number of the modality of each volume, int64 [volumes].
        num_steps: Number of steps of the whole training.
        windows: Where a few hundred windows lie, for methods whose views know where they lie.
        patients: Number of the patient of each single image, or of each volume where boxes of volumes are shown, int64
            [images or volumes]. Empty where nobody knows.
    """

    image_groups: Tensor
    volume_groups: Tensor
    num_steps: int
    windows: PlacedWindows | None = None
    patients: Tensor = field(default_factory=lambda: torch.zeros(0).long())


Passes = Callable[[SliceRequest], Iterator[Views]]
"""A pass over this process's share of all single images (then all volumes, if stacks are asked for) of a training set,
with the views that are declared: each image once, a few twice so that all processes get batches of the same number and
size."""


@dataclass(frozen=True)
class CellGrid:
    """Cells of `data.crop_size` side by side, which `recipes plan` may choose anew for a cache.

    Args:
        cells: Along x, y, z.
        option: Key of the method's section of a recipe that has them.
        network_size: That crops of a cell are resized to; None for no resizing.
        resizing: Keys of the section that are set and ask for resizing; a plan takes them away.
    """

    cells: Shape
    option: str
    network_size: Shape | None = None
    resizing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Losses:
    """What a step minimises and what it shows.

    Args:
        total: Scalar to differentiate.
        parts: Detached scalars that make up the total.
        diagnostics: Detached scalars worth a plot that are not part of the total.
    """

    total: Tensor
    parts: dict[str, Tensor]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


class DrawnOptions(Strict):
    """What every method says that draws single images, slices of volumes among them.

    Args:
        slices_per_volume: Largest number of images that a volume of slices counts as.
        balance: Images of a modality that has n of them are drawn in proportion to n ** balance.
    """

    slices_per_volume: PositiveInt = 8
    balance: Probability = 0.5


class ImageOptions(DrawnOptions):
    """What every method says that learns from views of single 2D images.

    Args:
        views: Views of each image.
        hidden_dim: Width of the projector's hidden layer.
        projection_dim: Size of the projections.
        sync_norm: Batch norms see the images of all processes, as in the released code.
    """

    views: SliceAugmentation = SliceAugmentation()
    hidden_dim: PositiveInt = 2048
    projection_dim: PositiveInt = 128
    sync_norm: bool = True

    def request(self, size: int) -> SliceRequest:
        """Large views of `size` pixels and small ones, of squares a little larger than a large one."""
        crops = self.views.crops(size)
        return SliceRequest(canvas_for(size), crops, self.views, self.slices_per_volume, self.balance)


class PlacedOptions(DrawnOptions):
    """What every method says whose views know where they lie.

    Args:
        views: How a view differs from its image.
    """

    views: PlacedAugmentation = PlacedAugmentation()

    def crops(self, number: int, crop_size: Shape) -> PlacedCrops:
        """So many views of each image, of `crop_size` voxels; z is 1 of slices."""
        return PlacedCrops(number, crop_size, self.views, self.slices_per_volume, self.balance)


class RestoringOptions(PlacedOptions):
    """What every method says that restores one view of each image."""

    views: GentleViews = GentleViews()


class MethodBase(nn.Module, ABC):
    """What every `Method` shares. `progress` runs from 0 at the first step to 1 at the last.

    Args:
        backbone: Network to pre-train; stays reachable as `self.backbone`, everything else is discarded after training.
        options: The method's `Options`.
        crop_size: Voxels (x, y, z) that one forward pass of the backbone sees.

    Raises:
        UsageError: `E_CANVAS`, the backbone cannot take crops of this size.
    """

    dims: ClassVar[frozenset[int]]
    worry_code: ClassVar[str] = "W_CLUSTERS"
    """Code of the alarm about what `health` finds wrong."""
    judged_from: ClassVar[float] = 0.5
    """Share of the steps before which nobody says that it does not learn."""
    learnt_below: ClassVar[float] = 1.0
    """Share of the best baseline that its loss must be below by then."""

    def __init__(self, backbone: Backbone, options: Strict, crop_size: tuple[int, int, int]) -> None:
        super().__init__()
        fault = misfit(crop_size, backbone.crop_multiple)
        if fault is not None:
            raise UsageError(
                "E_CANVAS",
                f"the backbone cannot take crops of {crop_size} voxels: {fault}",
                hint="change data.crop_size",
            )
        self.backbone = backbone
        self.crop_size = crop_size

    def views(self) -> ViewRequest:
        """The declaration of what `loss` gets; one box of the crop size unless a method says otherwise."""
        return ViewRequest(self.crop_size)

    @abstractmethod
    def loss(self, views: Views, progress: float) -> Losses:
        """Loss of one step; a function of the parameters, the images and the generator only."""

    def require_batch(self, batch_size: int) -> None:
        """Refuse batches that are too small for the method.

        Args:
            batch_size: Images per step on all devices together.

        Raises:
            UsageError: `E_RECIPE`.
        """

    def begin(self, training_set: TrainingSet) -> None:
        """Called once, before a checkpoint is restored: make room for what is kept of every image."""

    def before_epoch(self, epoch: int, everything: Passes, generator: torch.Generator) -> None:
        """Called without gradients whenever all images have been shown once more, and before the first step.

        Args:
            epoch: Number of the epoch, from 0.
            everything: The training set.
            generator: Generator of random numbers in the same state in every process.
        """

    def before_step(self, progress: float) -> None:
        """Called before the forward pass of every optimiser step."""

    def after_backward(self, progress: float) -> None:
        """Called when the gradients of a step are complete, before the optimiser uses them."""

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step."""

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Total loss of predictors that have learnt nothing, by name, to draw beside the loss curve.

        Args:
            labels: Labels of the labelled crops of some steps, int64 [N, L, X, Y, Z], if the method asks for labelled
                crops.
        """
        return {}

    def measured_baselines(self) -> dict[str, float]:
        """The same of predictors whose loss no formula gives, measured on what the first steps have shown."""
        return {}

    def health(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """What is wrong with the training, in words.

        Args:
            logged: Loss, parts and diagnostics of the logged steps so far.
        """
        return []

    def undecayed(self) -> list[nn.Parameter]:
        """Matrices that weight decay must spare, as it spares norms and biases."""
        return []

    def evidence(self) -> dict[str, Tensor]:
        """What the last step saw of the images, to keep if it is left out because its loss is not finite."""
        return {}

    def kept(self) -> dict[str, nn.Module]:
        """Modules beside the backbone that outlive the training, by name."""
        return {}

    def exports(self) -> dict[str, nn.Module]:
        """Networks that can be deployed as they are, without fine-tuning, by what they give."""
        return {}

    @classmethod
    def grid(cls, options: Any) -> CellGrid | None:
        """The grid that the method's options lay over each volume, if there is one.

        Args:
            options: The method's `Options`.
        """
        return None

    def matrices(self, views: Views) -> dict[str, Tensor]:
        """Matrices worth a picture while training, values -1 to 1, by name; called by every process or by none."""
        return {}

    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Pictures worth a look while training, by name: grey [H, W] or red, green and blue [H, W, 3], from 0 to 1.

        Called by every process or by none, with views of a few training images that stay the same.
        """
        return {}


class RestoringMethod(MethodBase):
    """What methods share that restore one view of each slice or picture, or of a crop of each volume.

    Args:
        backbone: Network to pre-train, of two or three spatial dimensions.
        options: See `RestoringOptions`.
        crop_size: Voxels (x, y, z) of a view, z 1 in 2D.
    """

    dims = frozenset({2, 3})
    worry_code = "W_NOT_LEARNING"

    def __init__(self, backbone: Backbone, options: RestoringOptions, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.size: Axes = crop_size[: backbone.spatial_dims]
        self.num_steps = 0
        self._request = ViewRequest(crop_size, placed=options.crops(1, crop_size))

    def views(self) -> ViewRequest:
        """One view of each image."""
        return self._request

    def begin(self, training_set: TrainingSet) -> None:
        """Remember how long the training is."""
        self.num_steps = training_set.num_steps


class HidingMethod(RestoringMethod):
    """What methods share that guess hidden blocks of views. A method says which blocks there are, and measures."""

    blocks: Axes
    num_hidden: int
    measured: MeasuredBaselines

    def hidden(self, views: Views) -> tuple[Tensor, Tensor]:
        """Which blocks of the step's views are hidden, and which lie within the field of view.

        Returns:
            Bool [B, X', Y', Z'] each.
        """
        assert views.places is not None
        is_inside = whole_blocks(views.places.is_shown, self.blocks)
        numbers = views.draws.uniform(tuple(is_inside.shape)).to(is_inside.device)
        return choose_hidden(numbers, self.num_hidden), is_inside

    def measured_baselines(self) -> dict[str, float]:
        """What predictors lose that guess from the visible voxels alone."""
        return self.measured.values()

    def health(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """See `nn.hidden_blocks.constant_guesses`."""
        return constant_guesses(logged, self.num_steps)


class PairAugmentation(PlacedAugmentation):
    """How each of two views of an image differs from it; see `PlacedAugmentation`.

    Args:
        apart: Largest distance between the point that both views lie about and the centre of each, as a share of the
            view's side: with a quarter, half of each is on the other along every axis.
    """

    zoom: PositiveRange = (0.7, 1.4)
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    apart: Annotated[float, Field(ge=0, le=1)] = 0.25


class PairOptions(PlacedOptions):
    """What every method says that compares two views of each image.

    Args:
        views: How they differ from the image.
        hidden_dim: Width of the projector's hidden layers.
        projection_dim: Size of the projections.
        sync_norm: Batch norms see the images of all processes, as in the released code.
    """

    views: PairAugmentation = PairAugmentation()
    hidden_dim: PositiveInt = 2048
    projection_dim: PositiveInt = 128
    sync_norm: bool = True


class PairMethod(MethodBase):
    """What methods share that compare two views of each slice or picture, or of a crop of each volume.

    Args:
        backbone: Network to pre-train, of two or three spatial dimensions.
        options: See `PairOptions`.
        crop_size: Voxels (x, y, z) of a view.
    """

    dims = frozenset({2, 3})
    worry_code = "W_COLLAPSE"
    judged_from = 0.25
    learnt_below = 0.98

    def __init__(self, backbone: Backbone, options: PairOptions, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.pair_options = options
        self.batch_size = 0
        self.patients = torch.zeros(0).long()

    def views(self) -> ViewRequest:
        """Two views of each image."""
        return ViewRequest(self.crop_size, placed=self.pair_options.crops(2, self.crop_size))

    def require_batch(self, batch_size: int) -> None:
        """Refuse batches of one image, which has nothing to be told apart from.

        Raises:
            UsageError: `E_RECIPE`.
        """
        if batch_size < 2:
            raise UsageError(
                "E_RECIPE",
                f"data.batch_size {batch_size}: a method that compares images needs at least 2",
                hint="32 and more are better",
            )
        self.batch_size = batch_size

    def begin(self, training_set: TrainingSet) -> None:
        """Remember whose images these are."""
        self.patients = training_set.patients

    def health(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """See `nn.health.collapse_signs`."""
        return collapse_signs(logged)

    def pair(self, views: Views) -> tuple[Tensor, Tensor]:
        """The first and the second view of each image, [B, C, X, Y, Z] each, [B, C, X, Y] of slices."""
        [images] = views.images
        first, second = images.chunk(2)
        return first, second

    def synchronise(self) -> None:
        """Let batch norms see the images of all processes, if the options say so; called when all parts are there."""
        if self.pair_options.sync_norm:
            synchronise_norms(self)
