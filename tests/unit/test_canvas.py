"""Planning a canvas: what it shows, what is padding, and what is proposed for bodies, heads and slabs."""

import math
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.canvas import canvas_warning, plan_canvas
from medssl_cli.imaging.canvas import Canvas, CanvasLimits, Proposal, measure, propose
from medssl_cli.recipe import PretrainRecipe, find_recipe, load_recipe
from tests.toy_cache import toy_cache

VOCO = Canvas((1.5, 1.5, 1.5), (3, 3, 1), (64, 64, 64))  # 288 x 288 x 96 mm
LIMITS = CanvasLimits(crop_multiple=(32, 32, 32), max_crop_voxels=64**3, max_canvas_voxels=9 * 64**3)


def volumes(*extent_mm: float, spread: float = 0.05, count: int = 40) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((count, 3))
    return np.array(extent_mm) * (1 + spread * noise)


def plan_for(extents: np.ndarray, native_mm: tuple[float, float, float], recipe: Canvas = VOCO) -> Proposal:
    return propose(extents, np.tile(native_mm, (len(extents), 1)), recipe, LIMITS)


def test_measure_counts_shares_by_hand() -> None:
    extents = np.array([[10.0, 10, 10], [20.0, 10, 10], [40.0, 10, 10], [5.0, 5, 5]])

    fit = measure(extents, (20.0, 10.0, 5.0))  # volume 1000; shared 500, 1000, 1000, 125

    assert fit.coverage == pytest.approx(np.median([500 / 1000, 1000 / 2000, 1000 / 4000, 1]))
    assert fit.padding == pytest.approx(np.median([1 / 2, 0, 0, 7 / 8]))
    assert fit.padding_p75 == pytest.approx(np.percentile([1 / 2, 0, 0, 7 / 8], 75))
    assert fit.share_padded == pytest.approx(2 / 4)
    assert not fit.is_mostly_padding


def test_a_canvas_knows_its_size() -> None:
    assert VOCO.size == (192, 192, 64)
    assert VOCO.extent_mm == (288, 288, 96)
    assert VOCO.num_bases == 9


def test_a_recipe_that_suits_stays() -> None:
    found = plan_for(volumes(300, 300, 100, spread=0.02), (1.5, 1.5, 1.5))

    assert found.canvas == VOCO
    assert found.fit == found.recipe_fit
    assert found.num_considered > 1000


def test_crops_are_multiples_of_what_the_network_halves_along_each_axis() -> None:
    """A network that halves z twice can take more depths than one that halves all axes five times."""
    limits = CanvasLimits(crop_multiple=(32, 32, 4), max_crop_voxels=64**3, max_canvas_voxels=9 * 64**3)
    extents = volumes(280, 280, 40, spread=0.02)
    native = np.tile((1.5, 1.5, 2.0), (len(extents), 1))

    found, coarse = propose(extents, native, VOCO, limits), propose(extents, native, VOCO, LIMITS)

    x, y, z = found.canvas.crop_size
    assert (x % 32, y % 32, z % 4) == (0, 0, 0)
    assert all(extent % 32 == 0 for extent in coarse.canvas.crop_size)
    assert found.num_considered > coarse.num_considered


@pytest.mark.parametrize(
    ("name", "extents", "native"),
    [
        ("abdomen", volumes(380, 380, 450), (0.75, 0.75, 2.5)),
        ("chest, thick", volumes(350, 350, 300), (0.7, 0.7, 5.0)),
        ("head, MR", volumes(180, 220, 180), (1.0, 1.0, 1.0)),
        ("head, CT", volumes(230, 230, 150), (0.45, 0.45, 5.0)),
        ("slab", volumes(320, 320, 90), (1.4, 1.4, 10.0)),
        ("prostate", volumes(180, 180, 65), (0.6, 0.6, 3.6)),
        ("hippocampus", volumes(35, 50, 35), (1.0, 1.0, 1.0)),
    ],
)
def test_what_is_proposed_shows_most_and_pads_little(
    name: str, extents: np.ndarray, native: tuple[float, float, float]
) -> None:
    found = plan_for(extents, native)
    canvas = found.canvas

    assert found.fit.coverage > 0.5, name
    assert found.fit.padding < 0.1, name
    assert found.fit.padding_p75 < 0.2, name
    assert 6 <= canvas.num_bases <= 16, name
    assert all(voxels % 32 == 0 for voxels in canvas.crop_size), name
    assert max(canvas.crop_size) > 32, name  # one cell along every axis would leave nothing to normalise
    assert math.prod(canvas.size) <= LIMITS.max_canvas_voxels, name
    assert math.prod(canvas.crop_size) <= LIMITS.max_crop_voxels, name


