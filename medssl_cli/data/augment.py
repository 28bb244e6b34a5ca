"""Random changes of whole batches on the device. Parameters are drawn first, from a given generator, then applied."""

import math

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
    images, labels = _flip(images, labels, options, generator)
    if options.affine_prob > 0:
        axes = tuple(range(spatial_dims)) if options.affine_axes is None else options.affine_axes
        images, labels = _affine(images, labels, options, generator, spacing_mm, axes)
    return _intensity(images, options, generator), labels


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
    boxes = images if images.ndim == 5 else images[..., None]
    nothing = torch.zeros_like(boxes[:, 0], dtype=torch.int64)
    changed, _ = augment(boxes, nothing, options, generator, spatial_dims=spatial_dims)
    return changed.reshape(images.shape)


def _uniform(generator: torch.Generator, size: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.rand(size, generator=generator) * (high - low) + low


def _flip(images: Tensor, labels: Tensor, options: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.rand((len(images), 3), generator=generator) < options.flip_prob
    for axis in options.flip_axes:
        picks = chosen[:, axis].to(images.device)
        images = torch.where(picks[:, None, None, None, None], images.flip(axis + 2), images)
        labels = torch.where(picks[:, None, None, None], labels.flip(axis + 1), labels)
    return images, labels


def _affine(
    images: Tensor,
    labels: Tensor,
    options: Augmentation,
    generator: torch.Generator,
    spacing_mm: Tensor | None,
    axes: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """One resampling for rotation and scale about the crop's centre: linear for images, nearest for labels."""
    batch = len(images)
    degrees = _uniform(generator, (batch, 3), -options.rotate_degrees, options.rotate_degrees)
    scale = _uniform(generator, (batch, 1, 1), math.log(options.scale_range[0]), math.log(options.scale_range[1])).exp()
    moves = [axis in axes and images.shape[axis + 2] > 1 for axis in (2, 1, 0)]  # grids count axes from the last
    for axis in range(3):
        if sum(moves) - moves[axis] < 2:
            degrees[:, axis] = 0
    is_moved = torch.rand(batch, generator=generator) < options.affine_prob
    if not is_moved.any():
        return images, labels
    picks = is_moved.nonzero()[:, 0]
    matrices = rotation_matrices(degrees[picks].deg2rad()) / torch.where(torch.tensor(moves), scale[picks], 1.0)
    spacing = torch.ones(batch, 3) if spacing_mm is None else spacing_mm.cpu()
    half_mm = torch.tensor(images.shape[:1:-1], dtype=torch.float32) / 2 * spacing[picks].flip(1)
    normalised = matrices * half_mm[:, None, :] / half_mm[:, :, None]
    theta = torch.cat([normalised, torch.zeros(len(picks), 3, 1)], dim=2).to(images.device)
    picks = picks.to(images.device)
    moved = images[picks]
    grid = F.affine_grid(theta, list(moved.shape), align_corners=False)
    turned = F.grid_sample(moved, grid, mode="bilinear", padding_mode="border", align_corners=False)
    classes = F.grid_sample(labels[picks][:, None].float(), grid, mode="nearest", align_corners=False)
    return images.index_copy(0, picks, turned), labels.index_copy(0, picks, classes[:, 0].long())


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
