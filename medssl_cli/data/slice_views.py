"""Random views of 2D images on the device: crops of two sizes, flips, brightness, contrast, gamma and blur.

Multi-crop: Caron et al., SwAV, NeurIPS 2020, section 3.3, https://arxiv.org/abs/2006.09882. Instead of colours, which
medical images do not have, only intensities change. Parameters are drawn first, from a given generator, then applied.

Shapes: B images, S slices of each that are changed alike, C channels, X Y pixels.
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Final

import torch
from pydantic import Field
from torch import Tensor

from medssl_cli.base.strict import NonNegativeFloat, PositiveInt, PositiveRange, Probability, ShareRange, Strict
from medssl_cli.data.augmentation import Changes, Draws, recolour_

ASPECT: Final = (3 / 4, 4 / 3)
REFERENCE_PX: Final = 224  # blur is given for pictures of this size
LEAST_EXPONENT: Final = -80.0  # smaller powers of e are nothing beside 1, and slow
SPARE: Final = 1.15  # canvas edge per pixel of a global view: crops of the whole of it hardly alias


@dataclass(frozen=True)
class PictureCrops:
    """Views of one kind of a 2D image: crops at random places, resized.

    Args:
        number: Views of each image.
        scale: Share of the canvas's area that a view shows (least, most).
        size: Edge of a view in pixels.
    """

    number: int
    scale: tuple[float, float]
    size: int


class SliceAugmentation(Strict):
    """Views of a 2D image.

    Args:
        num_global: Large views, which are assigned to clusters.
        num_local: Small views.
        global_scale: Share of the canvas's area that a large view shows (least, most).
        local_scale: The same of a small view.
        local_size: Edge of a small view in pixels; None for 3/7 of a large one.
        flip_prob: Probability of a flip along each axis.
        contrast: Factor 1 - contrast to 1 + contrast.
        brightness: Added, up to this many standard units.
        gamma_range: Exponent of intensities between their least and largest.
        intensity_prob: Probability of changes of contrast, brightness and gamma.
        blur_prob: Probability of a Gaussian blur.
        blur_sigma: Its width in pixels of a view of 224.
    """

    num_global: Annotated[int, Field(ge=2)] = 2
    num_local: Annotated[int, Field(ge=0)] = 6
    global_scale: ShareRange = (0.3, 1.0)
    local_scale: ShareRange = (0.05, 0.3)
    local_size: PositiveInt | None = None
    flip_prob: Probability = 0.5
    contrast: NonNegativeFloat = 0.4
    brightness: NonNegativeFloat = 0.4
    gamma_range: PositiveRange = (0.7, 1.5)
    intensity_prob: Probability = 0.8
    blur_prob: Probability = 0.5
    blur_sigma: PositiveRange = (0.1, 2.0)

    def small(self, large: int) -> int:
        """Edge of a small view in pixels, a multiple of 8, where a large one has `large`."""
        return self.local_size or max(8, round(large * 3 / 7 / 8) * 8)

    def crops(self, large: int) -> tuple[PictureCrops, ...]:
        """Large views of so many pixels, then small ones if there are any."""
        local = PictureCrops(self.num_local, self.local_scale, self.small(large))
        return PictureCrops(self.num_global, self.global_scale, large), *([local] if self.num_local else [])


@dataclass(frozen=True)
class Drawn:
    """Parameters of one view of each of B images, `[B]` each.

    Args:
        centre: Centre of the crop as a share of the canvas, `[B, 2]`.
        extent: Extent of the crop as a share of the canvas, `[B, 2]`.
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

    def on_canvas(self, places: Tensor) -> Tensor:
        """Places within views, -1 to 1 from border to border, as places on the canvas of the same kind, [B, P, 2]."""
        return (2 * self.centre - 1)[:, None] + (self.extent * self.flip)[:, None] * places

    def in_view(self, places: Tensor) -> Tensor:
        """The way back of `on_canvas`."""
        return (places - (2 * self.centre - 1)[:, None]) / (self.extent * self.flip)[:, None]


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
    """The view of each image, all its slices and channels alike; in the precision of the images, also under autocast.

    The exponent of intensities acts between the least and the largest value of each channel.

    Args:
        images: `[B, S, C, X, Y]`.
        drawn: Parameters.
        size: Edge in pixels.

    Returns:
        `[B, S, C, size, size]`.
    """
    with torch.autocast(images.device.type, enabled=False):
        rows, columns = resampling(drawn, images.shape[3], size, images.device).to(images.dtype)
        views = ((rows[:, None] @ images.flatten(1, 2)) @ columns.mT[:, None]).unflatten(1, images.shape[1:3])
        recolour_(views.transpose(1, 2), Changes(gamma=drawn.gamma, scale=drawn.contrast, shift=drawn.brightness))
    return views


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


