"""VoCo on a network of one convolution."""

import torch
from torch import Tensor, nn

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.views import Views, make_views
from medssl_cli.methods import voco
from medssl_cli.nn.backbones import Backbone

UNCHANGED = {"flip_prob": 0, "rot90_prob": 0, "shift_prob": 0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TinyBackbone(Backbone):
    """Remembers the images that it saw last."""

    def __init__(self) -> None:
        super().__init__(channels=(5,), strides=(2,), embedding_levels=(0,))
        self.conv = nn.Conv3d(1, 5, 3, stride=2, padding=1)
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> list[Tensor]:
        self.seen = x.detach()
        return [self.conv(x).tanh()]


def method_with(crop_size: tuple[int, int, int] = (4, 4, 4), **options: object) -> voco.Method:
    torch.manual_seed(0)
    return voco.Method(TinyBackbone(), voco.Options.model_validate({"projector_dim": 8, **options}), crop_size)


def images_for(method: voco.Method, batch: int = 2) -> Tensor:
    return torch.rand(batch, 1, *method.views().size, generator=generator(3))


def views_of(method: voco.Method, boxes: Tensor, shard: tuple[int, int] = (0, 1)) -> Views:
    """A step with these boxes, [B, 1, X, Y, Z]."""
    return make_views(method.views(), boxes, Draws(generator(), *shard))
