"""Views of 2D images against slow and literal ones."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.slice_views import Drawn, SliceAugmentation, apply, canvas_for, draw, resampling
from medssl_cli.data.views import SliceRequest, Slices, ViewRequest, make_views


def drawn(number: int = 1, **changes: object) -> Drawn:
    """The whole canvas as it is, unless something else is asked for."""
    plain = {
        "centre": torch.full((number, 2), 0.5),
        "extent": torch.ones(number, 2),
        "flip": torch.ones(number, 2),
        "contrast": torch.ones(number),
        "brightness": torch.zeros(number),
        "gamma": torch.ones(number),
        "blur": torch.zeros(number),
    }
    return Drawn(**{**plain, **changes})  # type: ignore[arg-type]


def images(number: int = 2, slices: int = 3, size: int = 16) -> Tensor:
    return torch.rand(number, slices, 1, size, size, generator=torch.Generator().manual_seed(0))


def test_the_whole_canvas_at_its_own_size_is_the_canvas() -> None:
    canvas = images()

    torch.testing.assert_close(apply(canvas, drawn(2), 16), canvas)


def test_flips_are_flips_and_all_slices_are_changed_alike() -> None:
    canvas = images()
    flip = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])

    views = apply(canvas, drawn(2, flip=flip), 16)

    torch.testing.assert_close(views[0], canvas[0].flip(2))
    torch.testing.assert_close(views[1], canvas[1].flip(3))


def test_the_exponent_acts_within_each_channel_over_all_slices() -> None:
    canvas = torch.cat([images(1), 100 * images(1).square()], dim=2)
    squared = drawn(gamma=torch.tensor([2.0]))

    views = apply(canvas, squared, 16)

    for channel, before in zip(views[0].unbind(dim=1), canvas[0].unbind(dim=1), strict=True):
        low, span = before.min(), before.max() - before.min()
        torch.testing.assert_close(channel, (before - low) ** 2 / span + low)


def test_a_crop_is_the_part_that_it_names() -> None:
    canvas = images(1)
    quarter = drawn(centre=torch.tensor([[0.25, 0.75]]), extent=torch.tensor([[0.5, 0.5]]))

    torch.testing.assert_close(apply(canvas, quarter, 8), canvas[..., :8, 8:])


def test_enlarging_is_linear_between_pixel_centres() -> None:
    rng = np.random.default_rng(1)
    line = rng.random(10)
    matrix = resampling(drawn(centre=torch.tensor([[0.45, 0.5]]), extent=torch.tensor([[0.6, 1.0]])), 10, 15)[0, 0]

    found = matrix.numpy() @ line

    places = (0.45 + 0.6 * ((np.arange(15) + 0.5) / 15 - 0.5)) * 10 - 0.5
    np.testing.assert_allclose(found, np.interp(places, np.arange(10), line), atol=1e-6)


def test_reducing_does_not_alias() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(16)
    matrix = resampling(drawn(), 32, 8)[0, 0]

    assert (matrix @ stripes)[1:-1].numpy() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("blur", [0.0, 0.7, 5.0])
def test_rows_sum_to_one_so_that_flat_images_stay_flat(blur: float) -> None:
    options = SliceAugmentation()
    parameters = draw(50, (0.05, 1.0), options, torch.Generator().manual_seed(1))
    blurred = Drawn(**{**vars(parameters), "blur": torch.full((50,), blur)})

    for matrix in resampling(blurred, 40, 24):
        torch.testing.assert_close(matrix.sum(2), torch.ones(50, 24))
        assert (matrix >= 0).all()


def test_a_blur_is_a_gaussian() -> None:
    point = torch.zeros(1, 1, 1, 65, 65)
    point[..., 32, 32] = 1
    sigma = 3.0

    view = apply(point, drawn(blur=torch.tensor([sigma * 224 / 65])), 65)[0, 0, 0]

    gaps = torch.arange(65) - 32.0
    line = torch.exp(-0.5 * (gaps / sigma) ** 2)
    expected = line[:, None] * line / line.sum() ** 2
    torch.testing.assert_close(view, expected, rtol=1e-3, atol=1e-6)


def test_intensities_change_in_order() -> None:
    canvas = images(1)
    view = apply(canvas, drawn(gamma=torch.tensor([2.0]), contrast=torch.tensor([0.5]),
                               brightness=torch.tensor([3.0])), 16)  # fmt: skip
    low, high = canvas.min(), canvas.max()

    expected = (((canvas - low) / (high - low)) ** 2 * (high - low) + low) * 0.5 + 3

    torch.testing.assert_close(view, expected)


def test_crops_cover_the_shares_of_the_area_that_were_asked_for() -> None:
    parameters = draw(5000, (0.2, 0.6), SliceAugmentation(), torch.Generator().manual_seed(2))

    area = parameters.extent.prod(dim=1)
    ratio = parameters.extent[:, 0] / parameters.extent[:, 1]
    assert 0.15 < area.min() < 0.22  # a crop that would be longer than the canvas loses area
    assert 0.58 < area.max() <= 0.6 + 1e-6
    assert 3 / 4 - 1e-3 < ratio.min() < ratio.max() < 4 / 3 + 1e-3
    assert ((parameters.centre - parameters.extent / 2) > -1e-6).all()
    assert ((parameters.centre + parameters.extent / 2) < 1 + 1e-6).all()


def views_of(canvas: Tensor, options: SliceAugmentation, shard: tuple[int, int] = (0, 1)) -> tuple[Tensor, ...]:
    """Views of single images, large ones of 12 pixels."""
    request = ViewRequest((12, 12, 1), slices=SliceRequest(16, options.crops(12), options))
    is_present = torch.ones(len(canvas), 1, dtype=torch.bool)
    known = Slices(torch.arange(len(canvas)), is_present, torch.zeros(len(canvas), 1), are_volumes=False)
    return make_views(request, canvas, Draws(torch.Generator().manual_seed(5), *shard), slices=known).images


def test_processes_draw_what_one_draws() -> None:
    canvas, options = images(6, slices=1), SliceAugmentation(num_local=2)

    whole = views_of(canvas, options)
    parts = [views_of(canvas[2 * rank : 2 * rank + 2], options, (rank, 3)) for rank in range(3)]

    assert [tuple(group.shape) for group in whole] == [(12, 1, 12, 12), (12, 1, 8, 8)]
    for number, group in enumerate(whole):
        views = [part[number].unflatten(0, (2, 2)) for part in parts]
        torch.testing.assert_close(torch.cat(views, dim=1).flatten(0, 1), group)


def test_views_of_one_size_stay_together() -> None:
    canvas = images(3, slices=1)

    [group] = views_of(canvas, SliceAugmentation(num_local=2, local_size=12))

    assert group.shape == (12, 1, 12, 12)
    [only] = views_of(canvas, SliceAugmentation(num_local=0))
    torch.testing.assert_close(only, group[:6])


def test_a_canvas_is_a_little_larger_than_a_view() -> None:
    assert canvas_for(224) == math.ceil(224 * 1.15)
    assert SliceAugmentation().small(224) == 96
