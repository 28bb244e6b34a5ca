"""Views that know where they lie: crops turned, zoomed and shifted in millimetres, of slices and of volumes.

A view carries the affine from the indices of its voxel centres to RAS+ millimetres. What views have in common, and
where they lie in their image, is found by these affines, never by indices. Views are sampled from windows: boxes of
voxels as they were read, large enough for every view.

Shapes: B images of this process, V views of each, N = V * B views (one view of all images after the other), C channels,
X Y Z space (Z is 1 for slices, X Y where a network of two dimensions sees them), P points of each view.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from medssl_cli.base.strict import NonNegativeFloat, PositiveRange, Probability, Strict
from medssl_cli.data.augmentation import Changes, Draws, recolour_, rotation_matrices
from medssl_cli.imaging.geometry import Shape

THICK: Final = 2.0
"""Voxels that are so many times longer than wide make a stack of slices, which are not turned out of their planes."""
ROUNDING: Final = 1e-4

Degrees = Annotated[float, Field(ge=0, le=180)]


class PlacedAugmentation(Strict):
    """How a view differs from the image that it shows.

    Args:
        zoom: Voxels of the view on the way of one voxel of the image (least, most), log-uniformly; 1 is the grid that
            a task sees.
        rotate_degrees: Largest turn within the slices.
        tilt_degrees: Largest turn about each of the other axes; none of slices, nor of volumes of thick slices.
        box: What places are told from: the box of the `foreground`, or the whole `field` of view.
        shift: Largest distance between the middle of that box and what the views of an image are centred on, as a
            share of the box's side along each axis; 0.5 is anywhere in it.
        apart: Largest distance between that point and a view's centre, as a share of the view's side.
        flip_prob: Probability of a mirror image, per axis. Left and right are what labels are about.
        gamma_range: Exponent of intensities between the view's least and largest, log-uniformly.
        contrast: Factor 1 - contrast to 1 + contrast about the view's mean.
        brightness: Added, up to this much.
        noise_std: Largest standard deviation of noise.
    """

    zoom: PositiveRange = (0.8, 1.25)
    rotate_degrees: Degrees = 20.0
    tilt_degrees: Degrees = 10.0
    box: Literal["foreground", "field"] = "foreground"
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.5
    apart: Annotated[float, Field(ge=0, le=1)] = 0.0
    flip_prob: Probability = 0.0
    gamma_range: PositiveRange = (0.6, 1.6)
    contrast: Probability = 0.25
    brightness: NonNegativeFloat = 0.25
    noise_std: NonNegativeFloat = 0.2


class GentleViews(PlacedAugmentation):
    """Views that are hardly changed, for methods that compare what they make of an image with itself."""

    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    rotate_degrees: Degrees = 0.0
    tilt_degrees: Degrees = 0.0
    gamma_range: PositiveRange = (0.9, 1.1)
    contrast: Probability = 0.1
    brightness: NonNegativeFloat = 0.1
    noise_std: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class PlacedCrops:
    """Views that know where they lie, as a method declares them.

    Args:
        number: Views of each image.
        size: Voxels (x, y, z) of a view; z 1 for slices of volumes and for pictures.
        changes: How they differ from the image.
        slices_per_volume: Largest number of images that a volume of slices counts as, see `SliceRequest`.
        balance: Images of a modality that has n of them are drawn in proportion to n ** balance.
        small: Further views of another size of the same images, about the same points.
    """

    number: int
    size: Shape
    changes: PlacedAugmentation
    slices_per_volume: int = 8
    balance: float = 0.5
    small: "PlacedCrops | None" = None

    @property
    def is_flat(self) -> bool:
        """Whether these are views of slices."""
        return self.size[2] == 1

    @property
    def window(self) -> Shape:
        """Voxels that are read for all views of an image: around one point, far enough for each turn and zoom."""
        law = self.changes
        half = [extent * (0.5 / law.zoom[0] + law.apart) for extent in self.size]
        turns = [(0, 1, law.rotate_degrees)]
        if not self.is_flat:
            turns += [(1, 2, law.tilt_degrees), (2, 0, law.tilt_degrees)]
        for first, second, degrees in turns:
            half[first], half[second] = (
                _reach(half[first], half[second], degrees),
                _reach(half[second], half[first], degrees),
            )
        others = (0, 0, 0) if self.small is None else self.small.window
        x, y, z = (max(2 * math.ceil(extent) + 2, other) for extent, other in zip(half, others, strict=True))
        return x, y, 1 if self.is_flat else z


@dataclass(frozen=True)
class PlacedWindows:
    """Where windows lie, and their images; all on the CPU, in float64.

    Args:
        affines: Affines from indices of the window's voxels to RAS mm, [B, 4, 4].
        centres: Points in RAS mm that views lie about, [B, 3].
        boxes: Boxes from RAS mm to the image's reference box, along the image's own axes and from -1 to 1 inside,
            [B, 4, 4].
        fields: The same of all that the image shows, its field of view, [B, 4, 4].
        slice_numbers: Numbers of slices in their volumes, int64 [B].
        num_slices: Slices of the volume, int64 [B]; 1 for pictures.
    """

    affines: Tensor
    centres: Tensor
    boxes: Tensor
    fields: Tensor
    slice_numbers: Tensor
    num_slices: Tensor

    def __len__(self) -> int:
        return len(self.affines)


@dataclass(frozen=True)
class ViewPlaces:
    """Where the views of a step lie.

    Args:
        affines: Affines from indices of the view's voxels to RAS mm, float64 on the CPU, [N, 4, 4].
        size: Voxels (x, y, z) of a view.
        windows: Windows of the B images.
        is_shown: Which voxels show something of the image and not what stands for its surroundings, bool [N, X, Y, Z];
            [N, X, Y] of slices.
    """

    affines: Tensor
    size: Shape
    windows: PlacedWindows
    is_shown: Tensor

    @cached_property
    def _from_border(self) -> Tensor:
        """From places within the views, -1 to 1 from border to border, to indices, [4, 4]."""
        return _scaling(torch.tensor(self.size, dtype=torch.float64) / 2, offset=-0.5)

    def of_view(self, number: int) -> "ViewPlaces":
        """Where one view of each image lies."""
        batch = len(self.windows)
        rows = slice(number * batch, (number + 1) * batch)
        return ViewPlaces(self.affines[rows], self.size, self.windows, self.is_shown[rows])

    def to_world(self, places: Tensor) -> Tensor:
        """Points in RAS mm, float64 [N, P, 3], of places within the views, -1 to 1 from border to border."""
        return _moved(self.affines @ self._from_border, places.cpu())

    def to_view(self, points: Tensor) -> Tensor:
        """Places within the views, float64 [N, P, 3], of points in RAS mm; beyond -1 and 1 they lie outside."""
        return _moved(torch.linalg.inv(self.affines @ self._from_border), points.cpu())

    def in_field(self, points: Tensor) -> Tensor:
        """Which points in RAS mm [N, P, 3] lie within the image's field of view, bool [N, P]."""
        number = len(self.affines) // len(self.windows)
        return (_moved(self.windows.fields.repeat(number, 1, 1), points.cpu()).abs() <= 1 + ROUNDING).all(dim=2)

    def in_box(self) -> Tensor:
        """Place of each voxel in its image's reference box, -1 to 1 along the image's axes, float32 [N, X, Y, Z, 3].

        [N, X, Y, 3] of slices.
        """
        number = len(self.affines) // len(self.windows)
        found = coordinates(self.windows.boxes.repeat(number, 1, 1) @ self.affines, self.size, self.is_shown.device)
        return found[:, :, :, 0] if self.size[2] == 1 else found


