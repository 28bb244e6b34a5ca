"""Self-supervised methods, one per file: a file here is a method that a recipe can name.

A method asks for views, turns them into a loss and keeps what only training needs (projectors, teachers, prototypes).
It never reads files, moves tensors, steps optimisers or logs. `docs/guides/add-a-method.md` walks through one.

Shapes: B batch, V views, S slices, L labelled crops, C channels, X Y Z space, N items, E embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from medssl_cli.classes import WantedClasses
from medssl_cli.errors import UsageError
from medssl_cli.nn.backbones import Backbone
from medssl_cli.strict import Strict


@dataclass(frozen=True)
class LabelRequest:
    """Labelled crops that a method wants beside the views of each step.

    Args:
        label_set: Name of the label maps in the cache.
        wanted: Which of their names or values make up which class.
        size: Of a crop in voxels (x, y, z).
        batch_size: Crops per batch on all devices together.
        foreground_prob: Share of crops that show a random voxel of a random class.
        option: Where a recipe sets this, for messages.
    """

    label_set: str
    wanted: WantedClasses
    size: tuple[int, int, int]
    batch_size: int
    foreground_prob: float
    option: str


@dataclass(frozen=True)
class StackRequest:
    """Steps that show whole volumes as stacks of slices, between those that show single images.

    Args:
        batch_size: Volumes per step on all devices together.
        max_slices: Of a volume in one step: a window at a random place, of every or every second, third ... slice.
        every: Of so many steps one shows volumes, the others show single images; 1 for nothing but volumes.
    """

    batch_size: int
    max_slices: int
    every: int


@dataclass(frozen=True)
class SliceRequest:
    """2D images that a method wants instead of boxes: radiographs, and slices across the third axis of volumes.

    Args:
        canvas: Edge in pixels of the square that each is brought to, with its proportions kept.
        slices_per_volume: A volume counts as at most so many images: its slices in equal ranges, of each range one at
            random, because neighbours are nearly the same image.
        balance: Images of a modality that has n of them are drawn in proportion to n ** balance.
        stacks: Steps with volumes, if there are any.
    """

    canvas: int
    slices_per_volume: int = 8
    balance: float = 0.5
    stacks: StackRequest | None = None


@dataclass(frozen=True)
class ViewRequest:
    """What a method wants from the loader.

    Args:
        size: Of a box in voxels (x, y, z).
        num_views: Boxes of each item.
        labelled: Labelled crops, if it learns from labels too.
        slices: 2D images instead of boxes.
    """

    size: tuple[int, int, int]
    num_views: int = 1
    labelled: LabelRequest | None = None
    slices: SliceRequest | None = None


@dataclass(frozen=True)
class Labelled:
    """Labelled crops of one step: images [L, C, X, Y, Z] and their classes, int64 [L, X, Y, Z]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Slices:
    """What is known of the images of a step that shows 2D images.

    Args:
        ids: Place of each image (or, if `are_volumes`, of each volume) in the training set, int64 [B].
        is_present: False where a slice is padding, bool [B, S].
        positions_mm: Of the slices along their normal, float32 [B, S]; 0 for a single image.
        are_volumes: Whether the step shows stacks; otherwise S is 1.
    """

    ids: Tensor
    is_present: Tensor
    positions_mm: Tensor
    are_volumes: bool


@dataclass(frozen=True)
class TrainingSet:
    """How much there is to learn from.

    Args:
        image_groups: Number of the modality of each radiograph, and of each slice as a `SliceRequest` counts them,
            int64 [images]; their ids are their places.
        volume_groups: Of each volume, int64 [volumes].
        num_steps: Of the whole training.
    """

    image_groups: Tensor
    volume_groups: Tensor
    num_steps: int


@dataclass(frozen=True)
class Views:
    """One step's input.

    Args:
        images: Preprocessed boxes, [B, V, C, X, Y, Z], or what a `SliceRequest` asked for, [B, S, C, X, Y]. A method
            does not change them in place.
        generator: Source of all randomness in the loss; the engine seeds it from (seed, step), so a resumed run draws
            the same numbers. It may live on the CPU while the images do not. Every process that shares a step has the
            same: a method draws for the whole batch of B * num_shards images and takes its own rows.
        shard_index: This process's place among those that share the step's batch.
        num_shards: How many share it.
        labelled: This process's labelled crops, if the method asked for some.
        slices: What is known of 2D images.
    """

    images: Tensor
    generator: torch.Generator
    shard_index: int = 0
    num_shards: int = 1
    labelled: Labelled | None = None
    slices: Slices | None = None


Passes = Callable[[], Iterator[Views]]
"""A pass over this process's share of all single images (then all volumes) of a training set, without augmentation of
its own: each image once, a few twice so that all processes get batches of the same number and size."""


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

    def __init__(self, backbone: Backbone, options: Strict, crop_size: tuple[int, int, int]) -> None:
        super().__init__()
        if any(extent % backbone.crop_multiple for extent in crop_size[: max(self.dims)]):
            raise UsageError(
                "E_CANVAS",
                f"the backbone takes sizes that are multiples of {backbone.crop_multiple}; crop_size is {crop_size}",
                hint="change data.crop_size",
            )
        self.backbone = backbone
        self.crop_size = crop_size

    def views(self) -> ViewRequest:
        """What `loss` needs per item; one box of the crop size unless a method says otherwise."""
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
            epoch: From 0.
            everything: The training set.
            generator: In the same state in every process.
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
            labels: Of the labelled crops of some steps, int64 [N, L, X, Y, Z], if the method asks for labelled crops.
        """
        return {}

    def concerns(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """What is wrong with the training, in words.

        Args:
            logged: Loss, parts and diagnostics of the logged steps so far.
        """
        return []

    def kept(self) -> dict[str, nn.Module]:
        """Modules beside the backbone that outlive the training, by name."""
        return {}

    def matrices(self, views: Views) -> dict[str, Tensor]:
        """Matrices worth a picture while training, values -1 to 1, by name; called by every process or by none."""
        return {}
