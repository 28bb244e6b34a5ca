"""Dense position, voxel by voxel in plain Python from the affines, against the loss of the method."""

import numpy as np
import pytest
import torch

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.views import Views, make_views
from medssl_cli.methods import position
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named
from tests.placed_windows import windows_of


def literal_loss(told: np.ndarray, views: Views, *, level: str) -> float:
    """The equations of the method: `told` [N, D, X, Y, Z] (Z 1 for slices)."""
    places = views.places
    assert places is not None
    windows, sums, counts = places.windows, np.zeros(3), np.zeros(3)
    for number in range(len(told)):
        of_image = number % len(windows)
        for index in np.ndindex(*places.size):
            world = places.affines[number].numpy() @ np.array([*index, 1.0])
            q = (windows.boxes[of_image].numpy() @ world)[:3]
            inside = all(-1 - 1e-4 <= f <= 1 + 1e-4 for f in (windows.fields[of_image].numpy() @ world)[:3])
            whole = True
            if places.size[2] == 1:
                k, count = int(windows.slice_numbers[of_image]), int(windows.num_slices[of_image])
                q[2] = 2 * k / (count - 1) - 1 if level == "whole" else 0
                whole = level == "whole" and count >= 5
            for axis in range(3):
                if not inside or (axis == 2 and not whole):
                    continue
                d = abs(told[(number, axis, *index)] - q[axis])
                sums[axis] += d * d / 0.2 if d < 0.1 else d - 0.05
                counts[axis] += 1
    x, y, z = sums / np.maximum(counts, 1)
    return 5 * ((x + y) / 2 + z / 2) if places.size[2] == 1 else 5 * (x + y + z) / 3


@pytest.mark.parametrize("level", ["whole", "partial"])
@pytest.mark.parametrize("crop_size", [(8, 12, 1), (4, 8, 6)])
def test_the_loss_is_that_of_its_equations(crop_size: tuple[int, int, int], level: str) -> None:
    torch.manual_seed(0)
    spatial_dims = 2 if crop_size[2] == 1 else 3
    backbone = build_backbone(
        Named(name="unet", spatial_dims=spatial_dims, channels=[4, 6], strides=[1, 2], norm="batch")
    )
    options = position.Options.model_validate({"level": level, "views": {"rotate_degrees": 40, "zoom": [0.5, 0.6]}})
    method = position.Method(backbone, options, crop_size).eval()
    crops = method.views().placed
    assert crops is not None
    windows = windows_of(crops, 3, margin=-4, affine=np.diag([1.5, 1.5, 1.5, 1.0]))  # images end within the windows
    images = torch.rand(3, 1, *crops.window)

    views = make_views(method.views(), images, Draws(torch.Generator().manual_seed(0)), windows=windows)
    losses = method.loss(views, progress=0.0)

    with torch.no_grad():
        told = method.decoder(backbone(views.images[0])).reshape(3, 3, *crop_size).numpy()
    assert views.places is not None
    assert not views.places.is_shown.all()
    assert losses.total.item() == pytest.approx(literal_loss(told, views, level=level), rel=1e-4)
