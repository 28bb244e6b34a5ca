"""A toy method: tell the mean intensity of a crop from the embedding of a noisy copy."""

from torch import nn
from torch.nn import functional as F

from medssl_cli.base.strict import PositiveFloat, Strict
from medssl_cli.methods import Losses, MethodBase, Views
from medssl_cli.nn.backbones import Backbone


class Options(Strict):
    noise_std: PositiveFloat = 0.1


class Method(MethodBase):
    dims = frozenset({3})

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.noise_std = options.noise_std
        self.head = nn.Linear(backbone.embedding_dim, 1)

    def loss(self, views: Views, progress: float) -> Losses:
        [images] = views.images
        noise = views.draws.normal(tuple(images.shape))
        predicted = self.head(self.backbone.embed(images + self.noise_std * noise.to(images)))
        error = F.mse_loss(predicted, images.flatten(1).mean(dim=1, keepdim=True))
        return Losses(error, {"error": error.detach()})