def draw_affines(windows: PlacedWindows, crops: PlacedCrops, draws: Draws) -> Tensor:
    """Affines of the views of each image, float64 [N, 4, 4].

    Args:
        windows: Windows of this process's images.
        crops: How many, how large, how different.
        draws: Random draws of the step.
    """
    law, batch = crops.changes, len(windows)
    numbers = draws.uniform((batch, crops.number, 10)).double().transpose(0, 1).flatten(0, 1)
    zoom, angles, aside, mirror = numbers.split([1, 3, 3, 3], dim=1)
    axes = windows.affines[:, :3, :3].repeat(crops.number, 1, 1)
    spacing = axes.norm(dim=1)
    size = torch.tensor(crops.size, dtype=torch.float64)
    degrees = (2 * angles - 1) * _most_degrees(spacing, law, is_flat=crops.is_flat)
    steps = spacing / torch.exp(math.log(law.zoom[0]) + zoom * math.log(law.zoom[1] / law.zoom[0]))
    away = (2 * aside - 1) * law.apart * size * spacing
    signs = torch.where(mirror < law.flip_prob, -1.0, 1.0).double()
    if crops.is_flat:
        steps[:, 2], away[:, 2], signs[:, 2] = spacing[:, 2], 0.0, 1.0
    directions = axes / spacing[:, None]
    linear = (directions @ rotation_matrices(degrees.deg2rad())) * (steps * signs)[:, None]
    centres = windows.centres.repeat(crops.number, 1) + (directions @ away[..., None])[..., 0]
    affines = torch.eye(4, dtype=torch.float64).repeat(len(linear), 1, 1)
    affines[:, :3, :3] = linear
    affines[:, :3, 3] = centres - linear @ ((size - 1) / 2)
    return affines


