"""Contrast of points: the same place of the body in two views must look alike, and unlike other places.

What is compared are voxels, not images, so that feature maps learn at full resolution; others of the same image are
what a point must be told from, so that it is place and tissue that are learnt and not which scan it is. Two variants:

- `pairs`: our own experiment on heart slices; its relatives are Chaitanya et al., NeurIPS 2020,
  https://arxiv.org/abs/2006.10511, and DenseCL, https://arxiv.org/abs/2011.09157.
- `vox2vec`: Goncharov et al., MICCAI 2023, https://arxiv.org/abs/2307.14725: features of all levels at a voxel and
  contrast with all points of the batch.

Differences from the paper and the released code of vox2vec:

- The pyramid is that of any backbone and a U-Net decoder; views are turned and zoomed, which its comments say and its
  code does not do; a batch shows one crop pair of each of several volumes, not ten of one; points of all processes are
  compared.
- Intensities change as in all methods here, not by windows of CT.

Where two views share less than a quarter of the points of an image, the image takes no part in the step.

Shapes: B images of this process, P points of each, D spatial dimensions, E projection.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medssl_cli.base.strict import NonNegativeFloat, PositiveFloat, PositiveInt
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.placed_views import draw_affines, features_at
from medssl_cli.methods import (
    Losses,
    PairMethod,
    PairOptions,
    PlacedWindows,
    TrainingSet,
    ViewPlaces,
    Views,
)
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_decoder
from medssl_cli.nn.contrast import Contrast, matched, unit, view_contrast
from medssl_cli.nn.decoder import DecodingOptions
from medssl_cli.nn.health import spread_figures
from medssl_cli.nn.perceptron import perceptron

CENTRAL: Final = 0.9
"""Share of the side of the first view in whose middle points are drawn."""
INSIDE: Final = 0.95
"""The same of the second view, that points must lie in."""
LEAST_SHARED: Final = 0.25
"""Share of its points that both views of an image must show."""
NEAR_VOXELS: Final = 3
SPREAD_POINTS: Final = 8
"""Points of each image whose projections are looked at."""


class Options(PairOptions, DecodingOptions):
    """What is compared, and of which views.

    Args:
        variant: `pairs`, contrast within each image; `vox2vec`, with all points of the batch.
        num_points: P, drawn in the first view; 1024 of vox2vec.
        near_mm: Points of the same image that are no further apart are not told from each other; None for three voxels
            along the finest axis. Of `pairs` only.
        temperature: Divides cosines.
        both_ways: Whether points of the second view are anchors too; those of vox2vec always are.
        projection_dim: E; 128 of vox2vec.
        sync_norm: Batch norms see the images of all processes.
    """

    variant: Literal["pairs", "vox2vec"] = "pairs"
    num_points: Annotated[int, Field(ge=4)] = 160
    near_mm: NonNegativeFloat | None = None
    temperature: PositiveFloat = 0.1
    both_ways: bool = True
    hidden_dim: PositiveInt = 64
    projection_dim: PositiveInt = 32


@dataclass(frozen=True)
class SharedPoints:
    """Points of the body that both views of each image may show.

    Args:
        first: Their places within the first view, -1 to 1 from border to border, [B, P, 3].
        second: Within the second.
        is_shared: Which lie in both views and in the image, bool [B, P]; none of images that share too few.
        apart_mm: Distances between the points of each image, [B, P, P].
    """

    first: Tensor
    second: Tensor
    is_shared: Tensor
    apart_mm: Tensor


class Method(PairMethod):
    """Contrast of points on views of `crop_size` voxels; see `PairMethod`."""

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        width = options.hidden_dim
        self.decoder = build_decoder(options.decoder, backbone, width)
        if options.variant == "pairs":
            self.projector = nn.Sequential(nn.LeakyReLU(), nn.Linear(width, options.projection_dim))
        else:
            levels = width + sum(self.decoder.widths[1 : len(backbone.channels) - 1]) + backbone.channels[-1]
            self.projector = perceptron([levels, width, width, options.projection_dim], last_bias=True)
        self._windows: PlacedWindows | None = None
        self.synchronise()

    def require_batch(self, batch_size: int) -> None:
        """Nothing: a single image has points enough."""
        self.batch_size = batch_size

    def begin(self, training_set: TrainingSet) -> None:
        """Remember where some windows lie."""
        self._windows = training_set.windows

    def loss(self, views: Views, progress: float) -> Losses:
        """Contrast of the points that both views show."""
        [images], places, options = views.images, views.places, self.options
        assert places is not None
        points = shared_points(places, options.num_points, views.draws)
        first, second = self._project(images, torch.cat([points.first, points.second])).chunk(2)
        is_shared = points.is_shared.to(first.device)
        figures = {"shared": is_shared.to(first.dtype).mean()}
        if options.variant == "vox2vec":
            found = view_contrast(
                first.flatten(0, 1),
                second.flatten(0, 1),
                temperature=options.temperature,
                is_present=is_shared.flatten(),
            )
        else:
            is_near = near(points, places.windows, options.near_mm).to(first.device)
            scores = point_scores(first, second, options.temperature)
            found = point_contrast(scores, is_shared, is_near, both_ways=options.both_ways)
            figures["error_mm"] = error_mm(scores, is_shared, is_near, points.apart_mm.to(scores))
        figures |= {"accuracy": found.accuracy, "no_information": found.no_information}
        figures |= spread_figures(first[:, :SPREAD_POINTS].flatten(0, 1))
        return Losses(found.loss, {"contrast": found.loss.detach()}, figures)

    def _project(self, images: Tensor, places: Tensor) -> Tensor:
        """Projections [2 B, P, E] of points in views.

        Args:
            images: Views [2 B, C, X, Y, Z].
            places: Places of the points in each, -1 to 1 from border to border, [2 B, P, 3].
        """
        maps = self.backbone(images)
        features = self.decoder.features(maps)
        levels = [self.decoder.score(features[0])]
        if self.options.variant == "vox2vec":
            levels += [*features[1:], maps[-1]]
        wide = [level.to(torch.promote_types(level.dtype, torch.float32)) for level in levels]
        found = torch.cat([features_at(level, places) for level in wide], dim=2)
        projections: Tensor = self.projector(found.flatten(0, 1))
        return projections.unflatten(0, found.shape[:2])

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Equal projections: the logarithm of the number of candidates, in a simulation of views."""
        if self._windows is None:
            return {}
        options, windows = self.options, self._windows
        draws = Draws(torch.Generator().manual_seed(0))
        affines = draw_affines(windows, options.crops(2, self.crop_size), draws)
        nothing = torch.zeros(len(affines), 1, dtype=torch.bool)
        points = shared_points(ViewPlaces(affines, self.crop_size, windows, nothing), options.num_points, draws)
        if options.variant == "vox2vec":
            shared = float(points.is_shared.sum(dim=1).double().mean()) * max(1, self.batch_size)
            return {"no_information": math.log(max(1.0, 2 * shared - 1))}
        zeros = torch.zeros_like(points.apart_mm)
        is_near = near(points, windows, options.near_mm)
        return {"no_information": float(point_contrast(zeros, points.is_shared, is_near).no_information)}

    def kept(self) -> dict[str, nn.Module]:
        """See `DecodingOptions.kept`."""
        return self.options.kept(self.decoder)


