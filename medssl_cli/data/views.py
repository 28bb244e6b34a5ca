"""Views: what a method declares of its input, as plain data, and the one function that makes it on the device.

Shapes: B images or volumes of this process, V views, R random crops, G grid crops, L labelled crops, S slices, C
channels, X Y Z space, N images of any kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl_cli.base.classes import WantedClasses
from medssl_cli.base.errors import UsageError
from medssl_cli.data.augmentation import Changes, CropChanges, Draws, draw_crop_changes, move_, recolour_
from medssl_cli.data.placed_views import PlacedCrops, PlacedWindows, ViewPlaces, cut_placed
from medssl_cli.data.slice_views import (
    Drawn,
    PictureCrops,
    SliceAugmentation,
    cut_views,
    drawn_views,
    keep_window,
    own_numbers,
    resized,
)
from medssl_cli.data.volume_changes import draw_one_of_seven
from medssl_cli.imaging.geometry import Shape


@dataclass(frozen=True)
class BoxCrops:
    """Crops of a box of a volume: those of the regular grid that fills it, and others at random places.

    Args:
        grid: Crops side by side along x, y, z.
        num_random: Crops at random places of each box.
        cut_size: Size of a crop in voxels when it is cut; the box is resized first, so that the grid fills it.
        size: That crops are resized to after cutting.
        num_starts: Legal first voxels of a random crop along x, y, z.
        changes: What may happen to each crop.
        has_places: Tell where in its box each voxel of the random crops lies.
    """

    grid: Shape
    num_random: int
    cut_size: Shape
    size: Shape
    num_starts: Shape
    changes: CropChanges
    has_places: bool = False


@dataclass(frozen=True)
class LabelRequest:
    """Labelled crops that a method wants beside the views of each step.

    Args:
        label_set: Name of the label maps in the cache.
        wanted: Which of their names or values make up which class.
        size: Size of a crop in voxels (x, y, z).
        batch_size: Crops per batch on all devices together.
        foreground_prob: Share of crops that show a random voxel of a random class.
        option: Where a recipe sets this, for messages.
        changes: What may happen to each crop, and to its label map with it.
    """

    label_set: str
    wanted: WantedClasses
    size: Shape
    batch_size: int
    foreground_prob: float
    option: str
    changes: CropChanges


@dataclass(frozen=True)
class StackRequest:
    """Steps that show whole volumes as stacks of slices, between those that show single images.

    Args:
        batch_size: Volumes per step on all devices together.
        max_slices: Largest number of slices of a volume in one step: a window at a random place, of every or every
            second, third ... slice.
        every: Number of steps of which one shows volumes, while the others show single images; 1 for nothing but
            volumes.
        crops: Views of each volume, all slices of which are cut and changed alike.
        keep: Least share of a volume's slices that a view keeps; it loses some at the ends.
        are_whole: Instead of all this, each view is the whole canvas with all slices and one of seven changes of the
            volume (`volume_changes`).
        is_centred: The window is that of the middle slices, each of them.
    """

    batch_size: int
    max_slices: int
    every: int
    crops: PictureCrops
    keep: float = 1.0
    are_whole: bool = False
    is_centred: bool = False


@dataclass(frozen=True)
class SliceRequest:
    """2D images that a method wants instead of boxes: radiographs, and slices across the third axis of volumes.

    Args:
        canvas: Edge in pixels of the square that each is brought to, with its proportions kept.
        crops: Views of each single image, of one kind after the other.
        changes: What may happen to each view.
        slices_per_volume: A volume counts as at most so many images: its slices in equal ranges, of each range one at
            random, because neighbours are nearly the same image.
        balance: Images of a modality that has n of them are drawn in proportion to n ** balance.
        stacks: Steps with volumes, if there are any.
    """

    canvas: int
    crops: tuple[PictureCrops, ...]
    changes: SliceAugmentation
    slices_per_volume: int = 8
    balance: float = 0.5
    stacks: StackRequest | None = None


@dataclass(frozen=True)
class ViewRequest:
    """What a method declares of its input.

    Args:
        size: Size of the box in voxels (x, y, z) that is read of each volume.
        crops: Views that are cut from the box; None for the box itself, as it is.
        labelled: Labelled crops, if it learns from labels too.
        slices: 2D images instead of boxes.
        placed: Views that know where they lie instead of either, of the size of `size`.
    """

    size: Shape
    crops: BoxCrops | None = None
    labelled: LabelRequest | None = None
    slices: SliceRequest | None = None
    placed: PlacedCrops | None = None

    @property
    def takes_pictures(self) -> bool:
        """Whether projections and pictures do beside volumes."""
        return self.slices is not None or self.size[2] == 1


@dataclass(frozen=True)
class Labelled:
    """Labelled crops of one step: images [L, C, X, Y, Z] and their classes, int64 [L, X, Y, Z]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Slices:
    """What is known of the images of a step that shows 2D images.

    Args:
        ids: Place of each image (or, if `are_volumes`, of each volume) in the training set, int64 [B].
        is_present: False where a slice is padding or a view has lost it, bool [B, S] as read, [V * B, S] of views.
        positions_mm: Positions in mm of the slices along their normal, float32 of the same shape; 0 for a single image.
        are_volumes: Whether the step shows stacks; otherwise S is 1.
        levels: Levels of each single slice within its volume, -1 to 1, float32 [B] on the CPU; NaN of pictures, thin
            volumes.
    """

    ids: Tensor
    is_present: Tensor
    positions_mm: Tensor
    are_volumes: bool
    levels: Tensor | None = None


