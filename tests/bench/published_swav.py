"""The step of SwAV as released, restated from its description: an opponent for the benchmark, not for training.

As released: every crop is cut and changed by itself from the picture, by Pillow, in the process that loads; one forward
pass per resolution; scores are exponentiated and scaled in the plain domain, with a sum over processes in every round;
LARC scales each parameter's gradient in a loop and reads two numbers from the device for each. Colours are left out, as
everywhere here.
"""

import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.nn.backbones import Backbone

GLOBAL_SCALE, LOCAL_SCALE = (0.3, 1.0), (0.05, 0.3)
TRUST, WEIGHT_DECAY = 1e-3, 1e-6
EPSILON, TEMPERATURE, ROUNDS = 0.05, 0.1, 3
MEAN, STD = 0.5, 0.25


@dataclass(frozen=True)
class Crops:
    """How many crops of which size a picture gives."""

    num_global: int
    num_local: int
    global_size: int
    local_size: int


def crop_picture(picture: NDArray[np.uint8], crops: Crops) -> list[Tensor]:
    """All crops of one picture, each [1, size, size]."""
    image = Image.fromarray(picture)
    kinds = [(GLOBAL_SCALE, crops.global_size)] * crops.num_global
    kinds += [(LOCAL_SCALE, crops.local_size)] * crops.num_local
    return [_one_crop(image, scale, size) for scale, size in kinds]


def _one_crop(image: Image.Image, scale: tuple[float, float], size: int) -> Tensor:
    area = image.width * image.height * random.uniform(*scale)
    aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    width, height = (
        min(image.width, round(math.sqrt(area * aspect))),
        min(image.height, round(math.sqrt(area / aspect))),
    )
    left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    if random.random() < 0.5:
        crop = ImageOps.mirror(crop)
    if random.random() < 0.8:
        crop = ImageEnhance.Brightness(crop).enhance(random.uniform(0.6, 1.4))
        crop = ImageEnhance.Contrast(crop).enhance(random.uniform(0.6, 1.4))
    if random.random() < 0.5:
        crop = crop.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    values = torch.from_numpy(np.array(crop, dtype=np.float32)[None] / 255)
    return (values - MEAN) / STD


class PublishedStep:
    """The released training step around a backbone.

    Args:
        backbone: Of two spatial dimensions.
        hidden_dim: Of the projector.
        num_prototypes: K.
        crops: See `Crops`.
        device: Of the network.
        autocast: Entered for the forward pass.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden_dim: int,
        num_prototypes: int,
        crops: Crops,
        device: str,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.crops, self.device, self.autocast = crops, device, autocast
        self.backbone = backbone.to(device)
        self.head = nn.Sequential(
            nn.Linear(backbone.embedding_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, 128),
        ).to(device)
        self.prototypes = nn.Linear(128, num_prototypes, bias=False).to(device)
        parameters = [*backbone.parameters(), *self.head.parameters(), *self.prototypes.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def load(self, pictures: list[NDArray[np.uint8]]) -> list[Tensor]:
        """What the loader does: a list of crops [B, 1, size, size] of a batch of pictures."""
        cut = [crop_picture(picture, self.crops) for picture in pictures]
        return [torch.stack(views) for views in zip(*cut, strict=True)]

    def step(self, crops: list[Tensor]) -> float:
        """One step on a batch's crops; returns the loss."""
        batch = len(crops[0])
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight.clone(), dim=1))
        with self.autocast():
            scores = self._scores([crop.to(self.device) for crop in crops]).float()
        loss = torch.zeros((), device=self.device)
        for assigned in range(self.crops.num_global):
            codes = plain_sinkhorn(scores[batch * assigned : batch * (assigned + 1)].detach())
            subloss = torch.zeros((), device=self.device)
            others = [view for view in range(len(crops)) if view != assigned]
            for view in others:
                predicted = F.log_softmax(scores[batch * view : batch * (view + 1)] / TEMPERATURE, dim=1)
                subloss = subloss - torch.mean(torch.sum(codes * predicted, dim=1))
            loss = loss + subloss / len(others)
        loss = loss / self.crops.num_global
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        larc(self.optimizer)
        self.optimizer.step()
        return loss.item()

    def _scores(self, crops: list[Tensor]) -> Tensor:
        embeddings = self.backbone.embed(torch.cat(crops[: self.crops.num_global]))
        if self.crops.num_local:
            small = self.backbone.embed(torch.cat(crops[self.crops.num_global :]))
            embeddings = torch.cat([embeddings, small])
        scores: Tensor = self.prototypes(F.normalize(self.head(embeddings), dim=1))
        return scores


def plain_sinkhorn(scores: Tensor) -> Tensor:
    """Codes [B, K] by scaling exp(scores / epsilon)."""
    q = torch.exp(scores / EPSILON).t()
    num_prototypes, batch = q.shape
    q /= torch.sum(q)
    for _ in range(ROUNDS):
        q /= torch.sum(q, dim=1, keepdim=True)
        q /= num_prototypes
        q /= torch.sum(q, dim=0, keepdim=True)
        q /= batch
    return (q * batch).t()


def larc(optimizer: torch.optim.Optimizer) -> None:
    """Scale the gradient of each parameter to a share of its length."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                length, slope = torch.norm(parameter).item(), torch.norm(parameter.grad).item()
                if length != 0 and slope != 0:
                    rate = TRUST * length / (slope + WEIGHT_DECAY * length + 1e-8)
                    parameter.grad.add_(parameter, alpha=WEIGHT_DECAY).mul_(rate)