def cut_placed(images: Tensor, windows: PlacedWindows, crops: PlacedCrops, draws: Draws) -> tuple[Tensor, ViewPlaces]:
    """Views of windows, and where they lie; beyond a window its border goes on.

    Args:
        images: Windows [B, C, X, Y, Z].
        windows: Where they lie.
        crops: What is wanted.
        draws: Random draws of the step.

    Returns:
        Views [N, C, X, Y, Z], [N, C, X, Y] of slices, with changed intensities; and their places.
    """
    affines = draw_affines(windows, crops, draws)
    to_index = torch.linalg.inv(windows.affines).repeat(crops.number, 1, 1) @ affines
    views = sampled(images, to_index, crops.size)
    shape = torch.tensor(images.shape[2:], dtype=torch.float64)
    ends = [_to_border(shape) @ to_index, windows.fields.repeat(crops.number, 1, 1) @ affines]
    inside = [coordinates(each, crops.size, images.device).abs() <= 1 + ROUNDING for each in ends]
    is_shown = torch.stack(inside).all(dim=-1).all(dim=0)
    recolour_views_(views, crops, draws)
    if crops.is_flat:
        views, is_shown = views[..., 0], is_shown[..., 0]
    return views, ViewPlaces(affines, crops.size, windows, is_shown)


def sampled(images: Tensor, to_index: Tensor, size: Shape) -> Tensor:
    """Images on other grids, linearly interpolated; the border of an image goes on beyond it.

    Args:
        images: [B, C, X, Y, Z].
        to_index: Matrices from indices of each grid's voxels to those of its image, float64 [V * B, 4, 4].
        size: Voxels (x, y, z) of a grid; with z 1, that of an image is 1 too.

    Returns:
        [V * B, C, *size].
    """
    dims = 2 if size[2] == 1 else 3
    shape = torch.tensor(images.shape[2:], dtype=torch.float64)
    extent = torch.tensor(size, dtype=torch.float64)
    matrices = _to_border(shape) @ to_index @ _scaling(extent / 2, offset=-0.5)
    # affine_grid counts axes from the last
    theta = torch.cat([matrices[:, :dims, :dims].flip(1, 2), matrices[:, :dims, 3:].flip(1)], dim=2).to(images)
    flat = images[..., 0] if dims == 2 else images
    found = []
    with torch.autocast(images.device.type, enabled=False):
        for own in theta.split(len(images)):
            grid = F.affine_grid(own, [len(images), images.shape[1], *size[:dims]], align_corners=False)
            found.append(F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False))
    views = torch.cat(found)
    return views[..., None] if dims == 2 else views


