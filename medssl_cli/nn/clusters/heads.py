"""What learning by clusters adds to a backbone: a projector, prototypes, and a memory of earlier images.

Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020:
https://arxiv.org/abs/2006.09882

Shapes: B images of this process, V views, A assigning views (the large ones), E projection, K prototypes, H heads.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Annotated, Final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.base.errors import UsageError
from medssl_cli.base.strict import PositiveFloat, PositiveInt, Probability, Strict
from medssl_cli.nn.clusters.group_table import GroupTable
from medssl_cli.nn.clusters.health import ClusterHealth, alarms, cluster_health
from medssl_cli.nn.clusters.losses import UNLABELLED, Prototypes, cluster_prediction_loss, swapped_prediction_loss
from medssl_cli.nn.clusters.memory import MemoryBank, Queue, cluster_bank
from medssl_cli.nn.clusters.sinkhorn import entropy_floor, most_prototypes, queue_length, sinkhorn_codes

PROJECTION_DIM: Final = 128
JUDGED_STEPS: Final = 10  # logged ones
FIGURES: Final = ("usage", "used", "entropy", "spread", "groups")
"""Names of the fields of `ClusterHealth` in logs."""


class ImageProjector(nn.Module):
    """Linear, BatchNorm, ReLU, Linear: embeddings [N, D] to projections [N, E], as in the released SwAV.

    Args:
        embedding_dim: D.
        hidden_dim: Width between the two.
        projection_dim: E.
        has_norm: Whether the hidden layer is normalised; the DeepCluster-V2 of VISSL has no norm.
    """

    def __init__(
        self, embedding_dim: int, *, hidden_dim: int = 2048, projection_dim: int = PROJECTION_DIM, has_norm: bool = True
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embedding_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim) if has_norm else nn.Identity(),
            nn.ReLU(),
            nn.Linear(hidden_dim, projection_dim),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project all views of a step at once, so that the norm sees them all."""
        projections: Tensor = self.layers(embeddings)
        return projections


class AgreementHead(nn.Module, ABC):
    """Asks the views of an image for one cluster, whoever finds the clusters.

    Args:
        num_assigning: A, leading views that are assigned to clusters.
        num_clusters: K of the first head.
    """

    prototypes: Prototypes

    def __init__(self, num_assigning: int, num_clusters: int) -> None:
        super().__init__()
        self.num_assigning = num_assigning
        self.table = GroupTable(num_clusters)
        self.last: dict[str, Tensor] = {}
        """Scores and codes [B, K] of the first view in the last step, of the first head."""

    @property
    @abstractmethod
    def baseline(self) -> float:
        """Loss of predictions that say nothing."""

    @abstractmethod
    def loss(self, ids: Tensor, projections: Sequence[Tensor], progress: float) -> tuple[Tensor, ClusterHealth]:
        """Agreement of the views, and how the clusters look.

        Args:
            ids: Places of the images in the training set, [B].
            projections: Projections per view [B, E], assigning views first.
            progress: Share of the training that is done.
        """

    def begin(self, groups: Tensor, *, where: str) -> None:
        """Make room for what is kept of every image.

        Args:
            groups: Number of the modality of each image of the training set, [N].
            where: Name of the section of the recipe.
        """
        self.table.begin(groups)

    def _health(self, ids: Tensor, scores: Tensor, codes: Tensor, projections: Tensor) -> ClusterHealth:
        """Look at the first view of a step."""
        self.last = {"scores": scores.detach(), "codes": codes}
        if self.training:
            self.table.add(ids, codes)
        return replace(cluster_health(codes, projections.detach().float()), groups=self.table.information())

    @property
    def looks_back(self) -> bool:
        """Whether it wants to see everything before the first step, and to cluster it once per epoch."""
        return False

    def remember(self, ids: Tensor, projections: Sequence[Tensor]) -> None:
        """Keep the projections of the assigning views, as `loss` does."""

    def cluster(self, generator: torch.Generator) -> None:
        """Find the clusters of all images anew; all processes get the same."""

    def before_step(self) -> None:
        """What the prototypes need before a forward pass."""

    def after_backward(self, step: int) -> None:
        """What the prototypes need before the optimiser moves them.

        Args:
            step: Number of the step, from 0.
        """


