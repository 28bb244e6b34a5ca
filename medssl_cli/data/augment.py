"""Random changes of whole batches on the device. Parameters are drawn first, from a given generator, then applied."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl_cli.recipe import Augmentation


def augment(
    images: Tensor,
    labels: Tensor,
    options: Augmentation,
    generator: torch.Generator,
    *,
    spacing_mm: Tensor | None = None,
    spatial_dims: int = 3,
) -> tuple[Tensor, Tensor]:
    """Flip, turn, scale and change the intensities of crops, each sample on its own.

    Args:
        images: `[B, C, X, Y, Z]` network input.
        labels: `[B, X, Y, Z]` classes.
        options: What may happen, and how strongly.
        generator: CPU generator; the only source of randomness.
        spacing_mm: `[B, 3]`, so that rotations are rotations in the patient; None means equal along all axes.
        spatial_dims: Of the network. Slices of a 2D network stay in their planes, unless the options say otherwise.

    Returns:
        Images and labels of the same shapes.
    """
    geometry = _draw(images.shape, options, generator, spacing_mm, spatial_dims)
    labels = _move(labels[:, None].float(), geometry, are_classes=True)[:, 0].long()
    return _intensity(_move(images, geometry), options, generator), labels


def augment_images(
    images: Tensor, options: Augmentation, generator: torch.Generator, *, spatial_dims: int = 3
) -> Tensor:
    """The same for images without label maps, `[B, C, X, Y, Z]` or `[B, C, X, Y]`, of equal spacing along all axes.

    A 2D image stays in its plane: it turns about the third axis only.

    Args:
        images: Network input.
        options: What may happen, and how strongly.
        generator: CPU generator; the only source of randomness.
        spatial_dims: Of the network; slices of a 2D network stay in their planes.
    """
    volumes = images if images.ndim == 5 else images[..., None]
    geometry = _draw(volumes.shape, options, generator, spatial_dims=spatial_dims)
    return _intensity(_move(volumes, geometry), options, generator).reshape(images.shape)


def augment_boxes(
    images: Tensor, boxes: Tensor, options: Augmentation, generator: torch.Generator, *, min_visible: float = 0.25
) -> tuple[Tensor, Tensor]:
    """The same for 2D images with boxes, of which those that mostly leave the image are dropped.

    Args:
        images: `[B, C, X, Y]` network input.
        boxes: `[B, M, 5]` on the CPU: low x, low y, high x, high y in pixel edges, and the class, negative for none.
        options: What may happen, and how strongly.
        generator: CPU generator; the only source of randomness.
        min_visible: Least share of a box that must stay on the image.

    Returns:
        Images and boxes of the same shapes; a turned box becomes the upright one around it.
    """
    geometry = _draw(images[..., None].shape, options, generator)
    changed = _intensity(_move(images[..., None], geometry), options, generator)[..., 0]
    places = _move_boxes(boxes[..., :4], geometry, (images.shape[2], images.shape[3]))
    scale = torch.ones(len(boxes))
    scale[geometry.moved] = 1 / torch.linalg.det(geometry.matrices).abs()
    is_visible = _areas(places) >= min_visible * _areas(boxes[..., :4]) * scale[:, None]
    classes = torch.where(is_visible, boxes[..., 4], -1.0)
    return changed, torch.cat([places, classes[..., None]], dim=-1)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:4] - boxes[..., :2]).prod(dim=-1)


def _uniform(generator: torch.Generator, size: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.rand(size, generator=generator) * (high - low) + low


@dataclass(frozen=True)
class _Geometry:
    """How each sample is flipped, then turned and scaled about its centre.

    Args:
        is_flipped: bool `[B, 3]`.
        moved: Numbers of the samples that turn or scale, `[M]`.
        matrices: Of these, from changed to original coordinates that run from -1 to 1 over each axis, the last axis
            first, `[M, 3, 3]`.
    """

    is_flipped: Tensor
    moved: Tensor
    matrices: Tensor


def _draw(
    size: torch.Size,
    options: Augmentation,
    generator: torch.Generator,
    spacing_mm: Tensor | None = None,
    spatial_dims: int = 3,
) -> _Geometry:
    """Draw for images of size `[B, C, X, Y, Z]`."""
    batch = size[0]
    is_flipped = torch.rand((batch, 3), generator=generator) < options.flip_prob
    is_flipped &= torch.tensor([axis in options.flip_axes for axis in range(3)])
    nothing = _Geometry(is_flipped, torch.empty(0, dtype=torch.int64), torch.empty(0, 3, 3))
    if options.affine_prob == 0:
        return nothing
    axes = tuple(range(spatial_dims)) if options.affine_axes is None else options.affine_axes
    degrees = _uniform(generator, (batch, 3), -options.rotate_degrees, options.rotate_degrees)
    scale = _uniform(generator, (batch, 1, 1), math.log(options.scale_range[0]), math.log(options.scale_range[1])).exp()
    moves = [axis in axes and size[axis + 2] > 1 for axis in (2, 1, 0)]  # grids count axes from the last
    for axis in range(3):
        if sum(moves) - moves[axis] < 2:
            degrees[:, axis] = 0
    is_moved = torch.rand(batch, generator=generator) < options.affine_prob
    if not is_moved.any():
        return nothing
    picks = is_moved.nonzero()[:, 0]
    matrices = rotation_matrices(degrees[picks].deg2rad()) / torch.where(torch.tensor(moves), scale[picks], 1.0)
    spacing = torch.ones(batch, 3) if spacing_mm is None else spacing_mm.cpu()
    half_mm = torch.tensor(size[:1:-1], dtype=torch.float32) / 2 * spacing[picks].flip(1)
    return _Geometry(is_flipped, picks, matrices * half_mm[:, None, :] / half_mm[:, :, None])


def _move(images: Tensor, geometry: _Geometry, *, are_classes: bool = False) -> Tensor:
    """Flip, turn and scale `[B, C, X, Y, Z]`; what lies outside is an image's border, or no class."""
    for axis in range(3):
        picks = geometry.is_flipped[:, axis]
        if picks.any():
            images = torch.where(picks.to(images.device)[:, None, None, None, None], images.flip(axis + 2), images)
    if not len(geometry.moved):
        return images
    picks = geometry.moved.to(images.device)
    theta = torch.cat([geometry.matrices, torch.zeros(len(picks), 3, 1)], dim=2).to(images.device)
    moved = images[picks]
    grid = F.affine_grid(theta, list(moved.shape), align_corners=False)
    mode, around = ("nearest", "zeros") if are_classes else ("bilinear", "border")
    changed = F.grid_sample(moved, grid, mode=mode, padding_mode=around, align_corners=False)
    return images.index_copy(0, picks, changed)


