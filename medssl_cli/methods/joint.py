"""Joint image-volume learning: clusters of images and slices, clusters of volumes, and hidden slices, with one trunk.

Nguyen et al., Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter Contrastive Clustering, AAAI
2023, https://arxiv.org/abs/2212.01893. The paper's weights of the terms are not known; these are ours. Unlike the
released code, all terms are trained together (`stage: joint`), or one after the other (the other stages).

A step shows single images (radiographs and slices: agreement of views) or volumes (agreement of views of the whole, and
prediction of hidden slices). In the two views of a volume a slice keeps its place: they differ in their in-plane
geometry, their intensities and in which end slices they lack.

Shapes: B images or volumes of this process, S slices, n slices present, E embedding, C channels, X Y pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl_cli.data.slice_views import SliceAugmentation, canvas_for, cut_views, multi_crop
from medssl_cli.methods import (
    Losses,
    MethodBase,
    Passes,
    SliceRequest,
    Slices,
    StackRequest,
    TrainingSet,
    ViewRequest,
    Views,
)
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.chunks import in_chunks
from medssl_cli.nn.cluster_heads import (
    AgreementHead,
    ClusterHead,
    ClusterOptions,
    ImageProjector,
    SwappedHead,
    SwappedOptions,
    concerns,
    shown,
)
from medssl_cli.nn.distributed import synchronise_norms
from medssl_cli.nn.idle import Idle
from medssl_cli.nn.masked_slices import MaskedSlices, MaskOptions, choose_masked
from medssl_cli.nn.modes import in_mode
from medssl_cli.nn.momentum import freeze
from medssl_cli.nn.view_groups import embed_views
from medssl_cli.nn.volume_encoder import VolumeEncoder, VolumeOptions
from medssl_cli.recipe import NonNegativeFloat, PositiveInt, Probability
from medssl_cli.strict import Strict

NUM_VIEWS = 2  # of a volume


class Swapped(Strict):
    """Prototypes of images and of volumes, where both are assigned by Sinkhorn's algorithm."""

    images: SwappedOptions = SwappedOptions()
    volumes: SwappedOptions = SwappedOptions(num_prototypes=64, queue_length=256, queue_starts=0.1, freeze_steps=100)


class Clustered(Strict):
    """Clusters of images and of volumes, where both are found by k-means."""

    images: ClusterOptions = ClusterOptions()
    volumes: ClusterOptions = ClusterOptions(num_prototypes=(8, 16, 32))


class Weights(Strict):
    """Of the terms. Agreement starts near the logarithm of the number of prototypes, hidden slices near 1.

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
        every: Of so many micro-steps one shows volumes; with `accumulate` of the same number every step shows all.
        batch_size: Volumes per micro-step on all devices together.
        max_slices: Of a volume.
        keep: Least share of a volume's slices that a view keeps.
        scale: Share of the canvas's area that a view shows (least, most).
        chunk_size: Slices that go through the trunk at once, computed again in the backward pass; None for all.
        norms: `frozen`: batch norms of the trunk use running statistics for volumes, whose slices are all alike.
    """

    every: PositiveInt = 3
    batch_size: PositiveInt = 8
    max_slices: PositiveInt = 16
    keep: Annotated[float, Field(gt=0, le=1)] = 0.75
    scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.5, 1.0)
    chunk_size: PositiveInt | None = None
    norms: Literal["frozen", "train"] = "frozen"