def shared_points(places: ViewPlaces, number: int, draws: Draws) -> SharedPoints:
    """Draw points in the middle of the first view of each image, and find them in the second.

    Args:
        places: Where the two views of each image lie.
        number: P.
        draws: Random draws of the step.
    """
    dims = 2 if places.size[2] == 1 else 3
    first = draws.uniform((len(places.windows), number, 3), -CENTRAL, CENTRAL).double()
    first[..., dims:] = 0
    world = places.of_view(0).to_world(first)
    second = places.of_view(1).to_view(world)
    is_shared = (second[..., :dims].abs() <= INSIDE).all(dim=2) & places.of_view(0).in_field(world)
    is_shared &= is_shared.double().mean(dim=1, keepdim=True) >= LEAST_SHARED
    return SharedPoints(first, second, is_shared, torch.cdist(world, world))


def near(points: SharedPoints, windows: PlacedWindows, limit_mm: float | None) -> Tensor:
    """Which points of each image are too near to be told from each other, bool [B, P, P].

    Args:
        points: Points of the step.
        windows: Windows of the images.
        limit_mm: Largest distance of such points; None for three voxels along the image's finest axis.
    """
    spacing = windows.affines[:, :3, :3].norm(dim=1).amin(dim=1)
    limits = NEAR_VOXELS * spacing if limit_mm is None else torch.full_like(spacing, limit_mm)
    return points.apart_mm <= limits[:, None, None]


def point_scores(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cosines of the points of both views, divided by the temperature, [B, P, P].

    Args:
        first: Projections in the first view, [B, P, E], of any length.
        second: Projections of the same points in the second view.
        temperature: Divides the cosines.
    """
    with torch.autocast(first.device.type, enabled=False):
        return unit(first) @ unit(second).mT / temperature


def point_contrast(scores: Tensor, is_shared: Tensor, is_near: Tensor, *, both_ways: bool = False) -> Contrast:
    """Each point must find itself in the other view among the points of its image.

    Args:
        scores: Scores of points of the first view with those of the second, [B, P, P].
        is_shared: Which points both views show, bool [B, P]: the others neither look nor are looked for.
        is_near: Which points are too near to be told from each other, bool [B, P, P].
        both_ways: Whether points of the second view look for those of the first too; else the first look only.

    Returns:
        The mean over all points that look; the mean logarithm of the number of candidates where all scores are equal.
    """
    number = scores.shape[1]
    right = torch.arange(number, device=scores.device).repeat(len(scores))
    is_candidate = (is_shared[:, None] & ~is_near).flatten(0, 1)
    ways = [scores, scores.mT] if both_ways else [scores]
    found = [matched(way.flatten(0, 1), right, is_candidate, is_counted=is_shared.flatten()) for way in ways]
    return Contrast(*(torch.stack(terms).mean() for terms in zip(*found, strict=True)))


@torch.no_grad()
def error_mm(scores: Tensor, is_shared: Tensor, is_near: Tensor, apart_mm: Tensor) -> Tensor:
    """Median distance of what points of the first view find in the second from where they are; 0 without points.

    Args:
        scores: See `point_contrast`.
        is_shared: See `point_contrast`.
        is_near: See `point_contrast`.
        apart_mm: Distances of the points of each image, [B, P, P].
    """
    is_candidate = is_shared[:, None] & ~is_near
    is_candidate |= torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    found = scores.masked_fill(~is_candidate, -torch.inf).argmax(dim=2, keepdim=True)
    errors = apart_mm.gather(2, found)[..., 0][is_shared]
    return errors.median() if len(errors) else errors.new_zeros(())
