"""VoCo's question of every voxel: whether targets are true, and what is lost without looking."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.views import make_views
from medssl_cli.methods import CropChanges, voco
from medssl_cli.methods.voco.dense import DenseQuestion, overlap_shares, place_within_crop_loss
from medssl_cli.methods.voco.options import DenseOptions
from medssl_cli.methods.voco.overlap import overlap_fractions
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named

GRID = (3, 2, 2)


def backbone(spatial_dims: int = 3) -> Backbone:
    torch.manual_seed(0)
    shape = {"channels": [4, 6], "strides": [1, 2], "num_res_units": 0}
    return build_backbone(Named(name="unet", spatial_dims=spatial_dims, **shape), in_channels=1)


def method_with(crop_size: tuple[int, int, int] = (4, 4, 6), **options: object) -> voco.Method:
    own = {"projector_dim": 8, "num_random_crops": 4, "base_grid": GRID, "dense": {}, **options}
    return voco.Method(backbone(2 if crop_size[2] == 1 else 3), voco.Options.model_validate(own), crop_size).train()


@pytest.mark.parametrize(
    ("crop_size", "options"),
    [
        ((4, 4, 6), {"flip_prob": 0.5, "rot90_prob": 0.5}),
        ((6, 4, 4), {"flip_prob": 0.5, "rot90_prob": 0.5}),  # never turned
        ((4, 4, 1), {"flip_prob": 0.5, "rot90_prob": 0.5, "base_grid": (3, 2, 1)}),
        ((6, 6, 6), {"network_size": (4, 4, 4), "resize": "crops", "flip_prob": 0.5}),
    ],
)
def test_places_move_with_the_voxels(crop_size: tuple[int, int, int], options: dict[str, object]) -> None:
    """Boxes that show where each of their voxels lies: what a crop shows is what it is told."""
    method = method_with(crop_size, **options)
    request = method.views()
    assert request.crops is not None
    crops = replace(request.crops, changes=replace(request.crops.changes, shift_prob=0.0))
    axes = [(2 * torch.arange(extent) + 1) / extent - 1 for extent in request.size]
    boxes = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(2, 3, *request.size)

    views = make_views(replace(request, crops=crops), boxes, Draws(torch.Generator().manual_seed(1)))

    assert views.box_places is not None
    torch.testing.assert_close(views.box_places, views.images[0][: 2 * 4], atol=1e-5, rtol=0)


def test_the_decoder_is_kept_only_if_it_is_asked_for() -> None:
    assert method_with().kept() == method_with(dense=None).kept() == {}
    method = method_with(dense={"keep_decoder": True})
    assert method.dense is not None
    assert method.kept() == {"decoder": method.dense.decoder}


def test_nothing_is_told_where_nothing_is_asked() -> None:
    method = method_with(dense=None)
    boxes = torch.zeros(2, 1, *method.views().size)

    views = make_views(method.views(), boxes, Draws(torch.Generator().manual_seed(1)))

    assert views.box_places is None
    assert set(method.loss(views, 0.0).parts) == {"prediction", "inter", "regulariser"}


def test_the_other_terms_stay_what_they_are() -> None:
    boxes = torch.rand(2, 1, 12, 8, 12, generator=torch.Generator().manual_seed(2))
    parts = []
    for dense in (None, {}):
        torch.manual_seed(3)
        method = method_with(dense=dense)
        views = make_views(method.views(), boxes, Draws(torch.Generator().manual_seed(1)))
        parts.append(method.loss(views, 0.0).parts)

    for name in ("prediction", "inter", "regulariser"):
        assert torch.equal(parts[0][name], parts[1][name])
    assert "dense" in parts[1]


@pytest.mark.parametrize("grid", [(3, 2, 2), (3, 3)])
def test_shares_of_a_voxel_are_the_overlaps_of_the_crop_about_it(grid: tuple[int, ...]) -> None:
    size = 8
    offsets = torch.stack([torch.randint((cells - 1) * size + 1, (50,)) for cells in grid], dim=1)
    places = 2 * (offsets + size / 2) / (torch.tensor(grid) * size) - 1
    full_grid, full = (*grid, 1)[:3], torch.cat([offsets, torch.zeros(50, 1).long()], dim=1)[:, :3]

    found = overlap_shares(places.view(50, len(grid), 1), grid)[..., 0]

    sizes = (size, size, size if len(grid) == 3 else 1)
    torch.testing.assert_close(found.double(), overlap_fractions(full, full_grid, sizes), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(50))


def test_a_voxel_at_the_border_belongs_to_the_cell_there() -> None:
    corner = torch.tensor([-1.0, 1.0]).view(1, 2, 1)

    assert overlap_shares(corner, (3, 2))[0, :, 0].tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("target", ["coordinates", "overlap"])
def test_the_right_answer_costs_nothing(target: str) -> None:
    network = backbone()
    question = DenseQuestion(network, DenseOptions.model_validate({"target": target}), GRID)
    places = torch.rand(5, 3, 4, 4, 4) * 2 - 1
    right = places if target == "coordinates" else overlap_shares(places, GRID).clamp(min=1e-30).log()
    question.decoder.forward = lambda maps: right  # type: ignore[method-assign]

    assert question.loss([places], places).item() == pytest.approx(0, abs=1e-5)


def test_without_looking_coordinates_cost_what_the_starts_vary() -> None:
    """Two cells along x and one along y: x - its middle is uniform on [-0.5, 0.5], y is known.

    Its smooth distance is 2 (0.1^3 / 0.6 + (0.25 - 0.01) / 2 - 0.05 * 0.4) = 0.2033, half of it the mean, five times.
    """
    found = place_within_crop_loss(DenseOptions(), (101, 1, 1), (2, 1, 1), (100, 100, 1))

    assert found == pytest.approx(5 * 0.20333 / 2, rel=0.05)
    assert place_within_crop_loss(DenseOptions(weight=3.0), (101, 1, 1), (2, 1, 1), (100, 100, 1)) == pytest.approx(
        3 * found
    )


def test_without_looking_shares_cost_less_than_a_flat_guess() -> None:
    """Two cells: shares (1 - u, u) with u uniform on [0, 1] at the middle; the flat guess costs ln 2 - 1/2."""
    found = place_within_crop_loss(DenseOptions(target="overlap"), (101, 1, 1), (2, 1, 1), (100, 100, 1))

    assert 0.05 < found < math.log(2) - 0.5 + 0.05
    assert place_within_crop_loss(DenseOptions(target="overlap"), (1, 1, 1), (2, 1, 1), (100, 100, 1)) < 1e-6


def test_baselines_count_the_dense_term_too() -> None:
    with_it, without = method_with().baselines(), method_with(dense=None).baselines()

    extra = {name: with_it[name] - without[name] for name in without}
    assert len({round(value, 6) for value in extra.values()}) == 1
    assert min(extra.values()) > 0


def test_a_dense_term_without_its_loss_is_refused() -> None:
    with pytest.raises(ValidationError, match="self_weight"):
        voco.Options.model_validate({"dense": {}, "omni": {"classes": {1: "a"}, "self_weight": 0}})


def test_changes_of_the_first_crops_are_theirs() -> None:
    from medssl_cli.data.augmentation import Changes, draw_crop_changes

    drawn = draw_crop_changes(6, CropChanges(0.5, 0.5, 0.5, 0.1), torch.Generator().manual_seed(0))

    some = drawn.first(2)

    assert drawn.is_flipped is not None
    assert some.is_flipped is not None
    assert torch.equal(some.is_flipped, drawn.is_flipped[:2])
    assert some.shift is None
    assert Changes().first(2) == Changes()
