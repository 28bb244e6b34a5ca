"""Random changes of whole batches on the device, in 2D and 3D: flips, turns, scales and intensities.

What happens is drawn first, from a given generator, as `Changes`; then it is applied. Each law that draws has its own
order of random numbers, which a run that is resumed counts on; all of them are applied by the same two functions.

Shapes: N images, C channels, X Y Z space, M images that turn or scale, K boxes of an image.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl_cli.data.degradation import BIAS_POWERS, bias_fields, blur_, coarsen_
from medssl_cli.data.moved_boxes import areas_of, move_boxes
from medssl_cli.data.tones import change_contrast_, invert_gamma_
from medssl_cli.recipe_sections import Augmentation

NO_MATRICES = torch.empty(0, 3, 3)


@dataclass(frozen=True)
class Draws:
    """Random numbers of a batch, which processes may share: drawn for all of it, of which each takes its own rows.

    Args:
        generator: CPU generator in the same state in every process; the only source of randomness.
        rank: Place of this process among them.
        num_processes: How many share the batch, each as many rows.
    """

    generator: torch.Generator
    rank: int = 0
    num_processes: int = 1

    def uniform(self, size: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers between two others, for this process's rows."""
        return self._own(torch.rand(self._whole(size), generator=self.generator), size[0]) * (high - low) + low

    def normal(self, size: tuple[int, ...]) -> Tensor:
        """Numbers of mean 0 and variance 1, for this process's rows."""
        return self._own(torch.randn(self._whole(size), generator=self.generator), size[0])

    def _whole(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The same for the batch of all processes."""
        return (size[0] * self.num_processes, *size[1:])

    def _own(self, values: Tensor, num_rows: int) -> Tensor:
        """The rows of this process."""
        return values[self.rank * num_rows : (self.rank + 1) * num_rows]


@dataclass(frozen=True)
class Changes:
    """What happens to each of N images, in this order; None where nothing does.

    Args:
        is_flipped: Which of the axes x, y, z are mirrored, bool [N, 3].
        quarter_turns: Rotations by 90 degrees in the x-y plane, from x towards y, integers 0 to 3, [N].
        moved: Numbers of the images that turn or scale about their centre, [M].
        matrices: Matrices of these, from changed to original coordinates that run from -1 to 1 over each axis, the last
            axis first, [M, 3, 3].
        coarse: How many times wider voxels become along x, y, z before they are interpolated again, [N, 3].
        blur: Standard deviations in voxels of a Gaussian along x, y, z, [N, 3].
        bias: Coefficients of the logarithm of a smooth factor, see `degradation.bias_fields`, [N, T].
        contrast: Factors of the distances from the mean, [N].
        inverted_gamma: Exponents of the inverted image, [N].
        gamma: Exponents of intensities between an image's least and largest, [N]; only with `scale` and `shift`.
        scale: Factors of intensities, [N].
        shift: Addends, [N].
        noise: Addends of single voxels, [N, C, X, Y, Z].
    """

    is_flipped: Tensor | None = None
    quarter_turns: Tensor | None = None
    moved: Tensor | None = None
    matrices: Tensor = NO_MATRICES
    coarse: Tensor | None = None
    blur: Tensor | None = None
    bias: Tensor | None = None
    contrast: Tensor | None = None
    inverted_gamma: Tensor | None = None
    gamma: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    noise: Tensor | None = None

    def first(self, number: int) -> "Changes":
        """Mirror images and quarter turns of the first images."""
        flipped, turns = (None if each is None else each[:number] for each in (self.is_flipped, self.quarter_turns))
        return Changes(flipped, turns)


@dataclass(frozen=True)
class CropChanges:
    """What may happen to a crop of a volume: changes that cost next to nothing.

    Args:
        flip_prob: Probability of a mirror image, per axis.
        quarter_turn_prob: Probability of a rotation in the x-y plane by 90, 180 or 270 degrees, equally likely.
        shift_prob: Probability of an intensity shift.
        shift: Largest shift; it is uniform on [-shift, shift].
    """

    flip_prob: float
    quarter_turn_prob: float
    shift_prob: float
    shift: float


def augment(
    images: Tensor,
    labels: Tensor,
    options: Augmentation,
    draws: Draws,
    *,
    spacing_mm: Tensor | None = None,
    spatial_dims: int = 3,
) -> tuple[Tensor, Tensor]:
    """Flip, turn, scale and change the intensities of crops and their label maps, each sample on its own.

    Args:
        images: Network input, [N, C, X, Y, Z].
        labels: Classes, [N, X, Y, Z], or regions, [N, K, X, Y, Z].
        options: What may happen, and how strongly.
        draws: Source of all random numbers.
        spacing_mm: [N, 3], so that rotations are rotations in the patient; None means equal along all axes.
        spatial_dims: Number of spatial dimensions of the network. Slices of a 2D network stay in their planes, unless
            the options say otherwise.

    Returns:
        Images and labels of the same shapes.
    """
    changes = draw_augmentation(images.shape, options, draws, spacing_mm, spatial_dims)
    maps = labels if labels.ndim == images.ndim else labels[:, None]
    moved = move_(maps.float(), changes, are_classes=True).to(labels.dtype).reshape(labels.shape)
    return recolour_(move_(images.clone(), changes), changes), moved


def augment_images(
    images: Tensor,
    options: Augmentation,
    draws: Draws,
    *,
    spacing_mm: Tensor | None = None,
    spatial_dims: int = 3,
) -> Tensor:
    """The same for images without label maps, [N, C, X, Y, Z] or [N, C, X, Y].

    A 2D image stays in its plane: it turns about the third axis only.

    Args:
        images: Network input.
        options: What may happen, and how strongly.
        draws: Source of all random numbers.
        spacing_mm: [N, 3], so that rotations are rotations in the patient; None means equal along all axes.
        spatial_dims: Number of spatial dimensions of the network; slices of a 2D network stay in their planes.
    """
    volumes = images if images.ndim == 5 else images[..., None]
    changes = draw_augmentation(volumes.shape, options, draws, spacing_mm, spatial_dims)
    return recolour_(move_(volumes.clone(), changes), changes).reshape(images.shape)


def augment_boxes(
    images: Tensor,
    boxes: Tensor,
    options: Augmentation,
    draws: Draws,
    *,
    min_visible: float = 0.25,
    spacing_mm: Tensor | None = None,
    left: float = -1.0,
) -> tuple[Tensor, Tensor]:
    """The same for images with boxes, of which those that mostly leave the image are dropped.

    Args:
        images: Network input, [N, C, X, Y] or [N, C, X, Y, Z].
        boxes: Boxes on the CPU, [N, K, 5] or [N, K, 7]: low corner, high corner in voxel edges, and the class, negative
            for none.
        options: What may happen, and how strongly.
        draws: Source of all random numbers.
        min_visible: Least share of a box that must stay on the image.
        spacing_mm: [N, 3], so that rotations are rotations in the patient; None means equal along all axes.
        left: Class of boxes that are dropped.

    Returns:
        Images and boxes of the same shapes; a turned box becomes the upright one around it.
    """
    size = images.shape[2:]
    volumes = images if images.ndim == 5 else images[..., None]
    changes = draw_augmentation(volumes.shape, options, draws, spacing_mm)
    changed = recolour_(move_(volumes.clone(), changes), changes).reshape(images.shape)
    places = move_boxes(boxes[..., :-1], changes, size)
    scale = torch.ones(len(boxes))
    if changes.moved is not None:
        scale[changes.moved] = 1 / torch.linalg.det(changes.matrices).abs()
    is_visible = areas_of(places) >= min_visible * areas_of(boxes[..., :-1]) * scale[:, None]
    classes = torch.where(is_visible | (boxes[..., -1] < 0), boxes[..., -1], left)
    return changed, torch.cat([places, classes[..., None]], dim=-1)


def draw_augmentation(
    size: torch.Size,
    options: Augmentation,
    draws: Draws,
    spacing_mm: Tensor | None = None,
    spatial_dims: int = 3,
) -> Changes:
    """Draw the changes of a task's crops of size [N, C, X, Y, Z]: first those of their geometry, then the others."""
    geometry = _draw_geometry(size, options, draws, spacing_mm, spatial_dims)
    number = (size[0],)
    scale = draws.uniform(number, 1 - options.intensity_scale, 1 + options.intensity_scale)
    shift = draws.uniform(number, -options.intensity_shift, options.intensity_shift)
    gamma = noise = None
    if options.gamma_range != (1.0, 1.0):
        gamma = draws.uniform(number, *options.gamma_range)
    if options.noise_std > 0:
        strength = draws.uniform((size[0], 1, 1, 1, 1), 0, options.noise_std)
        noise = draws.normal(tuple(size)) * strength
    changes = replace(geometry, scale=scale, shift=shift, gamma=gamma, noise=noise)
    return _with_rarer_changes(changes, size, options, draws)


def _with_rarer_changes(changes: Changes, size: torch.Size, options: Augmentation, draws: Draws) -> Changes:
    """Add what happens with a probability of its own, drawn after all else and only where it may happen."""
    number = (size[0],)
    if options.intensity_scale_prob < 1 and changes.scale is not None:
        happens = _happens(draws, number, options.intensity_scale_prob)
        changes = replace(changes, scale=torch.where(happens, changes.scale, 1.0))
    if options.intensity_shift_prob < 1 and changes.shift is not None:
        happens = _happens(draws, number, options.intensity_shift_prob)
        changes = replace(changes, shift=torch.where(happens, changes.shift, 0.0))
    if options.quarter_turn_prob > 0:
        turns = draws.uniform(number, 1, 4).long().clamp(max=3)
        changes = replace(changes, quarter_turns=turns * _happens(draws, number, options.quarter_turn_prob))
    if options.coarse_prob > 0:
        factors = draws.uniform((size[0], 1), *options.coarse_range)
        happens = _happens(draws, (size[0], 1), options.coarse_prob)
        changes = replace(changes, coarse=torch.where(happens, factors, 1.0).expand(-1, 3))
    if options.blur_prob > 0:
        sigmas = draws.uniform((size[0], 1), *options.blur_sigma)
        changes = replace(changes, blur=(sigmas * _happens(draws, (size[0], 1), options.blur_prob)).expand(-1, 3))
    if options.bias_prob > 0:
        strengths = draws.uniform((size[0], len(BIAS_POWERS)), -options.bias_strength, options.bias_strength)
        changes = replace(changes, bias=strengths * _happens(draws, (size[0], 1), options.bias_prob))
    return _with_tones(changes, size[0], options, draws)


def _with_tones(changes: Changes, number: int, options: Augmentation, draws: Draws) -> Changes:
    """Add what nnU-Net has beside these, drawn after all else and only where it may happen, or may not."""
    each = (number,)
    if options.gamma_prob < 1 and changes.gamma is not None:
        changes = replace(changes, gamma=torch.where(_happens(draws, each, options.gamma_prob), changes.gamma, 1.0))
    if options.noise_prob < 1 and changes.noise is not None:
        happens = _happens(draws, (number, 1, 1, 1, 1), options.noise_prob)
        changes = replace(changes, noise=changes.noise * happens)
    if options.inverted_gamma_prob > 0:
        exponents = draws.uniform(each, *options.gamma_range)
        happens = _happens(draws, each, options.inverted_gamma_prob)
        changes = replace(changes, inverted_gamma=torch.where(happens, exponents, 1.0))
    if options.contrast_prob > 0:
        factors = draws.uniform(each, *options.contrast_range)
        happens = _happens(draws, each, options.contrast_prob)
        changes = replace(changes, contrast=torch.where(happens, factors, 1.0))
    return changes


def _happens(draws: Draws, size: tuple[int, ...], prob: float) -> Tensor:
    """Whether something of a probability happens, bool."""
    return draws.uniform(size) < prob


def _draw_geometry(
    size: torch.Size,
    options: Augmentation,
    draws: Draws,
    spacing_mm: Tensor | None,
    spatial_dims: int,
) -> Changes:
    """Draw flips, and rotations about the three axes in turn with a scale of all axes that may move."""
    batch = size[0]
    is_flipped = draws.uniform((batch, 3)) < options.flip_prob
    is_flipped &= torch.tensor([axis in options.flip_axes for axis in range(3)])
    if options.affine_prob == 0:
        return Changes(is_flipped)
    axes = tuple(range(spatial_dims)) if options.affine_axes is None else options.affine_axes
    degrees = draws.uniform((batch, 3), -options.rotate_degrees, options.rotate_degrees)
    scale = draws.uniform((batch, 1, 1), math.log(options.scale_range[0]), math.log(options.scale_range[1])).exp()
    if options.rotate_prob < 1:
        degrees *= _happens(draws, (batch, 1), options.rotate_prob)
    if options.scale_prob < 1:
        scale = torch.where(_happens(draws, (batch, 1, 1), options.scale_prob), scale, 1.0)
    moves = [axis in axes and size[axis + 2] > 1 for axis in (2, 1, 0)]  # grids count axes from the last
    for axis in range(3):
        if sum(moves) - moves[axis] < 2:
            degrees[:, axis] = 0
    is_moved = draws.uniform((batch,)) < options.affine_prob
    if not is_moved.any():
        return Changes(is_flipped)
    picks = is_moved.nonzero()[:, 0]
    matrices = rotation_matrices(degrees[picks].deg2rad()) / torch.where(torch.tensor(moves), scale[picks], 1.0)
    spacing = torch.ones(batch, 3) if spacing_mm is None else spacing_mm.cpu()
    half_mm = torch.tensor(size[:1:-1], dtype=torch.float32) / 2 * spacing[picks].flip(1)
    return Changes(is_flipped, moved=picks, matrices=matrices * half_mm[:, None, :] / half_mm[:, :, None])


def draw_crop_changes(count: int, law: CropChanges, generator: torch.Generator) -> Changes:
    """Draw independent changes for `count` crops."""

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device)

    is_flipped = chance(count, 3) < law.flip_prob
    turns = torch.randint(1, 4, (count,), generator=generator, device=generator.device)
    turns = turns * (chance(count) < law.quarter_turn_prob)
    shifts = (2.0 * chance(count) - 1.0) * law.shift * (chance(count) < law.shift_prob)
    return Changes(is_flipped, turns, shift=shifts)