class SwappedOptions(Strict):
    """Swapped prediction with soft codes (SwAV).

    Args:
        num_prototypes: K; about ten times the number of classes that the images may have.
        temperature: Temperature of the predictions.
        epsilon: Softness of the codes.
        num_iterations: Number of iterations of Sinkhorn's algorithm.
        queue_length: Earlier images of each assigning view that are assigned together with the batch.
        queue_starts: Share of the training before the queue is used.
        freeze_steps: Steps before the prototypes learn.
        allows_idle: Take more prototypes than the images that are assigned at once can use, as released runs did; the
            loss then stays above a floor.
    """

    num_prototypes: Annotated[int, Field(ge=2)] = 3000
    temperature: PositiveFloat = 0.1
    epsilon: PositiveFloat = 0.05
    num_iterations: PositiveInt = 3
    queue_length: Annotated[int, Field(ge=0)] = 0
    queue_starts: Probability = 0.15
    freeze_steps: Annotated[int, Field(ge=0)] = 313
    allows_idle: bool = False

    def require_batch(self, batch_size: int, *, where: str) -> None:
        """Refuse batches that cannot be spread over the prototypes in the published ratio of 3000 to 4096.

        Args:
            batch_size: Images that are assigned at once, of all processes.
            where: Name of the section of the recipe.

        Raises:
            UsageError: `E_RECIPE`.
        """
        assigned = batch_size + self.queue_length
        if self.num_prototypes > most_prototypes(assigned) and not self.allows_idle:
            most, floor = most_prototypes(assigned), entropy_floor(self.num_prototypes, assigned)
            wanted = queue_length(self.num_prototypes, batch_size)
            raise UsageError(
                "E_RECIPE",
                f"{where}.num_prototypes {self.num_prototypes}: {assigned} images assigned at once carry {most}"
                + f"; the loss stays above {floor:.2f}" * (floor > 0),
                hint=f"lower it, raise the batch size of {batch_size}, or set {where}.queue_length to {wanted}",
            )
        if self.queue_length % batch_size:
            raise UsageError(
                "E_RECIPE",
                f"{where}.queue_length {self.queue_length} must be a multiple of the batch of {batch_size} images",
            )


class SwappedHead(AgreementHead):
    """Prototypes that learn, codes by Sinkhorn's algorithm, and a queue where batches are small.

    Args:
        options: See `SwappedOptions`.
        num_assigning: A.
        embedding_dim: E.
    """

    def __init__(self, options: SwappedOptions, *, num_assigning: int, embedding_dim: int = PROJECTION_DIM) -> None:
        super().__init__(num_assigning, options.num_prototypes)
        self.options = options
        self.prototypes = Prototypes(embedding_dim, [options.num_prototypes])
        self.queue = Queue(num_assigning, options.queue_length, embedding_dim) if options.queue_length else None

    @property
    def baseline(self) -> float:
        """Loss of predictions that say nothing: log K."""
        return math.log(self.options.num_prototypes)

    def loss(self, ids: Tensor, projections: Sequence[Tensor], progress: float) -> tuple[Tensor, ClusterHealth]:
        """Swapped prediction between views; see `AgreementHead.loss`."""
        options, assigning = self.options, self.num_assigning
        scores = self.prototypes(torch.stack(list(projections)))[0].unbind()
        loss = swapped_prediction_loss(
            scores,
            num_global=assigning,
            temperature=options.temperature,
            epsilon=options.epsilon,
            num_iterations=options.num_iterations,
            queued_scores=self._queued_scores(progress),
        )
        if self.queue is not None and self.training:
            self.queue.push(torch.stack([view.detach() for view in projections[:assigning]]))
        codes = sinkhorn_codes(scores[0].detach(), epsilon=options.epsilon, num_iterations=options.num_iterations)
        return loss, self._health(ids, scores[0], codes, projections[0])

    def _queued_scores(self, progress: float) -> list[Tensor] | None:
        """Scores of the queue's rows with today's prototypes; None as long as it is not used."""
        if self.queue is None or progress < self.options.queue_starts or not self.queue.is_full:
            return None
        with torch.no_grad():
            return [self.prototypes(rows)[0] for rows in self.queue.own_rows()]

    def before_step(self) -> None:
        """Bring the prototypes back to length 1."""
        self.prototypes.normalise_()

    def after_backward(self, step: int) -> None:
        """Keep the prototypes where they are in the first steps, in which they would all fall together."""
        if step < self.options.freeze_steps:
            self.prototypes.drop_gradients()


