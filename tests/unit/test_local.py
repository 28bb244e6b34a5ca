"""Contrast of points: derived numbers, points that two views share, what is no candidate, values of ignorance."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.placed_views import draw_affines, features_at
from medssl_cli.data.views import make_views
from medssl_cli.methods import (
    PairAugmentation,
    PlacedCrops,
    PlacedWindows,
    TrainingSet,
    ViewPlaces,
    ViewRequest,
    Views,
)
from medssl_cli.methods.local import Method, Options, error_mm, near, point_contrast, point_scores, shared_points
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.contrast import unit, view_contrast
from tests.placed_windows import windows_of
from tests.two_processes import WORLD, results_of_each

CASES: dict[str, dict[str, Any]] = {
    "pairs": {"hidden_dim": 8, "projection_dim": 4},
    "one way": {"hidden_dim": 8, "projection_dim": 4, "both_ways": False, "near_mm": 20.0},
    "vox2vec": {"variant": "vox2vec", "hidden_dim": 8, "projection_dim": 4, "num_points": 40},
}
SIZES = {2: (16, 16, 1), 3: (16, 16, 8)}
each_case = pytest.mark.parametrize("name", CASES)
each_dims = pytest.mark.parametrize("dims", [2, 3])


def counted(*shape: int) -> Tensor:
    """0, 1, 2 ... in float64."""
    return torch.arange(math.prod(shape), dtype=torch.float64).view(shape)


def grid_of_points() -> tuple[Tensor, Tensor, Tensor]:
    """Six points, 10 mm apart, of which the last is in one view only: projections in both, and distances."""
    places = torch.tensor([[10.0 * (p // 3), 10.0 * (p % 3)] for p in range(6)], dtype=torch.float64)
    first, second = unit(counted(1, 6, 4).sin()), unit((1.5 * counted(1, 6, 4)).cos())
    return first, second, torch.cdist(places, places)[None]


IS_SHARED = torch.tensor([[True] * 5 + [False]])


def test_contrast_of_points_has_the_derived_values() -> None:
    first, second, apart = grid_of_points()

    found = point_contrast(point_scores(first, second, 0.1), IS_SHARED, apart <= 12)
    equal = point_contrast(torch.zeros(1, 6, 6), IS_SHARED, apart <= 12)

    assert found.loss.item() == pytest.approx(3.09296481, abs=6e-9)
    assert equal.loss.item() == pytest.approx(1.07505568, abs=6e-8)
    assert equal.no_information.item() == pytest.approx(1.07505568, abs=6e-8)


def test_contrast_of_points_is_its_equation_point_by_point() -> None:
    first, second, apart = grid_of_points()
    losses = []
    for p in range(5):
        scores = {q: float(first[0, p] @ second[0, q]) / 0.1 for q in range(6)}
        candidates = [q for q in range(5) if q == p or apart[0, p, q] > 12]
        losses.append(math.log(sum(math.exp(scores[q]) for q in candidates)) - scores[p])

    found = point_contrast(point_scores(first, second, 0.1), IS_SHARED, apart <= 12)

    assert found.loss.item() == pytest.approx(sum(losses) / 5, rel=1e-11)


def test_swapping_the_views_swaps_the_ways() -> None:
    first, second, apart = grid_of_points()
    there, back = (point_scores(*pair, 0.1) for pair in ((first, second), (second, first)))

    one, other = (point_contrast(scores, IS_SHARED, apart <= 12).loss for scores in (there, back))
    both = point_contrast(there, IS_SHARED, apart <= 12, both_ways=True).loss

    assert one != other
    torch.testing.assert_close(both, (one + other) / 2)
    torch.testing.assert_close(both, point_contrast(back, IS_SHARED, apart <= 12, both_ways=True).loss)


def test_near_points_and_points_of_one_view_get_no_gradient() -> None:
    first, second, apart = grid_of_points()
    scores = point_scores(first, second, 0.1).requires_grad_()

    point_contrast(scores, IS_SHARED, apart <= 12).loss.backward()

    assert scores.grad is not None
    is_used = (apart > 12) | torch.eye(6, dtype=torch.bool)
    is_used &= IS_SHARED[:, None] & IS_SHARED[..., None]
    assert (scores.grad[~is_used] == 0).all()
    assert (scores.grad[is_used] != 0).all()


def test_without_shared_points_there_is_no_loss() -> None:
    scores = torch.ones(2, 4, 4, requires_grad=True)
    nothing = torch.zeros(2, 4, dtype=torch.bool)

    found = point_contrast(scores, nothing, torch.zeros(2, 4, 4, dtype=torch.bool))
    found.loss.backward()

    assert found.loss.item() == 0
    assert scores.grad is not None
    assert (scores.grad == 0).all()
    assert error_mm(scores, nothing, torch.zeros(2, 4, 4, dtype=torch.bool), torch.ones(2, 4, 4)).item() == 0


def test_errors_are_distances_to_what_is_found() -> None:
    _, _, apart = grid_of_points()
    nothing_near = torch.zeros(1, 6, 6, dtype=torch.bool)

    right = error_mm(torch.eye(6)[None], IS_SHARED, nothing_near, apart)
    wrong = error_mm(torch.eye(6).roll(1, 1)[None], IS_SHARED, nothing_near, apart)  # 1 for 0, 2 for 1, 3 for 2 ...

    assert right.item() == 0
    assert wrong.item() == pytest.approx(10)


@each_dims
@pytest.mark.parametrize("flip_prob", [0.0, 0.5])
def test_shared_points_are_the_same_places_of_the_body(dims: int, flip_prob: float) -> None:
    """Of an image that shows how far each voxel lies along an axis, both views show how far a point lies."""
    plain = {"gamma_range": (1.0, 1.0), "contrast": 0.0, "brightness": 0.0, "noise_std": 0.0}
    crops = PlacedCrops(2, SIZES[dims], PairAugmentation(flip_prob=flip_prob, **plain))  # type: ignore[arg-type]
    windows = windows_of(crops, 3, affine=np.diag([1.5, 1.5, 2.0, 1.0]))
    indices = torch.cartesian_prod(*(torch.arange(extent) for extent in crops.window)).double()
    homogeneous = torch.cat([indices, torch.ones(len(indices), 1)], dim=1)
    limits = 1 - 1 / torch.tensor(crops.size[:dims])  # beyond the centres of the outermost voxels nothing is known
    for axis in range(dims):
        images = torch.stack([(homogeneous @ affine.T)[:, axis].view(crops.window) for affine in windows.affines])
        draws = Draws(torch.Generator().manual_seed(axis))
        views = make_views(ViewRequest(crops.size, placed=crops), images[:, None], draws, windows=windows)
        assert views.places is not None

        points = shared_points(views.places, 60, views.draws)

        expected = views.places.of_view(0).to_world(points.first)[..., axis]
        for images_of_view, places in zip(views.images[0].chunk(2), (points.first, points.second), strict=True):
            is_known = points.is_shared & (places[..., :dims].abs() <= limits).all(dim=2)
            assert is_known.double().mean() > 0.2
            found = features_at(images_of_view, places)[..., 0]
            torch.testing.assert_close(found[is_known], expected[is_known], atol=1e-4, rtol=0)


def places_of(crops: PlacedCrops, batch: int = 3, seed: int = 0) -> ViewPlaces:
    """Where the views of a step lie."""
    windows = windows_of(crops, batch)
    affines = draw_affines(windows, crops, Draws(torch.Generator().manual_seed(seed)))
    return ViewPlaces(affines, crops.size, windows, torch.ones(len(affines), 1, dtype=torch.bool))


def test_points_are_shared_where_both_views_and_the_image_show_them() -> None:
    crops = PlacedCrops(2, SIZES[2], PairAugmentation(apart=0.3))
    places = places_of(crops)

    points = shared_points(places, 200, Draws(torch.Generator().manual_seed(1)))

    world = places.of_view(0).to_world(points.first)
    torch.testing.assert_close(places.of_view(1).to_world(points.second), world)
    assert (points.first[..., 2] == 0).all()
    assert (points.first.abs() <= 0.9).all()
    expected = (points.second[..., :2].abs() <= 0.95).all(dim=2) & places.of_view(0).in_field(world)
    assert torch.equal(points.is_shared, expected)
    assert 0 < points.is_shared.double().mean() < 1
    torch.testing.assert_close(points.apart_mm[0, 3, 7], (world[0, 3] - world[0, 7]).norm())


def test_images_whose_views_hardly_overlap_take_no_part() -> None:
    crops = PlacedCrops(2, SIZES[2], PairAugmentation(apart=1.0, zoom=(1.0, 1.0)))
    places = places_of(crops, batch=12)

    points = shared_points(places, 100, Draws(torch.Generator().manual_seed(1)))

    shares = points.is_shared.double().mean(dim=1)
    assert (shares == 0).any()
    assert ((shares == 0) | (shares >= 0.25)).all()


def test_points_are_near_within_three_voxels_or_a_given_distance() -> None:
    crops = PlacedCrops(2, SIZES[2], PairAugmentation())
    places = places_of(crops)  # voxels of 1.5 x 1.5 x 4 mm
    points = shared_points(places, 30, Draws(torch.Generator().manual_seed(1)))

    assert torch.equal(near(points, places.windows, None), points.apart_mm <= 4.5)
    assert torch.equal(near(points, places.windows, 7.0), points.apart_mm <= 7)


class TwoLevels(Backbone):
    """A convolution at full and one at half resolution."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__(channels=(5, 6), strides=(1, 2), embedding_levels=(1,), spatial_dims=spatial_dims)
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.fine = conv(1, 5, 3, padding=1)
        self.coarse = conv(5, 6, 2, stride=2)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        fine = self.fine(images).tanh()
        return [fine, self.coarse(fine).tanh()]