class Options(Strict):
    """What is learnt, and how.

    Args:
        variant: Who finds the clusters.
        stage: `joint`, or of the released sequence `images` (A), `masked` (B, the trunk stays as it is), `volumes` (C).
        views: Of single images.
        stacks: Of volumes.
        swapped: Of the variant `swav`.
        clusters: Of the variant `deepcluster`.
        relation: How slices become a volume.
        mask: Which slices are hidden.
        weights: Of the terms.
        hidden_dim: Of both projectors.
        projection_dim: Of both projectors.
        slices_per_volume: A volume counts as at most so many single images.
        balance: Images of a modality that has n of them are drawn in proportion to n ** balance.
        sync_norm: Batch norms see the images of all processes, as in the released code.
    """

    variant: Literal["swav", "deepcluster"] = "swav"
    stage: Literal["joint", "images", "masked", "volumes"] = "joint"
    views: SliceAugmentation = SliceAugmentation()
    stacks: Stacks = Stacks()
    swapped: Swapped = Swapped()
    clusters: Clustered = Clustered()
    relation: VolumeOptions = VolumeOptions()
    mask: MaskOptions = MaskOptions()
    weights: Weights = Weights()
    hidden_dim: PositiveInt = 2048
    projection_dim: PositiveInt = 128
    slices_per_volume: PositiveInt = 8
    balance: Probability = 0.5
    sync_norm: bool = True

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
        """Of the agreement of volumes in this stage."""
        return self.weights.volumes if self.stage in ("joint", "volumes") else 0.0

    @property
    def masked_weight(self) -> float:
        """Of hidden slices in this stage."""
        return self.weights.masked if self.stage in ("joint", "masked") else 0.0