class ClusterOptions(Strict):
    """Prediction of clusters that k-means finds in the embeddings of all images (DeepCluster-V2).

    Args:
        num_prototypes: K of each head.
        temperature: Temperature of the predictions.
        num_rounds: Number of rounds of k-means.
    """

    num_prototypes: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (3000, 3000, 3000)
    temperature: PositiveFloat = 0.1
    num_rounds: PositiveInt = 10


class ClusterHead(AgreementHead):
    """A bank with the last projections of every image, and prototypes that k-means writes once per epoch.

    Args:
        options: See `ClusterOptions`.
        num_assigning: A, banks.
        embedding_dim: E.
    """

    labels: Tensor

    def __init__(self, options: ClusterOptions, *, num_assigning: int, embedding_dim: int = PROJECTION_DIM) -> None:
        super().__init__(num_assigning, options.num_prototypes[0])
        self.options = options
        self.embedding_dim = embedding_dim
        self.prototypes = Prototypes(embedding_dim, options.num_prototypes, is_trained=False)
        self.bank = MemoryBank(num_assigning, 0, embedding_dim)
        self.register_buffer("labels", torch.empty(len(options.num_prototypes), 0, dtype=torch.long))

    @property
    def baseline(self) -> float:
        """Loss of predictions that say nothing: the mean of log K over the heads."""
        return sum(map(math.log, self.options.num_prototypes)) / len(self.options.num_prototypes)

    def begin(self, groups: Tensor, *, where: str) -> None:
        """See `AgreementHead.begin`.

        Raises:
            UsageError: `E_RECIPE`, there are more prototypes than images.
        """
        super().begin(groups, where=where)
        num_images = len(groups)
        most = max(self.options.num_prototypes)
        if most > num_images:
            raise UsageError(
                "E_RECIPE",
                f"{where}.num_prototypes has a head of {most}, but there are only {num_images} images to cluster",
                hint="a tenth of the number of images is a good start",
            )
        device = self.labels.device
        self.bank = MemoryBank(self.num_assigning, num_images, self.embedding_dim).to(device)
        self.labels = torch.full((len(self.prototypes.heads), num_images), UNLABELLED, device=device)

    @property
    def looks_back(self) -> bool:
        """See `AgreementHead.looks_back`."""
        return True

    def remember(self, ids: Tensor, projections: Sequence[Tensor]) -> None:
        """See `AgreementHead.remember`."""
        self.bank.store(ids, torch.stack([view.detach() for view in projections[: self.num_assigning]]))

    def cluster(self, generator: torch.Generator) -> None:
        """See `AgreementHead.cluster`."""
        rounds = self.options.num_rounds
        self.labels.copy_(cluster_bank(self.bank, self.prototypes, generator, num_rounds=rounds))
        self.table.forget()

    def loss(self, ids: Tensor, projections: Sequence[Tensor], progress: float) -> tuple[Tensor, ClusterHealth]:
        """Prediction of each image's cluster from each of its views; see `AgreementHead.loss`."""
        labels = self.labels[:, ids.to(self.labels.device)]
        scores = self.prototypes(torch.stack(list(projections)))
        loss = cluster_prediction_loss(scores, labels, temperature=self.options.temperature)
        if self.training:
            self.remember(ids, projections)
        codes = F.one_hot(labels[0].clamp(min=0), len(self.prototypes.heads[0])).float()
        return loss, self._health(ids, scores[0][0], codes, projections[0])


def shown(health: ClusterHealth, prefix: str = "") -> dict[str, Tensor]:
    """The figures as diagnostics of a step."""
    return {f"{prefix}{name}": torch.tensor(value) for name, value in zip(FIGURES, astuple(health), strict=True)}


def concerns(logged: Sequence[Mapping[str, float]], *, prefix: str = "") -> list[str]:
    """What is wrong with clusters, by the means of the last logged steps.

    Args:
        logged: Diagnostics as `shown` names them, and more.
        prefix: See `shown`.
    """
    last = [entry for entry in logged if prefix + FIGURES[-1] in entry][-JUDGED_STEPS:]
    if len(last) < JUDGED_STEPS:
        return []
    return alarms(ClusterHealth(*(sum(entry[prefix + name] for entry in last) / len(last) for name in FIGURES)))
