"""What is asked of every pixel of single images, beside the clusters of whole ones: where it lies, and what matches it.

A decoder on the trunk answers; the clusters stay as they are. Ours: the paper has no such terms.

- Position: the place of each pixel on its image's canvas, -1 to 1, and the level of a slice in its volume.
- Agreement: a point of the canvas that both of the first two large views show must have features that are alike, and
  unlike those of other points of the image.

Shapes: B images of this process, V large views, N = V * B, P points of each image, E projection, X Y pixels.
"""

from dataclasses import dataclass
from typing import Annotated, Final

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl_cli.base.strict import NonNegativeFloat, PositiveFloat, PositiveInt
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.placed_views import features_at
from medssl_cli.data.slice_views import Drawn, SliceAugmentation, draw
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_decoder
from medssl_cli.nn.contrast import Contrast, matched, unit
from medssl_cli.nn.decoder import DecodingOptions
from medssl_cli.nn.places import BETA, WEIGHT, mean_distances, smooth_l1

LEAST_OVERLAP: Final = 0.05
"""Share of the canvas's side that two views must share along both axes."""
SIMULATED_VIEWS: Final = 1000
SIMULATED_POINTS: Final = 8


class DenseTerms(DecodingOptions):
    """Terms of every pixel of the large views of single images. Views that are mirrored have no left and right to tell.

    Args:
        position: Weight of the place on the canvas and the level.
        agreement: Weight of the agreement of points that two views share.
        num_points: P.
        near: Points of an image that are nearer than this share of the canvas's side are not told apart.
        temperature: Divides the cosines of points.
        width: Channels of the decoder's output.
        projection_dim: E.
        decoder: Shape of the decoder.
        keep_decoder: Keep the decoder beside the encoder, for tasks whose decoder has the same shape.
    """

    position: NonNegativeFloat = 1.0
    agreement: NonNegativeFloat = 0.5
    num_points: Annotated[int, Field(ge=2)] = 128
    near: Annotated[float, Field(ge=0, lt=1)] = 0.03
    temperature: PositiveFloat = 0.1
    width: PositiveInt = 32
    projection_dim: PositiveInt = 32


@dataclass(frozen=True)
class CanvasPoints:
    """Points of the canvas that both views of an image show.

    Args:
        places: Places on the canvas, -1 to 1, [B, P, 2].
        is_shared: Which images have views that overlap, bool [B].
    """

    places: Tensor
    is_shared: Tensor