@dataclass(frozen=True)
class Views:
    """One step's input.

    Args:
        images: All views of one size together, one tensor per size; a method does not change them in place. Of boxes
            [B, C, X, Y, Z]; of `BoxCrops` [B * R + B * G, C, x, y, z], without z if it is 1, the random crops of one
            volume after the other, then the crops of its grid; of single 2D images [V * B, C, X, Y], one view of all
            images after the other; of stacks [V * B, S, C, X, Y]; of views that know where they lie
            [V * B, C, X, Y, Z], or [V * B, C, X, Y].
        draws: Source of all randomness in the loss; the engine seeds it from (seed, step), so a resumed run draws the
            same numbers, on the CPU. All processes that share a step draw for the images of all of them, and each
            takes its own rows.
        offsets: First voxels of the random crops, on the CPU, integers [B, R, 3].
        box_places: Where in its box each voxel of the random crops lies, from -1 to 1 along its axes, float32
            [B * R, 3, x, y, z], without z if it is 1; if they were asked for.
        labelled: This process's labelled crops, if the method asked for some.
        slices: What is known of 2D images.
        drawn: Record of how each view of single 2D images was made, for each kind of views that was asked for.
        places: Where views lie that know it.
        patients: Number of the patient of each image, or volume, int64 [B]; None where nobody knows.
    """

    images: tuple[Tensor, ...]
    draws: Draws
    offsets: Tensor | None = None
    box_places: Tensor | None = None
    labelled: Labelled | None = None
    slices: Slices | None = None
    drawn: tuple[Drawn, ...] = ()
    places: ViewPlaces | None = None
    patients: Tensor | None = None


def make_views(
    request: ViewRequest,
    images: Tensor,
    draws: Draws,
    *,
    labelled: Labelled | None = None,
    slices: Slices | None = None,
    windows: PlacedWindows | None = None,
    patients: Tensor | None = None,
) -> Views:
    """Make what a method declares, on the device of the images.

    Args:
        request: The declaration.
        images: Boxes [B, C, X, Y, Z] of the requested size, squares [B, S, C, X, Y] of 2D images, or windows
            [B, C, X, Y, Z] for views that know where they lie.
        draws: Draws of the step.
        labelled: Labelled crops as they were read.
        slices: What is known of 2D images.
        windows: Where windows lie.
        patients: Number of the patient of each image, [B].

    Raises:
        UsageError: `E_CANVAS`, the boxes have another size.
    """
    views = Views((images,), draws, labelled=labelled, slices=slices, patients=patients)
    if request.slices is not None and slices is not None:
        return _of_pictures(request.slices, views, slices)
    size = request.size if request.placed is None else request.placed.window
    if tuple(images.shape[2:]) != size:
        raise UsageError(
            "E_CANVAS",
            f"views are made of boxes of {size} voxels, not of {tuple(images.shape[2:])}",
            hint="the size follows from method and data.crop_size; change one of them, or the spacing",
        )
    if request.placed is not None and windows is not None:
        cut, places = cut_placed(images, windows, request.placed, draws)
        small = request.placed.small
        others = () if small is None else (cut_placed(images, windows, small, draws)[0],)
        return replace(views, images=(cut, *others), places=places)
    if request.crops is not None:
        views = _of_box(request.crops, views)
    if request.labelled is not None and labelled is not None:
        changes = _own_changes(request.labelled.changes, draws, len(labelled.images), [1])
        changed = recolour_(move_(labelled.images.clone(), changes), changes)
        moved = move_(labelled.labels[:, None].clone(), changes, are_classes=True)[:, 0]
        views = replace(views, labelled=Labelled(changed, moved))
    return views


