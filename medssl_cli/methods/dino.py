"""DINO on pictures, slices and volumes: every view must get the outputs that a slow copy gives a large one.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021: https://arxiv.org/abs/2104.14294.
Nothing is repelled; outputs of the teacher are centred, so that not one of them takes all images, and sharpened, so
that not all of them are alike.

Differences from the paper and the released code:

- Views change intensities where the paper changes colours; both large ones change alike; nothing is mirrored.
- Gradients are limited all together (`optimizer.max_grad_norm`), not one by one; weight decay does not rise.
- The temperature of the teacher does not rise, as in the released script by default.
- The last layer is frozen for a share of the steps instead of an epoch.

Shapes: B images of this process, V views, E projection, K outputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl_cli.base.strict import PositiveFloat, PositiveInt, Probability
from medssl_cli.imaging.geometry import Shape
from medssl_cli.methods import Losses, PairMethod, PairOptions, ViewRequest, Views
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.contrast import unit
from medssl_cli.nn.distributed import sum_over_processes, world_size
from medssl_cli.nn.health import collapse_signs, last_steps, spread_figures
from medssl_cli.nn.momentum import SlowEncoder
from medssl_cli.nn.view_groups import embed_views

UNIFORM, ONE = 0.98, 0.02
ONE_FOR_ALL = 0.3
STUCK = 0.002


def self_distillation_loss(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    centre: Tensor,
    *,
    temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Cross entropy of the student's outputs of each view with the teacher's of every other large view.

    DINO, equations 2 and 3: https://arxiv.org/abs/2104.14294.

    Args:
        students: Outputs [B, K] of each view, the large ones first.
        teachers: Outputs [B, K] of the large views; they get no gradient.
        centre: Centre of the teacher's outputs so far, [K].
        temperature: Temperature of the student's softmax.
        teacher_temperature: Temperature of the teacher's softmax.

    Returns:
        Mean over pairs of different views and images; log K where the student's outputs are equal.
    """
    log_predictions = [(_wide(view) / temperature).log_softmax(dim=1) for view in students]
    targets = [teacher_shares(view, centre, teacher_temperature) for view in teachers]
    losses = [
        -(target * log_prediction).sum(dim=1).mean()
        for source, target in enumerate(targets)
        for place, log_prediction in enumerate(log_predictions)
        if source != place
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def teacher_shares(outputs: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """What the teacher says of images: softmax of centred, sharpened outputs [B, K]."""
    return ((_wide(outputs) - centre) / temperature).softmax(dim=1)


@torch.no_grad()
def next_centre(centre: Tensor, teachers: Sequence[Tensor], *, momentum: float = 0.9) -> Tensor:
    """The centre [K] after a step, moved towards the mean of its outputs [B, K] over views and all processes."""
    outputs = torch.cat([_wide(view) for view in teachers])
    mean = sum_over_processes(outputs.sum(dim=0)) / (len(outputs) * world_size())
    return momentum * centre + (1 - momentum) * mean


class Options(PairOptions):
    """See `PairOptions`.

    Args:
        views: Changes of both large views, which alone the teacher sees; small ones change alike.
        num_small: Small views of each image.
        small_share: Side of a small view as a share of a large one's, whole cells of the backbone.
        small_apart: Largest distance between the point that an image's views lie about and the centre of a small view,
            as a share of the small view's side.
        hidden_dim: Width of the two hidden layers of the projector.
        projection_dim: E, between projector and outputs.
        num_outputs: K; the paper has 65536, a hundred images each are plenty.
        temperature: Temperature of the student's softmax.
        teacher_temperature: Temperature of the teacher's softmax; lower it where the outputs stay uniform.
        centre_momentum: Momentum of the running mean of the teacher's outputs.
        momentum: Momentum of the teacher, in the first step; it rises to 1 along half a cosine. 0.99 for short
            trainings.
        freeze_last: Share of the steps in which the last layer keeps its weights.
    """

    num_small: Annotated[int, Field(ge=0)] = 6
    small_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    small_apart: Annotated[float, Field(ge=0, le=1)] = 0.5
    projection_dim: PositiveInt = 256
    num_outputs: Annotated[int, Field(ge=2)] = 4096
    temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.04
    centre_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.996
    freeze_last: Probability = 0.05


class OutputHead(nn.Module):
    """Three linear layers with GELU between, then cosines with K directions of length 1; no norm learns anything.

    Args:
        embedding_dim: Dimension of the embedding of the backbone.
        options: Options of the method.
    """

    def __init__(self, embedding_dim: int, options: Options) -> None:
        super().__init__()
        width = options.hidden_dim
        self.layers = nn.Sequential(
            nn.Linear(embedding_dim, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, options.projection_dim),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Parameter(unit(torch.randn(options.num_outputs, options.projection_dim)))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Outputs [N, K] of embeddings [N, D], in float32 or wider."""
        projections = unit(self.layers(embeddings))
        with torch.autocast(embeddings.device.type, enabled=False):
            return projections @ unit(self.directions).to(projections.dtype).T


class Method(PairMethod):
    """DINO on views of `crop_size` voxels and smaller ones; see `PairMethod`."""

    centre: Tensor

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        self.head = OutputHead(backbone.embedding_dim, options)
        self.teacher = SlowEncoder(backbone, self.head, momentum=options.momentum)
        self.register_buffer("centre", torch.zeros(options.num_outputs))
        self._outputs: list[Tensor] = []
        self.synchronise()

    def views(self) -> ViewRequest:
        """Two large views of each image, and small ones."""
        options, request = self.options, super().views()
        assert request.placed is not None
        if options.num_small == 0:
            return request
        changes = options.views.model_copy(update={"apart": options.small_apart})
        small = replace(request.placed, number=options.num_small, size=self._small_size, changes=changes)
        return replace(request, placed=replace(request.placed, small=small))

    @property
    def _small_size(self) -> Shape:
        """Voxels of a small view: whole cells of the backbone, at least one along each axis."""
        share, multiple = self.options.small_share, (*self.backbone.crop_multiple, 1)[:3]
        x, y, z = (
            max(1, round(share * extent / cell)) * cell if extent > 1 else 1
            for extent, cell in zip(self.crop_size, multiple, strict=True)
        )
        return x, y, z

    def require_batch(self, batch_size: int) -> None:
        """Nothing: an image is told apart by the outputs, not by other images."""
        self.batch_size = batch_size

    def loss(self, views: Views, progress: float) -> Losses:
        """Agreement of all views with the teacher's large ones."""
        options, large = self.options, views.images[0]
        batch = len(large) // 2
        students = self.head(embed_views(self.backbone, views.images)).split(batch)
        teachers = self.teacher(large).split(batch)
        loss = self_distillation_loss(
            students,
            teachers,
            self.centre,
            temperature=options.temperature,
            teacher_temperature=options.teacher_temperature,
        )
        shown = self._figures(torch.cat(teachers)) | spread_figures(students[0])
        self._outputs += teachers
        return Losses(loss, {"self_distillation": loss.detach()}, shown)

    @torch.no_grad()
    def _figures(self, outputs: Tensor) -> dict[str, Tensor]:
        """Mean entropy of what the teacher says, and entropy of the mean, as shares of log K."""
        shares = teacher_shares(outputs, self.centre, self.options.teacher_temperature)
        entropy = torch.special.entr(shares).sum(dim=1).mean()
        mean = sum_over_processes(shares.mean(dim=0)) / world_size()
        largest = math.log(self.options.num_outputs)
        return {"entropy": entropy / largest, "usage": torch.special.entr(mean).sum() / largest}

    def after_backward(self, progress: float) -> None:
        """Keep the last layer where it is in the first steps. Without a gradient no optimiser moves or decays it."""
        if progress < self.options.freeze_last:
            self.head.directions.grad = None

    def before_step(self, progress: float) -> None:
        """Forget what the teacher said in a step that was left out."""
        self._outputs.clear()

    def after_step(self, progress: float) -> None:
        """Move the centre, and let the teacher follow."""
        self.centre.copy_(next_centre(self.centre, self._outputs, momentum=self.options.centre_momentum))
        self._outputs.clear()
        self.teacher.follow((self.backbone, self.head), progress)

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Outputs that are all alike."""
        return {"no_information": math.log(self.options.num_outputs)}

    def undecayed(self) -> list[nn.Parameter]:
        """The directions, whose length is nothing."""
        return [self.head.directions]

    def health(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """Outputs that are uniform, or the same one for all images, or a loss that stays that of no information."""
        signs, last = collapse_signs(logged), last_steps(logged, "entropy")
        if not last:
            return signs
        entropy, usage = ([entry[name] for entry in last] for name in ("entropy", "usage"))
        largest = math.log(self.options.num_outputs)
        checks = [
            (min(entropy) > UNIFORM, f"outputs are uniform: {entropy[-1]:.1%} of the largest entropy"),
            (
                max(entropy) < ONE and max(usage) < ONE_FOR_ALL,
                f"few outputs take all images: {usage[-1]:.1%} of the largest entropy",
            ),
            (
                all(abs(entry["loss"] - largest) < STUCK for entry in last),
                f"the loss stays that of outputs that say nothing, {largest:.4f}",
            ),
        ]
        return signs + [words for is_wrong, words in checks if is_wrong]


def _wide(outputs: Tensor) -> Tensor:
    """Outputs in float32 or wider."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