def test_an_axis_with_few_slices_is_not_divided() -> None:
    found = plan_for(volumes(320, 320, 90), (1.4, 1.4, 10.0))  # nine slices

    assert found.canvas.base_grid[2] == 1


def test_small_cubes_may_get_cells_along_z() -> None:
    found = plan_for(volumes(190, 190, 190, spread=0.01), (1.0, 1.0, 1.0))

    assert found.recipe_fit.is_mostly_padding
    assert found.fit.coverage > 0.8
    assert found.fit.padding < 0.1


def test_ten_thousand_volumes_are_planned_like_their_quantiles() -> None:
    many, few = volumes(180, 220, 180, count=10_000), volumes(180, 220, 180, count=128)

    assert plan_for(many, (1, 1, 1)).canvas.base_grid == plan_for(few, (1, 1, 1)).canvas.base_grid


# From a cache and a recipe.


def recipe_with(*overrides: str) -> PretrainRecipe:
    recipe = load_recipe(find_recipe("voco-tiny"), list(overrides))
    assert isinstance(recipe, PretrainRecipe)
    return recipe


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Cubes of 96 mm, MR: a fortieth of the canvas of voco-tiny."""
    return toy_cache(tmp_path_factory.mktemp("canvas") / "cache", num_patients=3, size=48, modality="MR")


def test_the_plan_for_a_cache_is_settings_for_the_recipe(small: Cache) -> None:
    found = plan_canvas(recipe_with(), small, Silence())

    assert found.modalities == {"MR": 3}
    assert found.proposal.extent_mm == (96, 96, 96)
    assert found.proposal.recipe_fit.padding == pytest.approx(1 - 96**3 / (384 * 384 * 128))
    assert not found.warnings
    changed = recipe_with(*found.settings)
    assert changed.data.zscore  # no window in HU for MR
    assert changed.data.window_hu is None
    again = plan_canvas(changed, small, Silence())
    assert again.settings == []
    assert again.proposal.canvas == found.proposal.canvas


def test_the_warning_counts_padding_of_the_median_image(small: Cache) -> None:
    records = small.records()

    warning = canvas_warning(recipe_with().data, (96, 96, 32), records)

    assert warning is not None
    assert warning.startswith("W_CANVAS: 95% of a step's 384 x 384 x 128 mm is padding")
    assert canvas_warning(recipe_with("data.spacing_mm=[1, 1, 1]").data, (96, 96, 32), records) is None
    own = canvas_warning(recipe_with("data.spacing_mm=null").data, (96, 96, 32), records)  # images of 48^3 voxels
    assert own is not None
    assert "96 x 96 x 32 voxels" in own


def test_planning_speaks_of_resized_crops(small: Cache) -> None:
    recipe = recipe_with("data.crop_size=[64, 64, 64]", "method.network_size=[32, 32, 32]", "method.resize=crops")

    found = plan_canvas(recipe, small, Silence())

    assert {"method.network_size=null", "method.resize=null"} <= set(found.settings)
    assert math.prod(found.proposal.canvas.crop_size) <= 32**3
    recipe_with(*found.settings)


def test_where_nothing_fits_the_plan_says_so(small: Cache) -> None:
    recipe = recipe_with("method.network_size=[16, 16, 16]")  # one cell of this backbone: no smaller crop exists

    found = plan_canvas(recipe, small, Silence())

    assert found.proposal.num_considered == 0
    assert found.proposal.canvas == found.proposal.recipe
    assert "95%" in found.warnings[0]


def test_a_cache_of_another_orientation_is_measured_along_the_body(tmp_path: Path, small: Cache) -> None:
    record = small.records()[0]
    turned = record.model_copy(
        update={
            "shape": (10, 20, 40),
            "affine": ((0.0, 0.0, -3.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
        }
    )  # i runs to anterior at 1 mm, j to superior at 2 mm, k to left at 3 mm: 120 x 10 x 40 mm

    wide = canvas_warning(recipe_with("data.spacing_mm=[1, 1, 1]").data, (120, 10, 40), [turned])
    wrong = canvas_warning(recipe_with("data.spacing_mm=[1, 1, 1]").data, (10, 40, 120), [turned])

    assert wide is None
    assert wrong is not None


def test_methods_without_a_grid_are_not_planned(small: Cache) -> None:
    recipe = recipe_with().model_copy(update={"method": type(recipe_with().method)(name="swav")})

    with pytest.raises(UsageError, match="has no grid of base crops") as refused:
        plan_canvas(recipe, small, Silence())

    assert refused.value.hint == "plan voco"


def test_a_network_of_slices_has_no_canvas_to_plan(small: Cache) -> None:
    with pytest.raises(UsageError, match="E_RECIPE: voco needs a backbone of 3 spatial dimensions"):
        plan_canvas(recipe_with("backbone.spatial_dims=2"), small, Silence())
