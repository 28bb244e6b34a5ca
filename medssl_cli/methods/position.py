"""Dense position: tell for every voxel of a turned, zoomed and re-toned crop where it lies in its image.

It is VoCo's question (where does this crop lie, https://arxiv.org/abs/2402.17300) asked of every voxel, so that feature
maps learn it at full resolution and not only their mean. There is no paper; the numbers of the recipe `position-slices`
are those of our own experiment on heart slices.

A place runs from -1 to 1 along the image's own axes between the sides of its reference box. Slices of a volume tell
their level too. The decoder is thrown away after the training.

Shapes: N views, C channels, X Y Z space (X Y of slices), D coordinates (x, y, z; x, y and the level of slices).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import torch
from torch import Tensor, nn

from medssl_cli.data.augmentation import Draws
from medssl_cli.data.placed_views import coordinates, draw_affines
from medssl_cli.data.slices import MIN_SLICES
from medssl_cli.methods import (
    Losses,
    MethodBase,
    PlacedCrops,
    PlacedOptions,
    PlacedWindows,
    TrainingSet,
    ViewPlaces,
    ViewRequest,
    Views,
)
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.build import build_decoder
from medssl_cli.nn.decoder import DecodingOptions
from medssl_cli.nn.distributed import synchronise_norms
from medssl_cli.nn.places import WEIGHT, mean_distances, shares_explained, smooth_l1

LEVEL_MM: Final = 100.0
"""Millimetres of level that count as 1."""
SPATIAL: Final = {2: ("x", "y", "level"), 3: ("x", "y", "z")}
NOTHING_LEARNT: Final = 0.95
RECENT_SHARE: Final = 0.1
VIEWS_PER_WINDOW: Final = 8
POINTS_PER_VIEW: Final = {2: 12, 3: 6}
SHOWN_VIEWS: Final = 3

Level = Literal["whole", "mm", "partial"]


class Options(PlacedOptions, DecodingOptions):
    """What is asked, and of which views.

    Args:
        level: Level of slices: `whole`, their number from -1 to 1 over the volume, where it has at least five; `mm`,
            their distance from the middle of the box in units of 100 mm, where volumes show more or less of the body;
            `partial`, nothing.
        sync_norm: Batch norms see the images of all processes.
    """

    level: Level = "whole"
    sync_norm: bool = True


class Method(MethodBase):
    """Regression of places from views of `crop_size` voxels.

    Args:
        backbone: Backbone of two or three spatial dimensions.
        options: See `Options`.
        crop_size: Voxels (x, y, z) of a view.
    """

    dims = frozenset({2, 3})
    worry_code = "W_NOT_LEARNING"
    judged_from = 0.25
    learnt_below = 0.98

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        self.names = SPATIAL[backbone.spatial_dims]
        self.decoder = build_decoder(options.decoder, backbone, len(self.names))
        self._num_steps = 0
        self._windows: PlacedWindows | None = None
        self._trivial: dict[str, dict[str, float]] = {}
        if options.sync_norm:
            synchronise_norms(self)

    @property
    def _crops(self) -> PlacedCrops:
        """One view of each image."""
        return self.options.crops(1, self.crop_size)

    def views(self) -> ViewRequest:
        """One view of each image, which knows where it lies."""
        return ViewRequest(self.crop_size, placed=self._crops)

    def begin(self, training_set: TrainingSet) -> None:
        """Work out what predictors would lose that do not look at the images."""
        self._num_steps = training_set.num_steps
        if training_set.windows is not None:
            self._trivial = trivial_losses(training_set.windows, self._crops, self.options.level)

    def loss(self, views: Views, progress: float) -> Losses:
        """Smooth distance between told and true places, over the voxels of all processes that show the image."""
        [images], places = views.images, views.places
        assert places is not None
        told = self.decoder(self.backbone(images))
        true, counts = targets(places, self.options.level)
        distances = mean_distances(told, true, counts)
        shares = WEIGHT * coordinate_weights(self.backbone.spatial_dims).to(distances)
        terms = shares * distances
        parts = dict(zip(self.names, terms.detach(), strict=True))
        return Losses(terms.sum(), parts, self._figures(told.detach(), true, counts, distances.detach()))

    def _figures(self, told: Tensor, true: Tensor, counts: Tensor, distances: Tensor) -> dict[str, Tensor]:
        """Share of the variance that is explained, and of the loss of whoever knows the place within the crop only."""
        explained = shares_explained(told, true, counts)
        shown = {f"explained/{name}": share for name, share in zip(self.names, explained, strict=True)}
        if self._trivial:
            known = [name for name in self.names if name != "level"]
            own = distances[: len(known)].mean()
            shown["of_place_within_crop"] = own / mean_of(self._trivial["place_within_crop"], known)
        return shown

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Total loss of the best constant, and of the best guess from a voxel's place within the crop alone."""
        weights = coordinate_weights(self.backbone.spatial_dims).tolist()
        return {
            name: WEIGHT * sum(weight * losses[axis] for weight, axis in zip(weights, self.names, strict=True))
            for name, losses in self._trivial.items()
        }

    def health(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """Whether places are told from the place within the crop alone, which takes no look at what it shows."""
        shares = [entry["of_place_within_crop"] for entry in logged if entry.get("of_place_within_crop") is not None]
        if not shares or logged[-1]["step"] < self.judged_from * self._num_steps:
            return []
        recent = shares[-max(1, round(len(shares) * RECENT_SHARE)) :]
        share = sum(recent) / len(recent)
        if share < NOTHING_LEARNT:
            return []
        return [
            f"places are told no better than from the place within the crop alone ({share:.2f} of its loss); instance "
            "norms hide brightness and level: try backbone.norm: batch"
        ]

    def kept(self) -> dict[str, nn.Module]:
        """See `DecodingOptions.kept`."""
        return self.options.kept(self.decoder)

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Pictures of some views, and of their true and told places as colours: red for x, green y, blue z."""
        [images], places = views.images, views.places
        assert places is not None
        told = self.decoder(self.backbone(images)).float()
        true, _ = targets(places, self.options.level)
        shown = torch.where(places.is_shown[:, None], true, -1.0)
        rows = [
            torch.cat([_grey(image[0]), _coloured(truth), _coloured(guess)], dim=1)
            for image, truth, guess in zip(images[:SHOWN_VIEWS], shown, told, strict=False)
        ]
        return {"view, true places, told places": torch.cat(rows)}


def coordinate_weights(spatial_dims: int) -> Tensor:
    """How much each of three coordinates counts: of slices half as much (mean of x and y, and half the level)."""
    return torch.full((3,), 0.5 if spatial_dims == 2 else 1 / 3)


def targets(places: ViewPlaces, level: Level) -> tuple[Tensor, Tensor]:
    """True places of voxels, and which of them count.

    Args:
        places: Places of N views.
        level: See `Options`.

    Returns:
        float32 and bool [N, D, X, Y, Z], or [N, D, X, Y] of slices.
    """
    true, is_shown = places.in_box().movedim(-1, 1), places.is_shown[:, None]
    if places.size[2] > 1:
        return true, is_shown.expand_as(true)
    levels, is_known = levels_of(places.windows, level)
    number = len(true) // len(levels)
    spread = levels.to(true).repeat(number)[:, None, None, None].expand_as(true[:, :1])
    known = is_known.to(true.device).repeat(number)[:, None, None, None]
    counts = torch.cat([is_shown.expand(-1, 2, -1, -1), is_shown & known], dim=1)
    return torch.cat([true[:, :2], spread], dim=1), counts


def levels_of(windows: PlacedWindows, level: Level) -> tuple[Tensor, Tensor]:
    """Levels of slices, and which volumes tell any, [B] each; see `Options`."""
    is_known = windows.num_slices >= MIN_SLICES
    if level == "partial":
        return torch.zeros(len(windows)), torch.zeros_like(is_known)
    if level == "whole":
        return 2 * windows.slice_numbers / (windows.num_slices - 1).clamp(min=1) - 1, is_known
    heights = (windows.boxes[:, 2, :3] * windows.centres).sum(dim=1) + windows.boxes[:, 2, 3]
    half_mm = 1 / windows.boxes[:, 2, :3].norm(dim=1)
    return (heights * half_mm / LEVEL_MM).float(), windows.num_slices > 1


def trivial_losses(windows: PlacedWindows, crops: PlacedCrops, level: Level) -> dict[str, dict[str, float]]:
    """Smooth distances per coordinate of predictors that see no image, by a simulation of views.

    Args:
        windows: Where some windows of the training lie.
        crops: Crops of the method.
        level: See `Options`.

    Returns:
        `best_constant`: one answer for all voxels. `place_within_crop`: the best linear guess from the place of a voxel
        within its view.
    """
    dims = 2 if crops.is_flat else 3
    drawn = replace(crops, number=VIEWS_PER_WINDOW)
    affines = draw_affines(windows, drawn, Draws(torch.Generator().manual_seed(0)))
    count = POINTS_PER_VIEW[dims]
    size = (count, count, 1 if crops.is_flat else count)
    thin = torch.diag(torch.tensor([*(whole / few for whole, few in zip(crops.size, size, strict=True)), 1.0]))
    thin[:3, 3] = (thin.diagonal()[:3] - 1) / 2
    within = affines @ thin.double()
    boxes, fields = (each.repeat(VIEWS_PER_WINDOW, 1, 1) for each in (windows.boxes, windows.fields))
    is_shown = (coordinates(fields @ within, size).abs() <= 1).all(dim=4).flatten()
    places = coordinates(boxes @ within, size).flatten(0, 3)[is_shown].double()
    spread = 2 * (torch.arange(count, dtype=torch.float64) + 0.5) / count - 1
    grid = torch.cartesian_prod(*[spread] * dims).repeat(len(within), 1)[is_shown]
    known = torch.cat([torch.ones_like(grid[:, :1]), grid], dim=1)
    guess = known @ torch.linalg.lstsq(known, places).solution
    names = SPATIAL[dims]
    constant = _losses(places - places.median(dim=0).values, names)
    informed = _losses(places - guess, names)
    if crops.is_flat:
        levels, is_known = levels_of(windows, level)
        own = levels[is_known].double()
        alone = float(smooth_l1(own - own.median()).mean()) if len(own) else 0.0
        constant["level"] = informed["level"] = alone
    return {"best_constant": constant, "place_within_crop": informed}


def mean_of(losses: Mapping[str, float], names: Sequence[str]) -> float:
    """Mean of some losses by name."""
    return max(sum(losses[name] for name in names) / len(names), torch.finfo(torch.float32).tiny)


def _losses(differences: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Smooth distance of each coordinate by name."""
    return dict(zip(names, smooth_l1(differences).mean(dim=0).tolist(), strict=True))


def _coloured(places: Tensor) -> Tensor:
    """Places [D, X, Y, Z] or [D, X, Y], -1 to 1, as an upright picture in colours [Y, X, 3], 0 to 1."""
    return ((_middle(places) + 1) / 2).clamp(0, 1).permute(2, 1, 0).flip(0).cpu()


def _grey(image: Tensor) -> Tensor:
    """An image [X, Y, Z] or [X, Y] from its least to its largest value, as an upright picture [Y, X, 3]."""
    flat = _middle(image[None])[0]
    span = (flat.amax() - flat.amin()).clamp(min=1e-6)
    return ((flat - flat.amin()) / span).T.flip(0)[..., None].expand(-1, -1, 3).cpu()


def _middle(volume: Tensor) -> Tensor:
    """The middle slice of [D, X, Y, Z]; [D, X, Y] as it is."""
    return volume[..., volume.shape[-1] // 2] if volume.ndim == 4 else volume
