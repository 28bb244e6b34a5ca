"""The released augmentation of volumes: one change for each view, never the same for both."""

import torch
from torch import Tensor

from medssl_cli.data.augmentation import Changes, Draws
from medssl_cli.data.slice_views import PictureCrops, SliceAugmentation, canvas_for
from medssl_cli.data.views import SliceRequest, Slices, StackRequest, ViewRequest, Views, make_views
from medssl_cli.data.volume_changes import KINDS, draw_one_of_seven

SIZE = torch.Size((8, 1, 6, 6, 5))
BATCH = 4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def happens(changes: Changes) -> Tensor:
    """Which of the seven happen to each view, bool [N, 7]; a flip that is drawn may not be done."""
    assert changes.is_flipped is not None
    number = len(changes.is_flipped)
    is_moved = torch.zeros(number, dtype=torch.bool)
    if changes.moved is not None:
        is_moved[changes.moved] = True
    assert changes.coarse is not None
    assert changes.noise is not None
    assert changes.blur is not None
    assert changes.bias is not None
    assert changes.gamma is not None
    return torch.stack(
        [
            changes.is_flipped.any(dim=1),
            is_moved,
            (changes.coarse > 1).any(dim=1),
            changes.noise.flatten(1).any(dim=1),
            changes.blur.any(dim=1),
            changes.bias.any(dim=1),
            changes.gamma != 1,
        ],
        dim=1,
    )


def test_every_view_has_one_change_and_the_views_of_a_volume_have_different_ones() -> None:
    seen = torch.zeros(len(KINDS), dtype=torch.long)
    for seed in range(50):
        found = happens(draw_one_of_seven(SIZE, 2, Draws(generator(seed))))

        assert (found.sum(dim=1) <= 1).all()
        assert (found.sum(dim=1) + ~found.any(dim=1) == 1).all()  # without one, a flip that was not done
        assert not (found[:BATCH] & found[BATCH:]).any()
        seen += found.sum(dim=0)

    assert (seen > 20).all()  # of 400 views; half of the flips are not done


def test_flips_are_along_the_slices_and_one_axis_loses_voxels() -> None:
    for seed in range(20):
        changes = draw_one_of_seven(SIZE, 2, Draws(generator(seed)))

        assert changes.is_flipped is not None
        assert not changes.is_flipped[:, :2].any()
        assert changes.coarse is not None
        assert ((changes.coarse > 1).sum(dim=1) <= 1).all()
        assert changes.coarse.max() <= 5


def whole_views(images: Tensor, is_present: Tensor, draws: Draws) -> Views:
    stacks = StackRequest(len(images), images.shape[1], 1, PictureCrops(2, (1.0, 1.0), 8), are_whole=True)
    request = SliceRequest(canvas_for(8), (), SliceAugmentation(), stacks=stacks)
    positions = 2.0 * torch.arange(images.shape[1]).repeat(len(images), 1)
    known = Slices(torch.arange(len(images)), is_present, positions, are_volumes=True)
    return make_views(ViewRequest((8, 8, 1), slices=request), images, draws, slices=known)


def test_a_flipped_stack_has_its_padding_and_its_positions_at_the_other_end() -> None:
    images = torch.randn(BATCH, 5, 1, canvas_for(8), canvas_for(8), generator=generator(0))
    is_present = (torch.arange(5) < 3).repeat(BATCH, 1)
    num_turned = 0

    for seed in range(10):
        views = whole_views(images, is_present, Draws(generator(seed)))

        assert views.images[0].shape == (2 * BATCH, 5, 1, 8, 8)
        assert views.slices is not None
        is_turned = ~views.slices.is_present[:, 0]
        num_turned += int(is_turned.sum())
        assert views.slices.is_present[is_turned].tolist() == [[False, False, True, True, True]] * int(is_turned.sum())
        assert (views.slices.positions_mm[is_turned, 0] == 8.0).all()
        assert (views.slices.positions_mm[~is_turned, 0] == 0.0).all()

    assert num_turned


def test_processes_change_volumes_as_one_does() -> None:
    images = torch.randn(4, 5, 1, canvas_for(8), canvas_for(8), generator=generator(0))
    present = torch.ones(4, 5, dtype=torch.bool)

    [whole] = whole_views(images, present, Draws(generator(3))).images
    parts = [
        whole_views(images[2 * rank : 2 * rank + 2], present[:2], Draws(generator(3), rank, 2)).images[0]
        for rank in range(2)
    ]

    together = torch.cat([part.unflatten(0, (2, 2)) for part in parts], dim=1).flatten(0, 1)
    torch.testing.assert_close(together, whole)