def cut_views(images: Tensor, crops: PictureCrops, options: SliceAugmentation, draws: Draws) -> Tensor:
    """Several views of each image that show shares of its area.

    Args:
        images: Images of this process, `[B, S, C, X, Y]`.
        crops: How many, how large.
        options: See `SliceAugmentation`.
        draws: Random draws of the step.

    Returns:
        `[V * B, S, C, size, size]`, one view after the other.
    """
    return drawn_views(images, crops, options, draws)[0]


def drawn_views(images: Tensor, crops: PictureCrops, options: SliceAugmentation, draws: Draws) -> tuple[Tensor, Drawn]:
    """The same, with the parameters of each view; see `cut_views`."""
    batch, number = len(images), crops.number * draws.num_processes * len(images)
    drawn = draw(number, crops.scale, options, draws.generator)
    own = torch.arange(number).view(crops.number, draws.num_processes, batch)[:, draws.rank].flatten()
    return apply(images.repeat(crops.number, 1, 1, 1, 1), drawn.rows(own), crops.size), drawn.rows(own)


def resized(images: Tensor, size: int) -> Tensor:
    """Whole images `[B, S, C, X, Y]`, all alike, with edges of `size` pixels: `[B, S, C, size, size]`."""
    one = torch.ones(1)
    zero = torch.zeros(1)
    whole = Drawn(one.expand(1, 2) / 2, one.expand(1, 2), one.expand(1, 2), one, zero, one, zero)
    rows, columns = resampling(whole, images.shape[3], size, images.device).to(images.dtype)
    return rows[:, None, None] @ images @ columns.mT[:, None, None]


def keep_window(is_present: Tensor, numbers: Tensor, *, keep: float) -> Tensor:
    """Drop slices at the ends of each volume at random, one always stays.

    Args:
        is_present: Bool [B, S], without gaps.
        numbers: Uniform random numbers in [0, 1), [B, 2].
        keep: Least share of the slices that stays.

    Returns:
        Bool [B, S].
    """
    numbers = numbers.to(is_present.device)
    present = is_present.sum(dim=1)
    length = (present * (keep + (1 - keep) * numbers[:, 0])).round().long().clamp(min=1)
    first = (numbers[:, 1] * (present - length + 1)).long()
    place = is_present.cumsum(dim=1) - 1
    return is_present & (place >= first[:, None]) & (place < (first + length)[:, None])


def own_numbers(shape: tuple[int, int, int], draws: Draws) -> Tensor:
    """Uniform random numbers for views of this process's volumes, drawn for those of all processes.

    Args:
        shape: Views, volumes of this process, numbers of each.
        draws: Random draws of the step.

    Returns:
        `[views * volumes, numbers]`, one view after the other.
    """
    views, batch, width = shape
    numbers = torch.rand(views, batch * draws.num_processes, width, generator=draws.generator)
    return numbers[:, draws.rank * batch : (draws.rank + 1) * batch].flatten(0, 1)


def canvas_for(size: int) -> int:
    """Edge of the canvas that global views of `size` pixels are cut from."""
    return math.ceil(size * SPARE)
