"""Settings of joint image-volume learning: what is learnt in which stage, from which views, with which weights."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medssl_cli.base.strict import NonNegativeFloat, PositiveInt, ShareRange, Strict
from medssl_cli.methods import ImageOptions
from medssl_cli.methods.joint.dense import DenseTerms
from medssl_cli.methods.joint.masked_slices import MaskOptions
from medssl_cli.nn.clusters.heads import ClusterOptions, SwappedOptions
from medssl_cli.nn.slices.volume_encoder import VolumeOptions


class Swapped(Strict):
    """Prototypes of images and of volumes, where both are assigned by Sinkhorn's algorithm.

    Args:
        images: Prototypes of single images.
        volumes: Prototypes of volumes.
    """

    images: SwappedOptions = SwappedOptions()
    volumes: SwappedOptions = SwappedOptions(num_prototypes=64, queue_length=256, queue_starts=0.1, freeze_steps=100)


class Clustered(Strict):
    """Clusters of images and of volumes, where both are found by k-means.

    Args:
        images: Clusters of single images.
        volumes: Clusters of volumes.
    """

    images: ClusterOptions = ClusterOptions()
    volumes: ClusterOptions = ClusterOptions(num_prototypes=(8, 16, 32))


class Weights(Strict):
    """Weights of the terms. Agreement starts near the logarithm of the number of prototypes, hidden slices near 1.

    Args:
        images: Agreement of images and slices.
        volumes: Agreement of volumes.
        masked: Hidden slices.
    """

    images: NonNegativeFloat = 0.5
    volumes: NonNegativeFloat = 1.0
    masked: NonNegativeFloat = 0.5


class Stacks(Strict):
    """Steps that show volumes.

    Args:
        every: Number of micro-steps of which one shows volumes; with `accumulate` of the same number every step shows
            all.
        batch_size: Volumes per micro-step on all devices together.
        max_slices: Largest number of slices of a volume.
        keep: Least share of a volume's slices that a view keeps.
        scale: Share of the canvas's area that a view shows (least, most).
        chunk_size: Slices that go through the trunk at once, computed again in the backward pass; None for all.
        norms: `frozen`: batch norms of the trunk use running statistics for volumes, whose slices are all alike.
        views: `crops` within their planes, with changes of intensities, or `whole` slices with one of the released
            code's seven changes of volumes; then `keep` and `scale` do not matter.
        window: Which slices: any, also every second, third ... one, or those in the `middle`, as released.
    """

    every: PositiveInt = 3
    batch_size: PositiveInt = 8
    max_slices: PositiveInt = 16
    keep: Annotated[float, Field(gt=0, le=1)] = 0.75
    scale: ShareRange = (0.5, 1.0)
    chunk_size: PositiveInt | None = None
    norms: Literal["frozen", "train"] = "frozen"
    views: Literal["crops", "whole"] = "crops"
    window: Literal["any", "middle"] = "any"


class Options(ImageOptions):
    """What is learnt, and how; of single images see `ImageOptions`.

    Args:
        variant: Who finds the clusters.
        stage: `joint`, or of the released sequence `images` (A), `masked` (B, the trunk stays as it is), `volumes` (C).
        stacks: Steps that show volumes.
        swapped: Options of the variant `swav`.
        clusters: Options of the variant `deepcluster`.
        relation: How slices become a volume.
        mask: Which slices are hidden.
        weights: Weights of the terms.
        dense: Terms of every pixel of single images; null leaves them out.
        freezes_embedding: In the stage `masked` the linear map of slices stays as it is, too (released).
        has_volume_projector: Volumes are projected before they meet their prototypes; the released code has prototypes
            of the volumes' embeddings themselves.
    """

    variant: Literal["swav", "deepcluster"] = "swav"
    stage: Literal["joint", "images", "masked", "volumes"] = "joint"
    stacks: Stacks = Stacks()
    swapped: Swapped = Swapped()
    clusters: Clustered = Clustered()
    relation: VolumeOptions = VolumeOptions()
    mask: MaskOptions = MaskOptions()
    weights: Weights = Weights()
    freezes_embedding: bool = False
    has_volume_projector: bool = True
    dense: DenseTerms | None = None

    @model_validator(mode="after")
    def _dense_needs_images(self) -> Self:
        """Terms of pixels are terms of single images."""
        if self.dense is not None and not self.shows_images:
            raise ValueError(f"dense is for single images, which stage {self.stage} does not show")
        return self

    @property
    def shows_images(self) -> bool:
        """Whether there are steps with single images."""
        return self.stage in ("joint", "images")

    @property
    def shows_volumes(self) -> bool:
        """Whether there are steps with volumes."""
        return self.stage != "images" and self.volume_weight + self.masked_weight > 0

    @property
    def volume_weight(self) -> float:
        """Weight of the agreement of volumes in this stage."""
        return self.weights.volumes if self.stage in ("joint", "volumes") else 0.0

    @property
    def masked_weight(self) -> float:
        """Weight of hidden slices in this stage."""
        return self.weights.masked if self.stage in ("joint", "masked") else 0.0
