"""Random views of 2D images on the device: crops of two sizes, flips, brightness, contrast, gamma and blur.

Multi-crop: Caron et al., SwAV, NeurIPS 2020, section 3.3, https://arxiv.org/abs/2006.09882. Instead of colours, which
medical images do not have, only intensities change. Parameters are drawn first, from a given generator, then applied.

Shapes: B images, S slices of each that are changed alike, C channels, X Y pixels.
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Final, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medssl_cli.recipe import NonNegativeFloat, PositiveFloat, PositiveInt, Probability
from medssl_cli.strict import Strict

Share = Annotated[float, Field(gt=0, le=1)]
ASPECT: Final = (3 / 4, 4 / 3)
REFERENCE_PX: Final = 224  # blur is given for pictures of this size
LEAST_EXPONENT: Final = -80.0  # smaller powers of e are nothing beside 1, and slow
SPARE: Final = 1.15  # canvas edge per pixel of a global view: crops of the whole of it hardly alias


class SliceAugmentation(Strict):
    """Views of a 2D image.

    Args:
        num_global: Large views, which are assigned to clusters.
        num_local: Small views.
        global_scale: Share of the canvas's area that a large view shows (least, most).
        local_scale: The same of a small view.
        local_size: Edge of a small view in pixels; None for 3/7 of a large one.
        flip_prob: Of a flip along each axis.
        contrast: Factor 1 - contrast to 1 + contrast.
        brightness: Added, up to this many standard units.
        gamma_range: Exponent of intensities between their least and largest.
        intensity_prob: Of changes of contrast, brightness and gamma.
        blur_prob: Of a Gaussian blur.
        blur_sigma: Its width in pixels of a view of 224.
    """

    num_global: Annotated[int, Field(ge=2)] = 2
    num_local: Annotated[int, Field(ge=0)] = 6
    global_scale: tuple[Share, Share] = (0.3, 1.0)
    local_scale: tuple[Share, Share] = (0.05, 0.3)
    local_size: PositiveInt | None = None
    flip_prob: Probability = 0.5
    contrast: NonNegativeFloat = 0.4
    brightness: NonNegativeFloat = 0.4
    gamma_range: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.5)
    intensity_prob: Probability = 0.8
    blur_prob: Probability = 0.5
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)

    @model_validator(mode="after")
    def _least_first(self) -> Self:
        for name in ("global_scale", "local_scale", "gamma_range", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be (least, largest)")
        return self

    def small(self, large: int) -> int:
        """Edge of a small view in pixels, a multiple of 8, where a large one has `large`."""
        return self.local_size or max(8, round(large * 3 / 7 / 8) * 8)


@dataclass(frozen=True)
class Drawn:
    """Parameters of one view of each of B images, `[B]` each.

    Args:
        centre: Of the crop as a share of the canvas, `[B, 2]`.
        extent: Of the crop as a share of the canvas, `[B, 2]`.
        flip: 1 or -1, `[B, 2]`.
        contrast: Factor.
        brightness: Addend.
        gamma: Exponent.
        blur: Standard deviation in pixels of a view of 224; 0 for none.
    """

    centre: Tensor
    extent: Tensor
    flip: Tensor
    contrast: Tensor
    brightness: Tensor
    gamma: Tensor
    blur: Tensor

    def rows(self, places: Tensor) -> "Drawn":
        """Some of the images."""
        return Drawn(**{field.name: getattr(self, field.name)[places] for field in fields(self)})


def draw(number: int, scale: tuple[float, float], options: SliceAugmentation, generator: torch.Generator) -> Drawn:
    """Parameters of a view of each of `number` images whose crop covers a share of the area in `scale`."""

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return torch.rand(number, *size, generator=generator) * (high - low) + low

    log_gamma = math.log(options.gamma_range[0]), math.log(options.gamma_range[1])
    area, aspect = uniform(*scale), uniform(math.log(ASPECT[0]), math.log(ASPECT[1])).exp()
    extent = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp(max=1.0)
    flip = torch.where(uniform(0, 1, 2) < options.flip_prob, -1.0, 1.0)
    is_changed = uniform(0, 1) < options.intensity_prob
    is_blurred = uniform(0, 1) < options.blur_prob
    return Drawn(
        centre=0.5 + (uniform(0, 1, 2) - 0.5) * (1 - extent),
        extent=extent,
        flip=flip,
        contrast=torch.where(is_changed, uniform(1 - options.contrast, 1 + options.contrast), 1.0),
        brightness=torch.where(is_changed, uniform(-options.brightness, options.brightness), 0.0),
        gamma=torch.where(is_changed, uniform(*log_gamma).exp(), 1.0),
        blur=torch.where(is_blurred, uniform(*options.blur_sigma), 0.0),
    )


def apply(images: Tensor, drawn: Drawn, size: int) -> Tensor:
    """The view of each image, all its slices alike; in the precision of the images, also under autocast.

    Args:
        images: `[B, S, C, X, Y]`.
        drawn: Parameters.
        size: Edge in pixels.

    Returns:
        `[B, S, C, size, size]`.
    """
    with torch.autocast(images.device.type, enabled=False):
        rows, columns = resampling(drawn, images.shape[3], size, images.device).to(images.dtype)
        views = (rows[:, None] @ images.flatten(1, 2)) @ columns.mT[:, None]
        low, high = views.amin(dim=(1, 2, 3), keepdim=True), views.amax(dim=(1, 2, 3), keepdim=True)
        span = (high - low).clamp_min(1e-6)
        gamma, contrast, brightness = (
            each.to(images)[:, None, None, None] for each in (drawn.gamma, drawn.contrast, drawn.brightness)
        )
        views = ((views - low) / span).clamp(0, 1).pow(gamma) * (span * contrast) + (low * contrast + brightness)
    return views.unflatten(1, images.shape[1:3])


def resampling(drawn: Drawn, canvas: int, size: int, device: torch.device | None = None) -> Tensor:
    """Crop, flip, resampling and blur along both axes, as matrices `[2, B, size, canvas]` on `device`; rows sum to 1.

    All of them are separable, so two products of matrices do a whole view. Resampling is linear; where a view has fewer
    pixels than its crop, the triangle is as wide as a pixel of the view.
    """
    extent, centre, flip = (each.T[..., None].to(device) for each in (drawn.extent, drawn.centre, drawn.flip))
    pixels, canvas_pixels = (torch.arange(edge, dtype=extent.dtype, device=device) for edge in (size, canvas))
    spread = (2 * pixels + 1) / size - 1
    places = ((centre + 0.5 * extent * flip * spread) * canvas - 0.5).clamp(0, canvas - 1)
    width = (extent * canvas / size).clamp(min=1.0)[..., None]
    weights = (1 - (places[..., None] - canvas_pixels).abs() / width).clamp(min=0)
    weights = weights / weights.sum(dim=3, keepdim=True)
    [blurred] = drawn.blur.nonzero(as_tuple=True)
    if len(blurred):
        sigma, blurred = drawn.blur[blurred].to(device) * (size / REFERENCE_PX), blurred.to(device)
        kernel = torch.exp(
            (-0.5 * ((pixels[:, None] - pixels) / sigma[:, None, None]).square()).clamp(min=LEAST_EXPONENT)
        )
        weights[:, blurred] = (kernel / kernel.sum(dim=2, keepdim=True)) @ weights[:, blurred]
    return weights


def cut_views(
    images: Tensor,
    number: int,
    scale: tuple[float, float],
    options: SliceAugmentation,
    generator: torch.Generator,
    *,
    size: int,
    shard: tuple[int, int] = (0, 1),
) -> Tensor:
    """Several views of each image that show shares of its area in `scale`.

    Args:
        images: Of this process, `[B, S, C, X, Y]`.
        number: Views.
        scale: Least and most.
        options: See `SliceAugmentation`.
        generator: In the same state in every process; numbers are drawn for the images of all of them.
        size: Edge in pixels.
        shard: This process's place and how many there are.

    Returns:
        `[number * B, S, C, size, size]`, one view after the other.
    """
    batch, (rank, num_shards) = len(images), shard
    drawn = draw(number * num_shards * batch, scale, options, generator)
    own = torch.arange(number * num_shards * batch).view(number, num_shards, batch)[:, rank].flatten()
    return apply(images.repeat(number, 1, 1, 1, 1), drawn.rows(own), size)


def multi_crop(
    images: Tensor,
    options: SliceAugmentation,
    generator: torch.Generator,
    *,
    size: int,
    shard: tuple[int, int] = (0, 1),
) -> list[Tensor]:
    """All views of each image: large ones, then small ones; see `cut_views`.

    Returns:
        `[num_global * B, S, C, size, size]` and, if there are any, `[num_local * B, S, C, edge, edge]`; together where
        their sizes are equal.
    """
    kinds = [(options.num_global, options.global_scale, size)]
    if options.num_local:
        kinds.append((options.num_local, options.local_scale, options.small(size)))
    groups = [
        cut_views(images, number, scale, options, generator, size=edge, shard=shard) for number, scale, edge in kinds
    ]
    return [torch.cat(groups)] if len({edge for _, _, edge in kinds}) == 1 else groups


def canvas_for(size: int) -> int:
    """Edge of the canvas that global views of `size` pixels are cut from."""
    return math.ceil(size * SPARE)
