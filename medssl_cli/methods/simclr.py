"""SimCLR on pictures, slices and volumes: two views of one image attract, all other views of a batch repel.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020:
https://arxiv.org/abs/2002.05709; Big Self-Supervised Models are Strong Semi-Supervised Learners, NeurIPS 2020:
https://arxiv.org/abs/2006.10029.

Differences from the papers and the released code:

- The loss is the mean over all anchors; the released code adds the means of both directions, which is twice as much.
- Other views of the same patient are not repelled, unless `same_patient` says so: slices of one heart are alike.
- Views are turned, zoomed and shifted in millimetres where those of photographs are crops of a share of the area; they
  change intensities instead of colours, and are not mirrored.

Shapes: B images of this process, E projection.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from medssl_cli.base.strict import PositiveFloat
from medssl_cli.methods import Losses, PairMethod, PairOptions, Views
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.contrast import mean_log_candidates, view_contrast
from medssl_cli.nn.health import spread_figures
from medssl_cli.nn.perceptron import perceptron


class Options(PairOptions):
    """See `PairOptions`.

    Args:
        num_layers: Number of layers of the projector: 2 of the first paper, 3 of the second.
        temperature: Divides cosines.
        same_patient: Whether other images of the same patient are `ignored` or repelled like all others.
    """

    num_layers: Annotated[int, Field(ge=2, le=4)] = 2
    temperature: PositiveFloat = 0.1
    same_patient: Literal["ignored", "negative"] = "ignored"


class Method(PairMethod):
    """SimCLR on views of `crop_size` voxels; see `PairMethod`."""

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        hidden = [options.hidden_dim] * (options.num_layers - 1)
        self.projector = perceptron([backbone.embedding_dim, *hidden, options.projection_dim], last_norm="scaled")
        self.synchronise()

    def loss(self, views: Views, progress: float) -> Losses:
        """Contrast of the views of all images of the batch."""
        [images] = views.images
        first, second = self.projector(self.backbone.embed(images)).chunk(2)
        patients = views.patients if self.options.same_patient == "ignored" else None
        found = view_contrast(first, second, temperature=self.options.temperature, patients=patients)
        shown = {"accuracy": found.accuracy, "no_information": found.no_information}
        return Losses(found.loss, {"contrast": found.loss.detach()}, shown | spread_figures(first))

    def baselines(self, labels: torch.Tensor | None = None) -> dict[str, float]:
        """Equal projections: the logarithm of the number of candidates, in the mean over batches of the images."""
        if self.batch_size == 0:
            return {}
        if self.options.same_patient == "negative" or not len(self.patients):
            return {"no_information": math.log(2 * self.batch_size - 1)}
        return {"no_information": mean_log_candidates(self.patients, self.batch_size, per_image=2)}
