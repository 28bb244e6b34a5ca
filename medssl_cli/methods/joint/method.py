"""Joint image-volume learning: clusters of images and slices, clusters of volumes, and hidden slices, with one trunk.

Nguyen et al., Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter Contrastive Clustering, AAAI
2023, https://arxiv.org/abs/2212.01893. The paper's weights of the terms are not known; these are ours. Unlike the
released code, all terms are trained together (`stage: joint`), or one after the other (the other stages).

A step shows single images (radiographs and slices: agreement of views) or volumes (agreement of views of the whole, and
prediction of hidden slices). In the two views of a volume a slice keeps its place: they differ in their in-plane
geometry, their intensities and in which end slices they lack. With `dense`, every pixel of single images is asked where
it lies and what matches it: see `dense.py`; ours.

Shapes: B images or volumes of this process, S slices, n slices present, E embedding, C channels, X Y pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from medssl_cli.data.slice_views import PictureCrops, own_numbers
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
from medssl_cli.methods.joint.chunks import in_chunks
from medssl_cli.methods.joint.dense import DenseHead, trivial_terms
from medssl_cli.methods.joint.masked_slices import MaskedSlices, choose_masked
from medssl_cli.methods.joint.options import Options
from medssl_cli.methods.joint.unused_parameters import UnusedParameters
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.clusters.heads import (
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
from medssl_cli.nn.momentum import freeze
from medssl_cli.nn.slices.volume_encoder import SliceNetwork, VolumeEncoder
from medssl_cli.nn.training_mode import in_mode
from medssl_cli.nn.view_groups import embed_views

NUM_VIEWS: Final = 2
"""Views of a volume."""


class Method(MethodBase):
    """Joint learning on square views of `crop_size` pixels.

    Args:
        backbone: Backbone of two spatial dimensions.
        options: See `Options`.
        crop_size: Pixels (x, y, 1) of a large view and of a slice.
    """

    dims = frozenset({2})

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        self.image_projector = self._projector(backbone.embedding_dim)
        self.image_head = self._head(
            options.swapped.images, options.clusters.images, options.views.num_global, options.projection_dim
        )
        self.volume_encoder = VolumeEncoder(backbone.channels, options.relation)
        size = options.relation.embedding_dim
        self.volume_projector = self._projector(size) if options.has_volume_projector else nn.Identity()
        size = options.projection_dim if options.has_volume_projector else size
        self.volume_head = self._head(options.swapped.volumes, options.clusters.volumes, NUM_VIEWS, size)
        self.masked = MaskedSlices(options.relation.embedding_dim, centred=options.mask.centred)
        self.dense = None if options.dense is None else DenseHead(backbone, options.dense)
        self._unused = UnusedParameters(self)
        self._num_steps = 0
        self._has_levels = False
        if options.stage == "masked":
            freeze(backbone)
            if options.freezes_embedding:
                freeze(self.volume_encoder.embedding)
        if options.sync_norm:
            synchronise_norms(self)

    def _projector(self, embedding_dim: int) -> ImageProjector:
        """A projector of embeddings of a size."""
        options = self.options
        return ImageProjector(embedding_dim, hidden_dim=options.hidden_dim, projection_dim=options.projection_dim)

    def _head(self, swapped: SwappedOptions, clusters: ClusterOptions, num_assigning: int, dim: int) -> AgreementHead:
        """A head of the variant, of projections of a size."""
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
        """Views of single images, and of stacks of slices where the stage has a term for them."""
        return ViewRequest(self.crop_size, slices=self._request())

    def _request(self) -> SliceRequest:
        """Views of single images, and of volumes in this stage."""
        options, size = self.options, self.crop_size[0]
        stacks = None
        if options.shows_volumes:
            every = options.stacks.every if options.shows_images else 1
            crops = PictureCrops(NUM_VIEWS, options.stacks.scale, size)
            stacks = StackRequest(
                options.stacks.batch_size,
                options.stacks.max_slices,
                every,
                crops,
                options.stacks.keep,
                are_whole=options.stacks.views == "whole",
                is_centred=options.stacks.window == "middle",
            )
        return replace(options.request(size), stacks=stacks)

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
        self._has_levels = len(training_set.volume_groups) > 0
        if self.options.shows_images:
            self.image_head.begin(training_set.image_groups, where="method.clusters.images")
        if self.options.volume_weight > 0:
            self.volume_head.begin(training_set.volume_groups, where="method.clusters.volumes")

    def before_epoch(self, epoch: int, everything: Passes, generator: torch.Generator) -> None:
        """Look at all images and volumes before the first epoch, then cluster what is known of them."""
        if not self.image_head.looks_back:
            return
        if epoch == 0:
            request = self._request()
            for views in everything(replace(request, crops=request.crops[:1])):
                known = _known(views)
                if known.are_volumes and self.options.volume_weight > 0:
                    self.volume_head.remember(known.ids, self._project_volumes(self._slices(views), known))
                elif not known.are_volumes and self.options.shows_images:
                    self.image_head.remember(known.ids, self._project_images(views))
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
        self._unused.drop_gradients()
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
        zero = self._unused.zero(used)
        return Losses(total + zero, {name: part.detach() for name, part in parts.items()}, figures)

    def _image_terms(
        self, views: Views, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[nn.Module]]:
        """Terms and figures of a step with single images, and the modules that it uses."""
        maps = self._maps_of_large(views) if self.dense is not None else None
        projections = self._project_images(views, maps)
        loss, health = self.image_head.loss(_known(views).ids, projections, progress)
        parts, figures = {"images": self.options.weights.images * loss}, shown(health, "images/")
        used = [self.backbone, self.image_projector, self.image_head]
        if self.dense is not None and maps is not None:
            found, seen = self._dense_terms(self.dense, maps, views)
            parts |= found
            figures |= {f"dense/{name}": figure for name, figure in seen.items()}
            used.append(self.dense)
        return parts, figures, used

    def _maps_of_large(self, views: Views) -> list[Tensor]:
        """Feature maps of all views that have the size of the large ones."""
        maps: list[Tensor] = self.backbone(views.images[0])
        return maps

    def _dense_terms(
        self, head: DenseHead, maps: list[Tensor], views: Views
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms and figures of every pixel of the large views."""
        known = _known(views)
        number = self.options.views.num_global * len(known.ids)
        levels = torch.full((len(known.ids),), torch.nan) if known.levels is None else known.levels
        return head.terms([level[:number] for level in maps], views.drawn[0], levels, views.draws)

    def _volume_terms(
        self, views: Views, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[nn.Module]]:
        """Terms and figures of a step with volumes, and the modules that it uses."""
        options, known = self.options, _known(views)
        slices = self._slices(views)
        parts, figures = {}, {}
        used: list[nn.Module] = [self.backbone, self.volume_encoder]
        if options.volume_weight > 0:
            projections = self._project_volumes(slices, known)
            loss, health = self.volume_head.loss(known.ids, projections, progress)
            parts["volumes"] = options.volume_weight * loss
            figures = shown(health, "volumes/")
            used += [self.volume_projector, self.volume_head]
        if options.masked_weight > 0:
            loss, constant = self._masked_loss(slices, views)
            parts["masked"] = options.masked_weight * loss
            figures["masked/constant"] = options.masked_weight * constant
            used.append(self.masked)
        return parts, figures, used

    def _project_images(self, views: Views, maps: list[Tensor] | None = None) -> list[Tensor]:
        """Projections of the views of single images, [B, P] each; feature maps of the first size may be known."""
        if maps is None:
            embeddings = embed_views(self.backbone, views.images)
        else:
            rest = [embed_views(self.backbone, views.images[1:])] if len(views.images) > 1 else []
            embeddings = torch.cat([self.backbone.pool(maps), *rest])
        return list(self.image_projector(embeddings).split(len(_known(views).ids)))

    def _project_volumes(self, slices: Tensor, known: Slices) -> list[Tensor]:
        """Projections of both views of volumes, [B, P] each."""
        related = self.volume_encoder.relate(slices, known.is_present, known.positions_mm)
        projections = self.volume_projector(self.volume_encoder.pool(related, known.is_present))
        return list(projections.split(len(known.ids)))

    def _masked_loss(self, slices: Tensor, views: Views) -> tuple[Tensor, Tensor]:
        """Loss of hidden slices in both views, and what the best constant guess would cost."""
        known, present, options = _known(views), _known(views).is_present, self.options
        shape = 1 if options.mask.shared else NUM_VIEWS, len(known.ids), options.stacks.max_slices
        numbers = own_numbers(shape, views.draws)[:, : present.shape[1]].repeat(NUM_VIEWS // shape[0], 1)
        is_masked = choose_masked(present, options.mask, numbers)
        related = self.volume_encoder.relate(self.masked.hide(slices, is_masked), present, known.positions_mm)
        if options.mask.loss == "released":
            num_hidden = max(1, int(options.stacks.max_slices * options.mask.ratio))
            return self.masked.released_loss(related, slices, present, scale=NUM_VIEWS / num_hidden)
        return self.masked.loss(related, slices, is_masked)

    def _slices(self, views: Views) -> Tensor:
        """Embeddings of the slices of both views [2 B, S, E], 0 where a view has none."""
        [images], present = views.images, _known(views).is_present
        flat = in_chunks(self.backbone, self._embed, images[present], self.options.stacks.chunk_size)
        slices = flat.new_zeros(*present.shape, flat.shape[1])
        slices[present] = flat
        return slices

    def _embed(self, images: Tensor) -> Tensor:
        """Embeddings [n, E] of slices [n, C, X, Y]."""
        with in_mode(self.backbone, training=self.backbone.training and self.options.stacks.norms == "train"):
            embedded: Tensor = self.volume_encoder.embedding(self.backbone(images))
        return embedded

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Predictions of clusters that say nothing, in a step whose micro-steps show images and volumes in turn.

        Hidden slices count as 0: their targets move, and the best constant guess with them (`masked/constant`).
        """
        options = self.options
        images = options.weights.images * self.image_head.baseline
        if options.dense is not None:
            images += trivial_terms(options.dense, options.views, has_levels=self._has_levels)
        volumes = options.volume_weight * self.volume_head.baseline
        if options.stage == "masked":
            return {}
        if not options.shows_volumes:
            return {"no_information": images}
        if not options.shows_images:
            return {"no_information": volumes}
        every = options.stacks.every
        return {"no_information": ((every - 1) * images + volumes) / every}

    def undecayed(self) -> list[nn.Parameter]:
        """The prototypes, where they learn."""
        return [each for head in self._heads.values() for each in head.prototypes.parameters()]

    def evidence(self) -> dict[str, Tensor]:
        """Scores and codes of the first view of the last step of each kind, [B, K]."""
        return {f"{name}.{key}": value for name, head in self._heads.items() for key, value in head.last.items()}

    @property
    def _heads(self) -> dict[str, AgreementHead]:
        """By their names in the method."""
        return {"image_head": self.image_head, "volume_head": self.volume_head}

    def health(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """See `clusters.heads.concerns`."""
        kinds = "images", "volumes"
        return [f"{kind}: {worry}" for kind in kinds for worry in concerns(logged, prefix=f"{kind}/")]

    def kept(self) -> dict[str, nn.Module]:
        """What makes volumes of slices, and the decoder of the dense terms where it is wanted."""
        slices: dict[str, nn.Module] = {"slices": self.volume_encoder} if self.options.shows_volumes else {}
        return slices if self.dense is None else slices | self.dense.options.kept(self.dense.decoder)

    def exports(self) -> dict[str, nn.Module]:
        """Embeddings of slices and of volumes."""
        return {"embeddings": SliceNetwork(self.backbone, self.volume_encoder)} if self.options.shows_volumes else {}


def _known(views: Views) -> Slices:
    """What is known of the images; every step of this method has it."""
    assert views.slices is not None
    return views.slices