class Method(MethodBase):
    """Joint learning on square views of `crop_size` pixels.

    Args:
        backbone: Of two spatial dimensions.
        options: See `Options`.
        crop_size: Pixels (x, y, 1) of a large view and of a slice.
    """

    dims = frozenset({2})

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        self.image_projector = self._projector(backbone.embedding_dim)
        self.image_head = self._head(options.swapped.images, options.clusters.images, options.views.num_global)
        self.volume_encoder = VolumeEncoder(backbone.channels, options.relation)
        self.volume_projector = self._projector(options.relation.embedding_dim)
        self.volume_head = self._head(options.swapped.volumes, options.clusters.volumes, NUM_VIEWS)
        self.masked = MaskedSlices(options.relation.embedding_dim, centred=options.mask.centred)
        self._idle = Idle(self)
        self._num_steps = 0
        if options.stage == "masked":
            freeze(backbone)
        if options.sync_norm:
            synchronise_norms(self)

    def _projector(self, embedding_dim: int) -> ImageProjector:
        options = self.options
        return ImageProjector(embedding_dim, hidden_dim=options.hidden_dim, projection_dim=options.projection_dim)

    def _head(self, swapped: SwappedOptions, clusters: ClusterOptions, num_assigning: int) -> AgreementHead:
        dim = self.options.projection_dim
        if self.options.variant == "swav":
            return SwappedHead(swapped, num_assigning=num_assigning, embedding_dim=dim)
        return ClusterHead(clusters, num_assigning=num_assigning, embedding_dim=dim)

    def train(self, mode: bool = True) -> "Method":
        """As `nn.Module.train`, but a trunk that does not learn keeps its statistics too."""
        super().train(mode)
        if self.options.stage == "masked":
            self.backbone.eval()
        return self

    def views(self) -> ViewRequest:
        """Single images, and stacks of slices where the stage has a term for them."""
        options = self.options
        stacks = None
        if options.shows_volumes:
            every = options.stacks.every if options.shows_images else 1
            stacks = StackRequest(options.stacks.batch_size, options.stacks.max_slices, every)
        canvas = canvas_for(self.crop_size[0])
        request = SliceRequest(canvas, options.slices_per_volume, options.balance, stacks)
        return ViewRequest(self.crop_size, slices=request)

    def require_batch(self, batch_size: int) -> None:
        """See `SwappedOptions.require_batch`."""
        options = self.options
        if options.variant == "deepcluster":
            return
        if options.shows_images:
            options.swapped.images.require_batch(batch_size, where="method.swapped.images")
        if options.volume_weight > 0:
            options.swapped.volumes.require_batch(options.stacks.batch_size, where="method.swapped.volumes")

    def begin(self, training_set: TrainingSet) -> None:
        """Make room in the banks."""
        self._num_steps = training_set.num_steps
        if self.options.shows_images:
            self.image_head.begin(training_set.image_groups, where="method.clusters.images")
        if self.options.volume_weight > 0:
            self.volume_head.begin(training_set.volume_groups, where="method.clusters.volumes")

    def before_epoch(self, epoch: int, everything: Passes, generator: torch.Generator) -> None:
        """Look at all images and volumes before the first epoch, then cluster what is known of them."""
        if not self.image_head.looks_back:
            return
        large = self.options.views.model_copy(update={"num_local": 0})
        if epoch == 0:
            for views in everything():
                known = _known(views)
                if known.are_volumes and self.options.volume_weight > 0:
                    slices, present = self._slices(views)
                    self.volume_head.remember(known.ids, self._project_volumes(slices, present, known))
                elif not known.are_volumes and self.options.shows_images:
                    self.image_head.remember(known.ids, self._project_images(views, large))
        if self.options.shows_images:
            self.image_head.cluster(generator)
        if self.options.volume_weight > 0:
            self.volume_head.cluster(generator)

    def before_step(self, progress: float) -> None:
        """Bring prototypes that learn back to length 1."""
        self.image_head.before_step()
        self.volume_head.before_step()

    def after_backward(self, progress: float) -> None:
        """Keep prototypes where they are in the first steps, and what this step did not use as it is."""
        self._idle.drop_gradients()
        step = round(progress * self._num_steps)
        self.image_head.after_backward(step)
        self.volume_head.after_backward(step)

    def loss(self, views: Views, progress: float) -> Losses:
        """Terms of a step with single images or of one with volumes."""
        if _known(views).are_volumes:
            parts, figures, used = self._volume_terms(views, progress)
        else:
            parts, figures, used = self._image_terms(views, progress)
        total = torch.stack(list(parts.values())).sum()
        zero = self._idle.zero(used)
        return Losses(total + zero, {name: part.detach() for name, part in parts.items()}, figures)

    def _image_terms(
        self, views: Views, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[nn.Module]]:
        projections = self._project_images(views, self.options.views)
        loss, health = self.image_head.loss(_known(views).ids, projections, progress)
        used = [self.backbone, self.image_projector, self.image_head]
        return {"images": self.options.weights.images * loss}, shown(health, "images/"), used

    def _volume_terms(
        self, views: Views, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[nn.Module]]:
        options, known = self.options, _known(views)
        slices, present = self._slices(views)
        parts, figures = {}, {}
        used: list[nn.Module] = [self.backbone, self.volume_encoder]
        if options.volume_weight > 0:
            projections = self._project_volumes(slices, present, known)
            loss, health = self.volume_head.loss(known.ids, projections, progress)
            parts["volumes"] = options.volume_weight * loss
            figures = shown(health, "volumes/")
            used += [self.volume_projector, self.volume_head]
        if options.masked_weight > 0:
            loss, constant = self._masked_loss(slices, present, views)
            parts["masked"] = options.masked_weight * loss
            figures["masked/constant"] = options.masked_weight * constant
            used.append(self.masked)
        return parts, figures, used

    def _project_images(self, views: Views, augmentation: SliceAugmentation) -> list[Tensor]:
        """Projections of the views of single images, [B, P] each."""
        shard = views.shard_index, views.num_shards
        groups = multi_crop(views.images, augmentation, views.generator, size=self.crop_size[0], shard=shard)
        embeddings = embed_views(self.backbone, groups)
        return list(self.image_projector(embeddings).split(len(views.images)))

    def _project_volumes(self, slices: Tensor, present: Tensor, known: Slices) -> list[Tensor]:
        """Projections of both views of volumes, [B, P] each."""
        related = self.volume_encoder.relate(slices, present, known.positions_mm.repeat(NUM_VIEWS, 1))
        projections = self.volume_projector(self.volume_encoder.pool(related, present))
        return list(projections.split(len(known.ids)))

    def _masked_loss(self, slices: Tensor, present: Tensor, views: Views) -> tuple[Tensor, Tensor]:
        """Of hidden slices in both views, and what the best constant guess would cost."""
        numbers = _own_numbers(views, self.options.stacks.max_slices)[:, : present.shape[1]]
        is_masked = choose_masked(present, self.options.mask, numbers)
        positions = _known(views).positions_mm.repeat(NUM_VIEWS, 1)
        related = self.volume_encoder.relate(self.masked.hide(slices, is_masked), present, positions)
        return self.masked.loss(related, slices, is_masked)

    def _slices(self, views: Views) -> tuple[Tensor, Tensor]:
        """Embeddings of the slices of both views [2 B, S, E], 0 where absent, and which are present [2 B, S]."""
        options, known = self.options.stacks, _known(views)
        present = keep_window(known.is_present.repeat(NUM_VIEWS, 1), _own_numbers(views, 2), keep=options.keep)
        shard, size = (views.shard_index, views.num_shards), self.crop_size[0]
        augmentation, generator = self.options.views, views.generator
        cut = cut_views(views.images, NUM_VIEWS, options.scale, augmentation, generator, size=size, shard=shard)
        flat = in_chunks(self.backbone, self._embed, cut[present], options.chunk_size)
        slices = flat.new_zeros(*present.shape, flat.shape[1])
        slices[present] = flat
        return slices, present

    def _embed(self, images: Tensor) -> Tensor:
        with in_mode(self.backbone, training=self.backbone.training and self.options.stacks.norms == "train"):
            embedded: Tensor = self.volume_encoder.embedding(self.backbone(images))
        return embedded

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Predictions of clusters that say nothing, in a step whose micro-steps show images and volumes in turn.

        Hidden slices count as 0: their targets move, and the best constant guess with them (`masked/constant`).
        """
        options = self.options
        images = options.weights.images * self.image_head.baseline
        volumes = options.volume_weight * self.volume_head.baseline
        if options.stage == "masked":
            return {}
        if not options.shows_volumes:
            return {"no_information": images}
        if not options.shows_images:
            return {"no_information": volumes}
        every = options.stacks.every
        return {"no_information": ((every - 1) * images + volumes) / every}

    def concerns(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """See `cluster_heads.concerns`."""
        kinds = "images", "volumes"
        return [f"{kind}: {worry}" for kind in kinds for worry in concerns(logged, prefix=f"{kind}/")]

    def kept(self) -> dict[str, nn.Module]:
        """What makes volumes of slices."""
        return {"slices": self.volume_encoder} if self.options.shows_volumes else {}


def keep_window(is_present: Tensor, numbers: Tensor, *, keep: float) -> Tensor:
    """Drop slices at the ends of each volume at random, one always stays.

    Args:
        is_present: Bool [B, S], without gaps.
        numbers: Uniform random numbers in [0, 1), [B, 2].
        keep: Least share of the slices that stays.

    Returns:
        Bool [B, S].
    """
    numbers = numbers.to(is_present.device)
    present = is_present.sum(dim=1)
    length = (present * (keep + (1 - keep) * numbers[:, 0])).round().long().clamp(min=1)
    first = (numbers[:, 1] * (present - length + 1)).long()
    place = is_present.cumsum(dim=1) - 1
    return is_present & (place >= first[:, None]) & (place < (first + length)[:, None])


def _known(views: Views) -> Slices:
    assert views.slices is not None
    return views.slices


def _own_numbers(views: Views, width: int) -> Tensor:
    """Random numbers [2 B, width] for both views of this process's volumes, drawn for those of all processes."""
    batch = len(views.images)
    numbers = torch.rand(NUM_VIEWS, batch * views.num_shards, width, generator=views.generator)
    return numbers[:, views.shard_index * batch : (views.shard_index + 1) * batch].flatten(0, 1)