class DenseHead(nn.Module):
    """The decoder and both terms.

    Args:
        backbone: Trunk of two spatial dimensions; it stays with the method.
        options: See `DenseTerms`.
    """

    def __init__(self, backbone: Backbone, options: DenseTerms) -> None:
        super().__init__()
        self.options = options
        self.decoder = build_decoder(options.decoder, backbone, options.width)
        self.positions = nn.Conv2d(options.width, 3, kernel_size=1)
        self.projector = nn.Sequential(nn.LeakyReLU(), nn.Conv2d(options.width, options.projection_dim, kernel_size=1))

    def terms(
        self, maps: list[Tensor], drawn: Drawn, levels: Tensor, draws: Draws
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted terms by name, and figures beside them.

        Args:
            maps: Feature maps of the large views, fine to coarse, of N views.
            drawn: How these were made.
            levels: Levels of the images in their volumes, NaN where they have none, [B].
            draws: Random draws of the step.
        """
        options, batch = self.options, len(levels)
        features = self.decoder(maps)
        found, figures = {}, {}
        if options.position > 0:
            true, counts = canvas_targets(drawn, levels, features.shape[-1])
            distances = mean_distances(self.positions(features), true.to(features.device), counts.to(features.device))
            found["position"] = options.position * WEIGHT * distances.sum() / 2
        if options.agreement > 0:
            first, second = drawn.rows(torch.arange(batch)), drawn.rows(torch.arange(batch, 2 * batch))
            points = shared_points(first, second, options.num_points, draws)
            projected = self.projector(features[: 2 * batch])
            wide = projected.to(torch.promote_types(projected.dtype, torch.float32))
            of_first, of_second = (
                features_at(part, with_depth(own.in_view(points.places)))
                for own, part in zip((first, second), wide.chunk(2), strict=True)
            )
            matches = agreement(of_first, of_second, points, options)
            found["agreement"] = options.agreement * matches.loss
            figures = {
                "agreement_found": matches.accuracy,
                "agreement_without_looking": options.agreement * matches.no_information,
            }
        return found, figures


def canvas_targets(drawn: Drawn, levels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Places on the canvas and level of each pixel of square views, float32 [N, 3, X, Y], and which of them count.

    Args:
        drawn: Draws of N views.
        levels: Levels of B images, [B].
        size: Edge of a view in pixels.
    """
    spread = (2 * torch.arange(size) + 1) / size - 1
    grid = torch.stack(torch.meshgrid(spread, spread, indexing="ij"), dim=-1).flatten(0, 1)
    places = drawn.on_canvas(grid).mT.unflatten(2, (size, size))
    own = levels.repeat(len(places) // len(levels))[:, None, None, None].expand_as(places[:, :1])
    counts = torch.cat([torch.ones_like(places, dtype=torch.bool), own.isfinite()], dim=1)
    return torch.cat([places, own.nan_to_num()], dim=1), counts


def shared_points(first: Drawn, second: Drawn, number: int, draws: Draws) -> CanvasPoints:
    """Points of the canvas at random in what both views of each image show.

    Args:
        first: First views of B images.
        second: Second views of the same images.
        number: P.
        draws: Random draws of the step.
    """
    ends = [(2 * each.centre - 1, each.extent) for each in (first, second)]
    low = torch.stack([centre - extent for centre, extent in ends]).amax(dim=0)
    high = torch.stack([centre + extent for centre, extent in ends]).amin(dim=0)
    numbers = draws.uniform((len(low), number, 2))
    return CanvasPoints(low[:, None] + numbers * (high - low)[:, None], ((high - low) > 2 * LEAST_OVERLAP).all(dim=1))


def agreement(first: Tensor, second: Tensor, points: CanvasPoints, options: DenseTerms) -> Contrast:
    """Cross-entropy of finding each point's own features in the other view among those of its image, both ways.

    Args:
        first: Features of the points in the first view, [B, P, E].
        second: Projections in the second view.
        points: Points of the images; those of images whose views do not overlap count for nothing.
        options: See `DenseTerms`.
    """
    with torch.autocast(first.device.type, enabled=False):
        scores = unit(first) @ unit(second).mT / options.temperature
    images, number = scores.shape[:2]
    candidates = candidates_of(points.places, options.near).to(scores.device).flatten(0, 1)
    right = torch.arange(number, device=scores.device).repeat(images)
    is_counted = points.is_shared.to(scores.device).repeat_interleave(number)
    ways = [matched(way.flatten(0, 1), right, candidates, is_counted=is_counted) for way in (scores, scores.mT)]
    return Contrast(*(torch.stack(terms).mean() for terms in zip(*ways, strict=True)))


def candidates_of(places: Tensor, near: float) -> Tensor:
    """Which points each point is told from, itself among them, bool [B, P, P].

    Args:
        places: Places on the canvas, -1 to 1, [B, P, 2].
        near: See `DenseTerms`.
    """
    own = torch.eye(places.shape[1], dtype=torch.bool, device=places.device)
    return own | (torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist") > 2 * near)


def with_depth(places: Tensor) -> Tensor:
    """Places [B, P, 2] of slices with a third coordinate 0."""
    return torch.cat([places, torch.zeros_like(places[..., :1])], dim=2)


def trivial_terms(options: DenseTerms, views: SliceAugmentation, *, has_levels: bool) -> float:
    """Weighted loss of who looks at no image: places from the place within the view, levels and matches at random.

    Args:
        options: See `DenseTerms`.
        views: Views of the method.
        has_levels: Whether there are slices of volumes.
    """
    draws = Draws(torch.Generator().manual_seed(0))
    first, second = (draw(SIMULATED_VIEWS, views.global_scale, views, draws.generator) for _ in range(2))
    spread = (2 * torch.arange(SIMULATED_POINTS) + 1) / SIMULATED_POINTS - 1
    grid = torch.cartesian_prod(spread, spread)
    places = first.on_canvas(grid).flatten(0, 1)
    known = torch.cat([torch.ones(len(places), 1), grid.repeat(SIMULATED_VIEWS, 1)], dim=1)
    guess = known @ torch.linalg.lstsq(known, places).solution
    level = 0.5 - BETA / 2 + BETA**2 / 6 if has_levels else 0.0
    position = WEIGHT * (float(smooth_l1(places - guess).mean()) + level / 2)
    points = shared_points(first, second, options.num_points, draws)
    some = points.places[points.is_shared][:SIMULATED_POINTS]
    matches = float(candidates_of(some, options.near).sum(dim=2).log().mean()) if len(some) else 0.0
    return options.position * position + options.agreement * matches