def _move_boxes(boxes: Tensor, geometry: _Geometry, size: tuple[int, int]) -> Tensor:
    """The smallest upright boxes around flipped, turned and scaled ones, as they lie on the image.

    Args:
        boxes: `[B, M, 4]`, low x, low y, high x, high y, in pixel edges.
        geometry: Of 2D images.
        size: Pixels along x and y.
    """
    extent = torch.tensor(size, dtype=boxes.dtype)
    corners = torch.stack([boxes[..., [x, y]] for x in (0, 2) for y in (1, 3)], dim=2) / extent * 2 - 1
    corners = torch.where(geometry.is_flipped[:, None, None, :2], -corners, corners)
    if len(geometry.moved):
        back = torch.linalg.inv(geometry.matrices[:, 1:, 1:].to(boxes.dtype)).flip(1, 2)
        corners[geometry.moved] = torch.einsum("bij,bmcj->bmci", back, corners[geometry.moved])
    places = ((corners + 1) / 2).clamp(0, 1) * extent
    return torch.cat([places.amin(dim=2), places.amax(dim=2)], dim=-1)


def rotation_matrices(angles: Tensor) -> Tensor:
    """Rotations `[B, 3, 3]` about the three axes in turn, from angles `[B, 3]` in radians."""
    cos, sin = angles.cos(), angles.sin()
    one, zero = torch.ones_like(cos[:, 0]), torch.zeros_like(cos[:, 0])
    about_x = torch.stack([one, zero, zero, zero, cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0]], dim=1)
    about_y = torch.stack([cos[:, 1], zero, sin[:, 1], zero, one, zero, -sin[:, 1], zero, cos[:, 1]], dim=1)
    about_z = torch.stack([cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2], zero, zero, zero, one], dim=1)
    return about_x.view(-1, 3, 3) @ about_y.view(-1, 3, 3) @ about_z.view(-1, 3, 3)


def _intensity(images: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    size = (len(images), 1, 1, 1, 1)
    scale = _uniform(generator, size, 1 - options.intensity_scale, 1 + options.intensity_scale).to(images.device)
    shift = _uniform(generator, size, -options.intensity_shift, options.intensity_shift).to(images.device)
    if options.gamma_range != (1.0, 1.0):
        gamma = _uniform(generator, size, *options.gamma_range).to(images.device)
        low = images.amin(dim=(2, 3, 4), keepdim=True)
        span = (images.amax(dim=(2, 3, 4), keepdim=True) - low).clamp_min(1e-6)
        images = ((images - low) / span).pow(gamma) * span + low
    images = images * scale + shift
    if options.noise_std > 0:
        strength = _uniform(generator, size, 0, options.noise_std).to(images.device)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        images = images + noise * strength
    return images