def _of_box(crops: BoxCrops, views: Views) -> Views:
    """Random crops and grid crops of boxes, each changed on its own; of boxes of one slice 2D images."""
    [boxes], draws = views.images, views.draws
    batch, filled = len(boxes), times(crops.grid, crops.cut_size)
    canvas = boxes if tuple(boxes.shape[2:]) == filled else F.interpolate(boxes, filled, mode="trilinear")
    offsets = draw_offsets((batch * draws.num_processes, crops.num_random), crops.num_starts, draws.generator)
    offsets = offsets[draws.rank * batch : (draws.rank + 1) * batch]
    cut = [crops_at(canvas, offsets, crops.cut_size).flatten(0, 1), grid_crops(canvas, crops.cut_size).flatten(0, 1)]
    images = torch.cat(cut)
    if crops.cut_size != crops.size:
        images = F.interpolate(images, crops.size, mode="trilinear", align_corners=True)
    changes = _own_changes(crops.changes, draws, batch, [crops.num_random, prod(crops.grid)])
    changed, places = recolour_(move_(images, changes), changes), None
    if crops.has_places:
        places = _places_in_box(offsets.flatten(0, 1), crops, changes.first(batch * crops.num_random)).to(images.device)
    if filled[2] == 1:
        changed, places = changed[..., 0], None if places is None else places[..., 0]
    return replace(views, images=(changed,), offsets=offsets, box_places=places)


def _places_in_box(offsets: Tensor, crops: BoxCrops, changes: Changes) -> Tensor:
    """Where in their boxes voxels of crops lie that begin at offsets [N, 3] and are changed, [N, 3, x, y, z]."""
    filled = torch.tensor(times(crops.grid, crops.cut_size))
    axes = [
        torch.linspace(0, cut - 1, wanted) if wanted > 1 else torch.tensor([(cut - 1) / 2])
        for cut, wanted in zip(crops.cut_size, crops.size, strict=True)
    ]
    within = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    starts = offsets[:, :, None, None, None]
    places = 2 * (starts + within + 0.5) / filled[:, None, None, None] - 1
    return move_(places.float(), changes)


def _of_pictures(request: SliceRequest, views: Views, known: Slices) -> Views:
    """Views of single 2D images, or of stacks of slices of which a view may lack some at the ends."""
    [images], draws = views.images, views.draws
    if not known.are_volumes:
        cut = [drawn_views(images, kind, request.changes, draws) for kind in request.crops]
        groups, drawn = [kind[:, 0] for kind, _ in cut], tuple(parameters for _, parameters in cut)
        is_one_size = len({kind.size for kind in request.crops}) == 1
        return replace(views, images=(torch.cat(groups),) if is_one_size else tuple(groups), drawn=drawn)
    assert request.stacks is not None
    if request.stacks.are_whole:
        return _of_whole_stacks(request.stacks.crops, views, known)
    crops, number = request.stacks.crops, request.stacks.crops.number
    numbers = own_numbers((number, len(images), 2), draws)
    present = keep_window(known.is_present.repeat(number, 1), numbers, keep=request.stacks.keep)
    shown = cut_views(images, crops, request.changes, draws)
    slices = replace(known, is_present=present, positions_mm=known.positions_mm.repeat(number, 1))
    return replace(views, images=(shown,), slices=slices)