BATCH = 4


def build(name: str, dims: int) -> Method:
    torch.manual_seed(0)
    return Method(TwoLevels(dims), Options(**CASES[name]), SIZES[dims]).double().train()


def views_of(method: Method, seed: int = 0, shard: int = 0, num_shards: int = 1) -> Views:
    """A step with this shard's images."""
    crops = method.views().placed
    assert crops is not None
    images = torch.randn(BATCH, 1, *crops.window, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    windows = windows_of(crops, BATCH)
    rows = torch.arange(BATCH).chunk(num_shards)[shard]
    own = PlacedWindows(*(getattr(windows, field.name)[rows] for field in fields(windows)))
    draws = Draws(torch.Generator().manual_seed(seed), shard, num_shards)
    return make_views(method.views(), images[rows], draws, windows=own)


@each_case
@each_dims
def test_every_parameter_learns(name: str, dims: int) -> None:
    method = build(name, dims)

    losses = method.loss(views_of(method), 0.0)
    losses.total.backward()

    assert all(parameter.grad is not None for parameter in method.parameters())
    assert all(
        parameter.grad.abs().sum() > 0 for parameter in method.backbone.parameters() if parameter.grad is not None
    )
    assert 0 <= losses.diagnostics["accuracy"] <= 1
    assert 0.25 < losses.diagnostics["shared"] <= 1


@each_case
def test_equal_projections_cost_the_baseline(name: str) -> None:
    method = build(name, 2)
    with torch.no_grad():
        for part in method.projector.modules():
            if isinstance(part, nn.Linear):
                part.weight.zero_()
    views = views_of(method)
    crops = method.views().placed
    assert crops is not None
    method.require_batch(BATCH)
    method.begin(TrainingSet(torch.zeros(0).long(), torch.zeros(0).long(), 10, windows=windows_of(crops, 256)))

    losses = method.loss(views, 0.0)

    assert losses.total.item() == pytest.approx(losses.diagnostics["no_information"].item(), rel=1e-6)
    assert method.baselines()["no_information"] == pytest.approx(losses.total.item(), rel=0.1)


def test_a_method_that_does_not_know_where_views_lie_has_no_baseline() -> None:
    assert build("pairs", 2).baselines() == {}


def test_the_decoder_is_kept_on_request() -> None:
    assert build("pairs", 2).kept() == {}
    kept = Method(TwoLevels(2), Options(keep_decoder=True), SIZES[2])
    assert kept.kept() == {"decoder": kept.decoder}


def test_points_that_are_not_there_neither_look_nor_are_looked_for() -> None:
    first, second = counted(5, 4).sin(), counted(5, 4).cos()
    is_present = torch.tensor([True, True, False, True, False])

    found = view_contrast(first, second, temperature=0.2, is_present=is_present)

    expected = view_contrast(first[is_present], second[is_present], temperature=0.2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def step(name: str, shard: int, num_shards: int) -> list[Tensor]:
    """Loss and gradients of this shard's images."""
    method = build(name, 2)
    total = method.loss(views_of(method, 0, shard, num_shards), 0.5).total
    total.backward()
    return [total.detach(), *(each.grad.clone() for each in method.parameters() if each.grad is not None)]


def compute(rank: int) -> dict[str, list[Tensor]]:
    return {name: step(name, rank, WORLD) for name in CASES}


def test_two_processes_are_one(tmp_path: Path) -> None:
    both = results_of_each(tmp_path, compute)

    for name in CASES:
        for one, other, whole in zip(*(results[name] for results in both), step(name, 0, 1), strict=True):
            torch.testing.assert_close((one + other) / 2, whole, rtol=1e-5, atol=1e-7)