def features_at(maps: Tensor, places: Tensor) -> Tensor:
    """Features of points, linearly interpolated between those of a map's cells.

    Args:
        maps: [N, C, X, Y, Z] or [N, C, X, Y], of any resolution; it covers the view.
        places: Within the views, -1 to 1 from border to border, [N, P, 3].

    Returns:
        [N, P, C].
    """
    dims = maps.ndim - 2
    grid = places[..., :dims].flip(2).to(maps)[:, :, None]
    grid = grid if dims == 2 else grid[:, :, None]
    found = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.flatten(2).transpose(1, 2)


def coordinates(matrices: Tensor, size: Shape, device: torch.device | None = None) -> Tensor:
    """What affine maps make of the index of each voxel, float32 [N, X, Y, Z, 3] on a device.

    Args:
        matrices: [N, 4, 4].
        size: Voxels (x, y, z) of the grids.
        device: Where to.
    """
    columns = matrices.float().to(device)[:, :3].transpose(1, 2)
    x, y, z = (torch.arange(extent, device=device, dtype=torch.float32) for extent in size)
    along_x = x[:, None, None, None] * columns[:, None, None, None, 0]
    along_y = y[:, None, None] * columns[:, None, None, None, 1]
    along_z = z[:, None] * columns[:, None, None, None, 2]
    return along_x + along_y + along_z + columns[:, None, None, None, 3]


def recolour_views_(views: Tensor, crops: PlacedCrops, draws: Draws) -> Tensor:
    """Change the intensities of views [N, C, X, Y, Z] in place: gamma, contrast, brightness, noise; returns them."""
    law, number, batch = crops.changes, crops.number, len(views) // crops.number
    numbers = draws.uniform((batch, number, 4)).transpose(0, 1).flatten(0, 1)
    log_low, log_high = (math.log(end) for end in law.gamma_range)
    gamma = torch.exp(log_low + numbers[:, 0] * (log_high - log_low))
    factor = 1 + (2 * numbers[:, 1] - 1) * law.contrast
    added = (2 * numbers[:, 2] - 1) * law.brightness
    unchanged = torch.ones_like(factor)
    recolour_(views, Changes(gamma=gamma, scale=unchanged, shift=unchanged - 1))
    means, factor = views.mean(dim=(1, 2, 3, 4)), factor.to(views)
    recolour_(views, Changes(scale=factor, shift=added.to(views) + means * (1 - factor)))
    if law.noise_std > 0:
        noise = draws.normal((batch, number, *views.shape[1:])).transpose(0, 1).flatten(0, 1)
        views += (noise * (numbers[:, 3] * law.noise_std)[:, None, None, None, None]).to(views)
    return views


def _most_degrees(spacing: Tensor, law: PlacedAugmentation, *, is_flat: bool) -> Tensor:
    """Largest turn about each axis of images with these spacings, [N, 3]."""
    is_thick = spacing.amax(dim=1) > THICK * spacing.amin(dim=1)
    normal = torch.where(is_thick, spacing.argmax(dim=1), 2)
    if is_flat:
        normal = torch.full_like(normal, 2)
    tilt = torch.where(is_thick | is_flat, 0.0, law.tilt_degrees).double()
    return tilt[:, None].repeat(1, 3).scatter(1, normal[:, None], law.rotate_degrees)


def _reach(along: float, across: float, degrees: float) -> float:
    """How far a rectangle of half sides `along` and `across` reaches along the first, turned by up to an angle."""
    angle = min(math.radians(degrees), math.atan2(across, along))
    return along * math.cos(angle) + across * math.sin(angle)


def _scaling(factors: Tensor, *, offset: float) -> Tensor:
    """The map x -> factors * (x + 1) + offset along each axis, [4, 4]."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.diag(factors)
    matrix[:3, 3] = factors + offset
    return matrix


def _to_border(shape: Tensor) -> Tensor:
    """From indices of a grid of a shape [3] to places that run from -1 to 1 from border to border, [4, 4]."""
    return torch.linalg.inv(_scaling(shape / 2, offset=-0.5))


def _moved(matrices: Tensor, points: Tensor) -> Tensor:
    """Points [N, P, 3] under affine maps [N, 4, 4], float64."""
    return points.double() @ matrices[:, :3, :3].mT + matrices[:, None, :3, 3]
