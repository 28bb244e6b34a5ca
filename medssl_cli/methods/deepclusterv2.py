"""DeepCluster-V2 on radiographs and slices of volumes: every view of an image must tell the image's cluster.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020:
https://arxiv.org/abs/2006.09882. Views change intensities where the paper changes colours. Needs no large batches.

Shapes: B images of this process, C channels, X Y pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medssl_cli.methods import ImageOptions, Losses, MethodBase, Passes, TrainingSet, ViewRequest, Views
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.clusters.heads import ClusterHead, ClusterOptions, ImageProjector, concerns, shown
from medssl_cli.nn.distributed import synchronise_norms
from medssl_cli.nn.view_groups import embed_views


class Options(ImageOptions, ClusterOptions):
    """See `ImageOptions` and `ClusterOptions`."""


class Method(MethodBase):
    """DeepCluster-V2 on square views of `crop_size` pixels.

    Args:
        backbone: Backbone of two spatial dimensions.
        options: See `Options`.
        crop_size: Pixels (x, y, 1) of a large view.
    """

    dims = frozenset({2})

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        self.projector = ImageProjector(
            backbone.embedding_dim, hidden_dim=options.hidden_dim, projection_dim=options.projection_dim
        )
        self.head = ClusterHead(options, num_assigning=options.views.num_global, embedding_dim=options.projection_dim)
        if options.sync_norm:
            synchronise_norms(self)

    def views(self) -> ViewRequest:
        """Large and small views of single images."""
        return ViewRequest(self.crop_size, slices=self.options.request(self.crop_size[0]))

    def begin(self, training_set: TrainingSet) -> None:
        """Make room in the bank."""
        self.head.begin(training_set.image_groups, where="method")

    def before_epoch(self, epoch: int, everything: Passes, generator: torch.Generator) -> None:
        """Look at all images before the first epoch, then cluster what is known of them."""
        if epoch == 0:
            request = self.options.request(self.crop_size[0])
            for views in everything(replace(request, crops=request.crops[:1])):
                assert views.slices is not None
                self.head.remember(views.slices.ids, self._project(views, views.slices.ids))
        self.head.cluster(generator)

    def loss(self, views: Views, progress: float) -> Losses:
        """Prediction of clusters from all views."""
        assert views.slices is not None
        loss, health = self.head.loss(views.slices.ids, self._project(views, views.slices.ids), progress)
        return Losses(loss, {"cluster_prediction": loss.detach()}, shown(health))

    def _project(self, views: Views, ids: Tensor) -> list[Tensor]:
        """Projections of each view, [B, E]."""
        return list(self.projector(embed_views(self.backbone, views.images)).split(len(ids)))

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Predictions that say nothing."""
        return {"no_information": self.head.baseline}

    def health(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """See `clusters.heads.concerns`."""
        return concerns(logged)

    def evidence(self) -> dict[str, Tensor]:
        """Scores and codes of the first view, [B, K]."""
        return {f"head.{key}": tensor for key, tensor in self.head.last.items()}
