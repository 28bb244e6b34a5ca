"""BYOL on pictures, slices and volumes: from one view of an image, predict what a slow copy says of the other.

Grill et al., Bootstrap Your Own Latent, NeurIPS 2020: https://arxiv.org/abs/2006.07733. Nothing is repelled; a
predictor that only the student has, and the slowness of the teacher, keep all images from looking the same.

Differences from the paper and the released code:

- Views are turned, zoomed and shifted in millimetres, change intensities instead of colours, and are not mirrored. Both
  change alike: the paper blurs and inverts one of them more often.
- Hidden layers have no bias, which the norm behind them would remove.
- The released code trains a classifier on labels beside it; here no label is seen.

Shapes: B images of this process, E projection.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from medssl_cli.base.strict import PositiveInt
from medssl_cli.methods import Losses, PairMethod, PairOptions, Views
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.contrast import unit
from medssl_cli.nn.health import spread_figures
from medssl_cli.nn.momentum import SlowEncoder
from medssl_cli.nn.perceptron import perceptron

UNRELATED = 4.0


def prediction_loss(predicted: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """Squared distance of each view's prediction to the target that the other view gives, all of length 1.

    BYOL, equations 2 and 3: https://arxiv.org/abs/2006.07733.

    Args:
        predicted: Predictions by the student, of the first and of the second view, [B, E] each.
        targets: Projections of the teacher, of the first and of the second view, [B, E] each; they get no gradient.

    Returns:
        Mean over images, 0 to 8: 4 for unrelated vectors, 0 for equal ones, such as those of a collapse.
    """
    across = zip(predicted, reversed(targets), strict=True)
    terms = [2 - 2 * (unit(own) * unit(other.detach())).sum(dim=1) for own, other in across]
    return torch.stack(terms).sum(dim=0).mean()


class Options(PairOptions):
    """See `PairOptions`.

    Args:
        hidden_dim: Width of the hidden layers of projector and predictor.
        projection_dim: Size of projections and predictions.
        momentum: Momentum of the teacher, in the first step; it rises to 1 along half a cosine. The paper has 0.996 for
            the longest of its trainings.
    """

    hidden_dim: PositiveInt = 4096
    projection_dim: PositiveInt = 256
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99


class Method(PairMethod):
    """BYOL on views of `crop_size` voxels; see `PairMethod`."""

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        widths = options.hidden_dim, options.projection_dim
        self.projector = perceptron([backbone.embedding_dim, *widths])
        self.predictor = perceptron([options.projection_dim, *widths])
        self.teacher = SlowEncoder(backbone, self.projector, momentum=options.momentum)
        self.synchronise()

    def loss(self, views: Views, progress: float) -> Losses:
        """Predictions of both views from each other, each view normalised on its own."""
        pair = self.pair(views)
        first, second = (self.projector(self.backbone.embed(view)) for view in pair)
        one, other = (self.teacher(view) for view in pair)
        loss = prediction_loss((self.predictor(first), self.predictor(second)), (one, other))
        agreement = (unit(first.detach()) * unit(one)).sum(dim=1).mean()
        return Losses(loss, {"prediction": loss.detach()}, {"teacher_cosine": agreement} | spread_figures(one))

    def after_step(self, progress: float) -> None:
        """Let the teacher follow."""
        self.teacher.follow((self.backbone, self.projector), progress)

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Predictions that have nothing to do with the targets; equal ones of a collapse have 0."""
        return {"no_information": UNRELATED}
