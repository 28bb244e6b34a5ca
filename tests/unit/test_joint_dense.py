"""Terms of every pixel in joint learning: whether places and matches are true, and what ignorance costs."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.placed_views import features_at
from medssl_cli.data.slice_views import Drawn, PictureCrops, SliceAugmentation, drawn_views
from medssl_cli.data.views import make_views
from medssl_cli.methods import Slices, TrainingSet, Views, joint
from medssl_cli.methods.joint.dense import (
    CanvasPoints,
    DenseTerms,
    agreement,
    candidates_of,
    canvas_targets,
    shared_points,
    trivial_terms,
    with_depth,
)
from medssl_cli.nn.build import build_backbone
from medssl_cli.recipe import Named

PLAIN = SliceAugmentation(intensity_prob=0, blur_prob=0, num_local=2)
SMALL = {
    "hidden_dim": 8,
    "projection_dim": 6,
    "views": {"num_local": 2, "flip_prob": 0},
    "swapped": {"images": {"num_prototypes": 4}, "volumes": {"num_prototypes": 4}},
    "relation": {"embedding_dim": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.0},
}


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def canvas(number: int = 3, size: int = 40) -> Tensor:
    """Images [B, 1, 2, X, Y] whose two channels are the place of each pixel, -1 to 1."""
    spread = (2 * torch.arange(size) + 1) / size - 1
    return torch.stack(torch.meshgrid(spread, spread, indexing="ij")).expand(number, 1, 2, size, size)


def views_of(law: SliceAugmentation = PLAIN, scale: tuple[float, float] = (0.3, 0.8)) -> tuple[Tensor, Drawn]:
    """Two views of 24 pixels of three images that show places."""
    views, drawn = drawn_views(canvas(), PictureCrops(2, scale, 24), law, draws())
    return views[:, 0], drawn


def test_pixels_are_told_what_they_show() -> None:
    """A view of places is its own target, but for half a pixel of the canvas at its border."""
    views, drawn = views_of()

    true, counts = canvas_targets(drawn, torch.tensor([-0.5, math.nan, 1.0]), 24)

    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(true[:, :2][inner], views[inner], atol=2e-2, rtol=0)
    assert true[:, 2, 0, 0].tolist() == pytest.approx([-0.5, 0, 1, -0.5, 0, 1])
    assert counts[:, 2].flatten(1).all(dim=1).tolist() == [True, False, True] * 2
    assert counts[:, :2].all()


def test_the_way_back_from_the_canvas_is_the_way_back() -> None:
    _, drawn = views_of()
    places = 2 * torch.rand(6, 10, 2, generator=torch.Generator().manual_seed(1)) - 1

    torch.testing.assert_close(drawn.in_view(drawn.on_canvas(places)), places, atol=1e-5, rtol=1e-5)


def test_shared_points_are_seen_in_both_views() -> None:
    views, drawn = views_of()
    first, second = drawn.rows(torch.arange(3)), drawn.rows(torch.arange(3, 6))

    points = shared_points(first, second, 30, draws(1))

    assert points.is_shared.all()
    for own, part in ((first, views[:3]), (second, views[3:])):
        within = own.in_view(points.places)
        assert within.abs().max() <= 1 + 1e-5
        seen = features_at(part, with_depth(within))
        is_inner = (within.abs() < 0.9).all(dim=2)
        torch.testing.assert_close(seen[is_inner], points.places[is_inner], atol=3e-2, rtol=0)


def test_views_apart_share_nothing() -> None:
    _, drawn = views_of()
    left, right = drawn.rows(torch.arange(3)), drawn.rows(torch.arange(3, 6))
    for each, place in ((left, 0.2), (right, 0.8)):
        each.centre[:], each.extent[:] = place, 0.3

    points = shared_points(left, right, 5, draws())
    found = agreement(torch.rand(3, 5, 4), torch.rand(3, 5, 4), points, DenseTerms())

    assert not points.is_shared.any()
    assert [term.item() for term in found] == [0, 0, 0]


def points_at(places: list[list[float]]) -> CanvasPoints:
    return CanvasPoints(torch.tensor([places]), torch.tensor([True]))


def test_equal_features_cost_the_logarithm_of_the_candidates() -> None:
    points = points_at([[-0.9, 0], [-0.88, 0], [0, 0], [0.9, 0.9]])
    same = torch.ones(1, 4, 6)

    loss, _, ignorant = agreement(same, same, points, DenseTerms(near=0.03))

    # The first two are too near to be told apart: three candidates each, four of the others.
    assert ignorant.item() == pytest.approx((2 * math.log(3) + 2 * math.log(4)) / 4)
    assert loss.item() == pytest.approx(ignorant.item(), rel=1e-5)


def test_agreement_is_that_of_its_equation() -> None:
    points = points_at([[-0.9, 0], [-0.88, 0], [0, 0], [0.9, 0.9]])
    first = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    second = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1)).double()

    loss, found, _ = agreement(first, second, points, DenseTerms(near=0.03, temperature=0.2))

    total, hits, is_candidate = 0.0, 0, candidates_of(points.places, 0.03)[0]
    for a, b in ((first[0], second[0]), (second[0], first[0])):
        for p in range(4):
            scores = [float(torch.cosine_similarity(a[p], b[q], dim=0)) / 0.2 for q in range(4)]
            among = {q: scores[q] for q in range(4) if is_candidate[p, q]}
            total += math.log(sum(math.exp(score) for score in among.values())) - scores[p]
            hits += max(among, key=lambda q: among[q]) == p
    assert loss.item() == pytest.approx(total / 8, rel=1e-6)
    assert found.item() == pytest.approx(hits / 8)


def method_with(**options: object) -> joint.Method:
    torch.manual_seed(0)
    backbone = build_backbone(
        Named(name="unet", spatial_dims=2, channels=[4, 6], strides=[1, 2], num_res_units=0, norm="batch")
    )
    method = joint.Method(backbone, joint.Options.model_validate({**SMALL, **options}), (16, 16, 1)).train()
    method.begin(TrainingSet(torch.zeros(4).long(), torch.zeros(2).long(), num_steps=10))
    return method


def image_views(method: joint.Method) -> Views:
    request = method.views().slices
    assert request is not None
    images = torch.rand(4, 1, 1, request.canvas, request.canvas, generator=torch.Generator().manual_seed(2))
    known = Slices(
        torch.arange(4), torch.ones(4, 1).bool(), torch.zeros(4, 1), are_volumes=False, levels=torch.linspace(-1, 1, 4)
    )
    return make_views(method.views(), images, draws(3), slices=known)


def test_the_clusters_stay_what_they_are() -> None:
    parts, gradients = [], []
    for dense in (None, {"num_points": 8}):
        method = method_with(dense=dense)
        losses = method.loss(image_views(method), 0.0)
        parts.append(losses.parts)
        gradients.append(torch.autograd.grad(losses.total, method.image_projector.parameters()))

    assert set(parts[0]) == {"images"}
    assert set(parts[1]) == {"images", "position", "agreement"}
    torch.testing.assert_close(parts[0]["images"], parts[1]["images"])
    for alone, beside in zip(*gradients, strict=True):
        torch.testing.assert_close(alone, beside)


def test_the_decoder_is_kept_beside_what_makes_volumes_if_it_is_asked_for() -> None:
    assert set(method_with().kept()) == set(method_with(dense={}).kept()) == {"slices"}
    method = method_with(dense={"keep_decoder": True})
    assert method.dense is not None
    assert method.kept()["decoder"] is method.dense.decoder


@pytest.mark.parametrize("off", ["position", "agreement"])
def test_a_term_of_no_weight_is_left_out(off: str) -> None:
    method = method_with(dense={off: 0, "num_points": 8})

    losses = method.loss(image_views(method), 0.0)

    assert off not in losses.parts
    assert losses.total.isfinite()


def test_the_baseline_counts_both_terms() -> None:
    options = DenseTerms(num_points=50, near=0.0)

    both = trivial_terms(options, PLAIN, has_levels=True)
    position = trivial_terms(options.model_copy(update={"agreement": 0.0}), PLAIN, has_levels=False)

    assert both - position == pytest.approx(5 * 0.45166667 / 2 + 0.5 * math.log(50), rel=1e-5)
    assert 0 < position < 5 * 0.45
    without, with_it = method_with().baselines(), method_with(dense={}).baselines()
    assert with_it["no_information"] > without["no_information"]


def test_pixels_of_volumes_alone_are_refused() -> None:
    with pytest.raises(ValidationError, match="single images"):
        joint.Options.model_validate({**SMALL, "dense": {}, "stage": "volumes"})