def _of_whole_stacks(crops: PictureCrops, views: Views, known: Slices) -> Views:
    """Views of whole stacks; in one that is flipped along its slices, the last slice comes first."""
    [images], number = views.images, crops.number
    with torch.autocast(images.device.type, enabled=False):
        volumes = resized(images, crops.size).permute(0, 2, 3, 4, 1).repeat(number, 1, 1, 1, 1)
        changes = draw_one_of_seven(volumes.shape, number, views.draws)
        changed = recolour_(move_(volumes, changes), changes).permute(0, 4, 1, 2, 3).contiguous()
    assert changes.is_flipped is not None
    is_turned = changes.is_flipped[:, 2:].to(known.is_present.device)
    present, positions = (each.repeat(number, 1) for each in (known.is_present, known.positions_mm))
    slices = replace(
        known,
        is_present=torch.where(is_turned, present.flip(1), present),
        positions_mm=torch.where(is_turned, positions.flip(1), positions),
    )
    return replace(views, images=(changed,), slices=slices)


def grid_crops(canvas: Tensor, size: Shape) -> Tensor:
    """Cut a canvas into the crops of the regular grid that fills it.

    Args:
        canvas: [B, C, X, Y, Z], a multiple of `size` along each axis.
        size: Crop size (x, y, z) in voxels.

    Returns:
        [B, G, C, x, y, z]; the crop of grid cell (i, j, k) has the index (i * gy + j) * gz + k.
    """
    grid = _windows(canvas, size, steps=size)
    batch, channels = canvas.shape[:2]
    return grid.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(batch, -1, channels, *size)


def crops_at(canvas: Tensor, offsets: Tensor, size: Shape) -> Tensor:
    """Cut crops whose first voxels lie at given places.

    Args:
        canvas: [B, C, X, Y, Z].
        offsets: Index of each crop's first voxel, [B, R, 3].
        size: Crop size (x, y, z) in voxels.

    Returns:
        [B, R, C, x, y, z].
    """
    x, y, z = offsets.to(canvas.device).unbind(dim=-1)
    batch = torch.arange(canvas.shape[0], device=canvas.device)[:, None].expand_as(x)
    return _windows(canvas, size, steps=(1, 1, 1)).permute(0, 2, 3, 4, 1, 5, 6, 7)[batch, x, y, z]


def draw_offsets(shape: Sequence[int], num_starts: Shape, generator: torch.Generator) -> Tensor:
    """Draw first voxels uniformly from {0, ..., num_starts - 1} per axis, integers [*shape, 3]."""
    draws = [torch.randint(count, tuple(shape), generator=generator, device=generator.device) for count in num_starts]
    return torch.stack(draws, dim=-1)


def own_rows(volumes: int, counts: Sequence[int], draws: Draws) -> Tensor:
    """Places of this process's crops among those of a step, where crops of each kind follow one another.

    Args:
        volumes: Volumes of each process.
        counts: Crops of each kind per volume.
        draws: Draws of the step.
    """
    own = torch.arange(volumes) + draws.rank * volumes
    rows, first = [], 0
    for count in counts:
        rows.append(first + (own[:, None] * count + torch.arange(count)).flatten())
        first += volumes * draws.num_processes * count
    return torch.cat(rows)


def _own_changes(law: CropChanges, draws: Draws, volumes: int, counts: Sequence[int]) -> Changes:
    """Changes of this process's crops; see `own_rows`."""
    drawn = draw_crop_changes(volumes * draws.num_processes * sum(counts), law, draws.generator)
    assert drawn.is_flipped is not None
    assert drawn.quarter_turns is not None
    assert drawn.shift is not None
    rows = own_rows(volumes, counts, draws)
    return Changes(drawn.is_flipped[rows], drawn.quarter_turns[rows], shift=drawn.shift[rows])


def times(cells: Shape, size: Shape) -> Shape:
    """Voxels of so many cells of a size along x, y, z."""
    x, y, z = (count * extent for count, extent in zip(cells, size, strict=True))
    return x, y, z


def _windows(canvas: Tensor, size: Shape, *, steps: Shape) -> Tensor:
    """All boxes of a canvas as a view, [B, C, starts along x, y, z, x, y, z]."""
    for axis in range(3):
        canvas = canvas.unfold(2 + axis, size[axis], steps[axis])
    return canvas