def move_(images: Tensor, changes: Changes, *, are_classes: bool = False) -> Tensor:
    """Flip, then turn, then turn and scale by any amount, image by image and in place.

    Only images that change are copied. Nothing waits for the device if the changes were drawn on the CPU.

    Args:
        images: [N, C, X, Y, Z]; turned by 90 or 270 degrees only where x and y are equal.
        changes: Changes of N images.
        are_classes: What lies outside is no class; otherwise it is the image's border.

    Returns:
        The images.
    """
    if changes.is_flipped is not None:
        for axis in range(3):
            rows = _rows(changes.is_flipped[:, axis], images)
            images[rows] = images[rows].flip(2 + axis)
    if changes.quarter_turns is not None and images.shape[2] == images.shape[3]:
        for turns in (1, 2, 3):
            rows = _rows(changes.quarter_turns == turns, images)
            images[rows] = images[rows].rot90(turns, (2, 3))
    if changes.moved is not None:
        rows = changes.moved.to(images.device)
        theta = torch.cat([changes.matrices, torch.zeros(len(rows), 3, 1)], dim=2).to(images.device)
        before = images[rows]
        grid = F.affine_grid(theta, list(before.shape), align_corners=False)
        mode, around = ("nearest", "zeros") if are_classes else ("bilinear", "border")
        images[rows] = F.grid_sample(before, grid, mode=mode, padding_mode=around, align_corners=False)
    return images


