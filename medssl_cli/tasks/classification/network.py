"""The network of a classification: findings that may come together, or classes that exclude each other.

An embedding of the image, dropout, one linear layer. Images of which nobody knows whether they show a finding say
nothing about that finding and still teach the others.

A backbone of two dimensions takes volumes too, slice by slice: the embedding is the mean of its slices, or, with
`relation`, what f_intra and f_inter of joint pre-training make of them (Nguyen et al., AAAI 2023,
https://arxiv.org/abs/2212.01893).

Shapes: B batch, N images, C channels, X Y Z space, S slices, E embedding, K classes.
"""

from typing import Annotated, Final, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from medssl_cli.base.classes import Activation
from medssl_cli.base.strict import Probability, Strict
from medssl_cli.cache.findings import Definition
from medssl_cli.heads import FindingsHead, Head
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.distributed import sum_over_processes, world_size
from medssl_cli.nn.slices.encoder import mean_pool
from medssl_cli.nn.slices.volume_encoder import VolumeEncoder, VolumeOptions
from medssl_cli.tasks import SLICES, ClassName, TaskLosses, TaskNetwork, each_by_itself

MAX_WEIGHT: Final = 100.0


Definitions = Annotated[dict[ClassName, Definition], Field(min_length=1), BeforeValidator(each_by_itself)]


class ClassificationOptions(Strict):
    """What to tell apart.

    Args:
        label_set: Name of the set of findings in the cache.
        classes: Findings of which any makes the class, by name, or `any` finding of the set, or `none`. A list of
            findings makes each a class of its own.
        is_exclusive: Every image is of exactly one class; images of none or of several are left out.
        class_weights: `balanced` weighs classes so that rare ones count as much as common ones, by the training images.
        dropout_prob: Dropout probability of a number of the embedding, before the last layer.
        relation: Relation of slices under a backbone of 2D images: how slices become a volume; as `method.relation` of
            the joint pre-training whose weights are used. None takes the mean of the slices.
    """

    label_set: str
    classes: Definitions
    is_exclusive: bool = False
    class_weights: Literal["none", "balanced"] = "balanced"
    dropout_prob: Probability = 0.0
    relation: VolumeOptions | None = None

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        if self.is_exclusive and len(self.classes) < 2:
            raise ValueError("is_exclusive needs at least two classes")
        if any(definition == () for definition in self.classes.values()):
            raise ValueError("a class needs at least one finding")
        return self


