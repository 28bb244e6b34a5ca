"""VoCo on single slices: the same mathematics with one voxel along z, and what cannot be asked of slices."""

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.base.errors import UsageError
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.views import make_views
from medssl_cli.methods import voco
from medssl_cli.nn.backbones import Backbone

SETTINGS = {"projector_dim": 8, "num_random_crops": 4, "base_grid": (3, 2, 1)}


class FlatBackbone(Backbone):
    def __init__(self) -> None:
        super().__init__(channels=(5,), strides=(2,), embedding_levels=(0,), spatial_dims=2)
        self.conv = nn.Conv2d(1, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x).tanh()]


class DeepBackbone(Backbone):
    """The same with a kernel of one voxel along z."""

    def __init__(self, flat: FlatBackbone) -> None:
        super().__init__(channels=(5,), strides=((2, 2, 1),), embedding_levels=(0,))
        self.conv = nn.Conv3d(1, 5, (3, 3, 1), stride=(2, 2, 1), padding=(1, 1, 0))
        self.conv.load_state_dict({"weight": flat.conv.weight[..., None], "bias": flat.conv.bias})

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x[..., None]).tanh()]


def method_with(backbone: Backbone, crop_size: tuple[int, int, int] = (6, 6, 1), **options: object) -> voco.Method:
    torch.manual_seed(1)
    return voco.Method(backbone, voco.Options.model_validate({**SETTINGS, **options}), crop_size).train()


@pytest.mark.parametrize("objective", ["fixed", "v1", "paper"])
def test_a_slice_is_a_volume_of_one_voxel_along_z(objective: str) -> None:
    flat = FlatBackbone()
    boxes = torch.rand(2, 1, 18, 12, 1, generator=torch.Generator().manual_seed(0))
    totals, gradients = [], []

    for backbone in (flat, DeepBackbone(flat)):
        method = method_with(backbone, objective=objective)
        assert method.views().size == (18, 12, 1)
        if method.teacher_backbone is not None:  # of shuffled weights, whose order follows their shape
            method.teacher_backbone.load_state_dict(backbone.state_dict())
        views = make_views(method.views(), boxes, Draws(torch.Generator().manual_seed(2)))
        totals.append(method.loss(views, progress=0.0).total)
        gradients.append(torch.autograd.grad(totals[-1], backbone.get_parameter("conv.weight"))[0])

    torch.testing.assert_close(totals[0], totals[1])
    torch.testing.assert_close(gradients[0], gradients[1][..., 0], rtol=1e-4, atol=1e-6)


def test_crops_of_slices_are_2d_images() -> None:
    method = method_with(FlatBackbone())
    boxes = torch.rand(3, 1, 18, 12, 1, generator=torch.Generator().manual_seed(0))

    views = make_views(method.views(), boxes, Draws(torch.Generator().manual_seed(2)))

    assert views.images[0].shape == (3 * 4 + 3 * 6, 1, 6, 6)
    assert method.views().takes_pictures
    assert not method_with(DeepBackbone(FlatBackbone()), (6, 6, 4)).views().takes_pictures


@pytest.mark.parametrize(
    ("crop_size", "options", "said"),
    [
        ((6, 6, 1), {"base_grid": (3, 2, 2)}, "base_grid"),
        ((6, 6, 4), {}, "crop_size"),
        ((6, 6, 1), {"network_size": (4, 4, 2)}, "network_size"),
        ((6, 6, 1), {"omni": {"classes": {1: "a"}}}, "omni"),
    ],
)
def test_what_slices_do_not_have_is_refused(
    crop_size: tuple[int, int, int], options: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match="E_RECIPE") as refusal:
        method_with(FlatBackbone(), crop_size, **options)

    assert said in refusal.value.message