def recolour_(images: Tensor, changes: Changes) -> Tensor:
    """Change the intensities of images [N, C, X, Y, Z] in place and return them.

    In this order: coarser voxels, blur, smooth factor, contrast, inverted gamma, gamma, factor, addend, noise.
    """
    if changes.coarse is not None:
        coarsen_(images, changes.coarse)
    if changes.blur is not None:
        blur_(images, changes.blur)
    if changes.bias is not None:
        images.mul_(bias_fields(changes.bias.to(images), tuple(images.shape[2:])))
    if changes.contrast is not None:
        change_contrast_(images, changes.contrast)
    if changes.inverted_gamma is not None:
        invert_gamma_(images, changes.inverted_gamma)
    drawn = changes.gamma, changes.scale, changes.shift
    gamma, scale, shift = (None if each is None else each.to(images)[:, None, None, None, None] for each in drawn)
    if gamma is not None and scale is not None and shift is not None:
        low, high = images.amin(dim=(2, 3, 4), keepdim=True), images.amax(dim=(2, 3, 4), keepdim=True)
        span = (high - low).clamp_min(1e-6)
        images.sub_(low).div_(span).clamp_(0, 1).pow_(gamma)
        scale, shift = span * scale, low * scale + shift
    if scale is not None:
        images.mul_(scale)
    if shift is not None:
        images.add_(shift)
    return images if changes.noise is None else images.add_(changes.noise.to(images.device))


def rotation_matrices(angles: Tensor) -> Tensor:
    """Rotations [M, 3, 3] about the three axes in turn, from angles [M, 3] in radians."""
    cos, sin = angles.cos(), angles.sin()
    one, zero = torch.ones_like(cos[:, 0]), torch.zeros_like(cos[:, 0])
    about_x = torch.stack([one, zero, zero, zero, cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0]], dim=1)
    about_y = torch.stack([cos[:, 1], zero, sin[:, 1], zero, one, zero, -sin[:, 1], zero, cos[:, 1]], dim=1)
    about_z = torch.stack([cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2], zero, zero, zero, one], dim=1)
    return about_x.view(-1, 3, 3) @ about_y.view(-1, 3, 3) @ about_z.view(-1, 3, 3)


def _rows(is_chosen: Tensor, images: Tensor) -> Tensor:
    """Numbers of the chosen images, on the images' device."""
    return is_chosen.nonzero().squeeze(1).to(images.device)