class ClassificationNetwork(nn.Module, TaskNetwork):
    """A backbone with a linear layer on its embedding, and its loss.

    Args:
        backbone: Maps `[B, C, X, Y]` or `[B, C, X, Y, Z]` to an embedding `[B, E]`.
        options: See `ClassificationOptions`.

    Raises:
        ValueError: Options and backbone do not go together.
    """

    takes_stacks = True
    positive_weights: Tensor
    class_weights: Tensor

    def __init__(self, backbone: Backbone, options: ClassificationOptions) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        if options.relation is not None and backbone.spatial_dims != 2:
            raise ValueError("relation needs a backbone of 2D images: set backbone.spatial_dims to 2")
        self.volume_encoder = None if options.relation is None else VolumeEncoder(backbone.channels, options.relation)
        embedding_dim = backbone.embedding_dim if options.relation is None else options.relation.embedding_dim
        self.dropout = nn.Dropout(options.dropout_prob)
        self.head = nn.Linear(embedding_dim, len(options.classes))
        self.register_buffer("positive_weights", torch.ones(len(options.classes)))
        self.register_buffer("class_weights", torch.ones(len(options.classes)))

    def embed(self, images: Tensor, is_present: Tensor | None = None, positions_mm: Tensor | None = None) -> Tensor:
        """Embeddings `[B, E]`; see `forward`."""
        if self.volume_encoder is None and images.ndim == self.backbone.spatial_dims + 2:
            return self.backbone.embed(images)
        stack = images if images.ndim == 5 else images[..., None]
        if is_present is None or positions_mm is None:
            is_present = torch.ones(len(stack), stack.shape[-1], dtype=torch.bool, device=stack.device)
            positions_mm = torch.zeros(is_present.shape, device=stack.device)
        flat = self.embed_slices(stack.movedim(-1, 1)[is_present])
        slices = flat.new_zeros(*is_present.shape, flat.shape[1])
        slices[is_present] = flat
        return self.pool(slices, is_present, positions_mm)

    def embed_slices(self, slices: Tensor) -> Tensor:
        """Each slice by itself, `[N, C, X, Y]` to `[N, E]`."""
        encoder = self.volume_encoder
        embedded: Tensor = self.backbone.embed(slices) if encoder is None else encoder.embedding(self.backbone(slices))
        return embedded

    def pool(self, slices: Tensor, is_present: Tensor, positions_mm: Tensor) -> Tensor:
        """Embeddings of volumes `[B, E]` from those of their slices `[B, S, E]`, zero where none is there."""
        encoder = self.volume_encoder
        if encoder is None:
            return mean_pool(slices, is_present)
        return encoder.pool(encoder.relate(slices, is_present, positions_mm), is_present)

    def forward(self, images: Tensor, is_present: Tensor | None = None, positions_mm: Tensor | None = None) -> Tensor:
        """Logits `[B, K]`.

        Args:
            images: `[B, C, X, Y]`, or `[B, C, X, Y, Z]`, or slices for a backbone of 2D images, `[B, C, X, Y, S]`.
            is_present: Which slices are there, bool `[B, S]`; None for all of them.
            positions_mm: Positions of the slices along their normal, `[B, S]`.
        """
        logits: Tensor = self.head(self.dropout(self.embed(images, is_present, positions_mm)))
        return logits

    @property
    def activation(self) -> Activation:
        """See `TaskNetwork.activation`."""
        return "softmax" if self.options.is_exclusive else "sigmoid"

    def exported(self, head: Head) -> nn.Module:
        """See `TaskNetwork.exported`: all slices of a stack are computed, where training leaves padding out."""
        is_of_stacks = isinstance(head, FindingsHead) and head.num_slices is not None
        return StackedNetwork(self) if is_of_stacks else self

    def kept(self) -> dict[str, nn.Module]:
        """What makes volumes of slices, which joint pre-training keeps under the same name."""
        return {} if self.volume_encoder is None else {SLICES: self.volume_encoder}

    def balance(self, targets: Tensor) -> None:
        """Take the weights of the loss from the training images; without effect if the options say so.

        Args:
            targets: `[N, K]`, 1 present, 0 absent, NaN unknown.
        """
        if self.options.class_weights == "none":
            return
        present, absent = (targets == 1).sum(dim=0), (targets == 0).sum(dim=0)
        ratio = (absent / present.clamp(min=1)).clamp(1 / MAX_WEIGHT, MAX_WEIGHT)
        self.positive_weights.copy_(torch.where((present > 0) & (absent > 0), ratio, 1.0))
        shares = present.sum() / (len(present) * present.clamp(min=1))
        self.class_weights.copy_(torch.where(present > 0, shares.clamp(1 / MAX_WEIGHT, MAX_WEIGHT), 1.0))

    def loss(self, logits: Tensor, targets: Tensor) -> TaskLosses:
        """Cross-entropy in float32, of each class by itself or of all together, over what is known.

        Args:
            logits: `[B, K]`.
            targets: `[B, K]`, 1 present, 0 absent, NaN unknown.
        """
        values = logits.float()
        is_known = ~targets.isnan()
        answers = torch.where(is_known, targets, 0.0).to(values)
        if self.options.is_exclusive:
            weights = (answers * self.class_weights).sum(dim=1)
            terms = -(answers * values.log_softmax(dim=1)).sum(dim=1)
            total = sum_over_processes(weights.sum()).clamp(min=1e-6) / world_size()
            loss = (weights * terms).sum() / total
        else:
            terms = F.binary_cross_entropy_with_logits(
                values, answers, pos_weight=self.positive_weights, reduction="none"
            )
            count = sum_over_processes(is_known.sum()).clamp(min=1) / world_size()
            loss = (terms * is_known).sum() / count
        return TaskLosses(loss, {"cross_entropy": loss})


class StackedNetwork(nn.Module):
    """A network of stacks that computes the same for every stack of S slices, whichever of them are there.

    Args:
        network: Network in which slices that are not there are left out.
    """

    def __init__(self, network: ClassificationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, is_present: Tensor, positions_mm: Tensor) -> Tensor:
        """Logits `[B, K]`; see `ClassificationNetwork.forward`."""
        network = self.network
        flat = network.embed_slices(images.movedim(-1, 1).flatten(0, 1))
        slices = flat.unflatten(0, (-1, images.shape[-1])).masked_fill(~is_present[..., None], 0.0)
        logits: Tensor = network.head(network.pool(slices, is_present, positions_mm))
        return logits


OPTIONS: Final = ClassificationOptions
NETWORK: Final = ClassificationNetwork
