"""SwAV on radiographs and slices of volumes: two views of one image must be assigned to the same prototypes.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020:
https://arxiv.org/abs/2006.09882. Views change intensities where the paper changes colours.

Shapes: B images of this process, C channels, X Y pixels.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from medssl_cli.methods import ImageOptions, Losses, MethodBase, TrainingSet, ViewRequest, Views
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.clusters.heads import ImageProjector, SwappedHead, SwappedOptions, concerns, shown
from medssl_cli.nn.distributed import synchronise_norms
from medssl_cli.nn.view_groups import embed_views


class Options(ImageOptions, SwappedOptions):
    """See `ImageOptions` and `SwappedOptions`."""


class Method(MethodBase):
    """SwAV on square views of `crop_size` pixels.

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
        self.head = SwappedHead(options, num_assigning=options.views.num_global, embedding_dim=options.projection_dim)
        self._num_steps = 0
        if options.sync_norm:
            synchronise_norms(self)

    def views(self) -> ViewRequest:
        """Large and small views of single images."""
        return ViewRequest(self.crop_size, slices=self.options.request(self.crop_size[0]))

    def require_batch(self, batch_size: int) -> None:
        """See `SwappedOptions.require_batch`."""
        self.options.require_batch(batch_size, where="method")

    def begin(self, training_set: TrainingSet) -> None:
        """Remember how long the training is, and the images' modalities."""
        self._num_steps = training_set.num_steps
        self.head.begin(training_set.image_groups, where="method")

    def before_step(self, progress: float) -> None:
        """Bring the prototypes back to length 1."""
        self.head.before_step()

    def after_backward(self, progress: float) -> None:
        """Keep the prototypes where they are in the first steps."""
        self.head.after_backward(round(progress * self._num_steps))

    def loss(self, views: Views, progress: float) -> Losses:
        """Swapped prediction over all views."""
        assert views.slices is not None
        ids = views.slices.ids
        projections = self.projector(embed_views(self.backbone, views.images))
        loss, health = self.head.loss(ids, projections.split(len(ids)), progress)
        return Losses(loss, {"swapped_prediction": loss.detach()}, shown(health))

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Predictions that say nothing."""
        return {"no_information": self.head.baseline}

    def undecayed(self) -> list[nn.Parameter]:
        """The prototypes."""
        return list(self.head.prototypes.parameters())

    def health(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """See `clusters.heads.concerns`."""
        return concerns(logged)

    def evidence(self) -> dict[str, Tensor]:
        """Scores and codes of the first view, [B, K]."""
        return {f"head.{key}": tensor for key, tensor in self.head.last.items()}
