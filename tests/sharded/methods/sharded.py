"""A method whose loss is a function of the whole batch, however many processes share it: noise and a contrast."""

import torch
from torch import nn
from torch.nn import functional as F

from medssl_cli.base.strict import Strict
from medssl_cli.methods import Losses, MethodBase, Views
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.distributed import BatchNorm, gather
from medssl_cli.nn.momentum import freeze, update_teacher


class Options(Strict):
    noise_std: float = 0.1
    contrast: float = 1.0
    not_finite_from: float = 2.0


class Method(MethodBase):
    dims = frozenset({3})

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        self.head = nn.Sequential(nn.Linear(backbone.embedding_dim, 8), BatchNorm(), nn.Linear(8, 4))
        self.teacher = freeze(nn.Linear(backbone.embedding_dim, 4))
        self.student = nn.Linear(backbone.embedding_dim, 4)

    def before_step(self, progress: float) -> None:
        update_teacher(self.teacher, self.student, momentum=0.9)

    def loss(self, views: Views, progress: float) -> Losses:
        [images] = views.images
        noise = views.draws.normal(tuple(images.shape)).to(images)
        embeddings = self.backbone.embed(images + self.options.noise_std * noise)
        means = images.flatten(1).mean(1, keepdim=True)
        error = F.mse_loss(self.student(embeddings), self.teacher(embeddings.detach()) + means)
        projections = F.normalize(self.head(embeddings), dim=1)
        contrast = (projections @ gather(projections).T).square().mean()
        total = error + self.options.contrast * contrast
        if progress >= self.options.not_finite_from and views.draws.rank == views.draws.num_processes - 1:
            total = total / 0.0
        return Losses(total, {"error": error.detach(), "contrast": contrast.detach()})

    def matrices(self, views: Views) -> dict[str, torch.Tensor]:
        projections = F.normalize(self.head(self.backbone.embed(views.images[0])), dim=1)
        return {"cosines": projections @ projections.T}
