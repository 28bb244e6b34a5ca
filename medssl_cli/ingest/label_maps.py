"""Label maps that are files of their own, put on the grids of their images. In the child processes of an ingest."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.classes import MAX_VALUE
from medssl_cli.base.errors import InputError
from medssl_cli.base.names import unique_names
from medssl_cli.cache.store import Cache
from medssl_cli.formats.layouts import LabelFile
from medssl_cli.formats.loaded import LoadedImage, exif_orientation
from medssl_cli.formats.open import open_images, value_names
from medssl_cli.imaging.geometry import Shape, corner_displacement_mm, is_same_grid, turned_onto
from medssl_cli.imaging.volume import Volume
from medssl_cli.ingest.failures import Failure, as_values
from medssl_cli.ingest.tasks import LabelTask, Overlap, StoredImage, StoredLabel

MAX_SET_NAME: Final = 32
MAX_DIFFERENT: Final = 256
"""Values of a label map, background among them. An image that lies among labels has more."""
LEAST_LEFT: Final = 0.5
"""Share of its voxels that a structure keeps where the next one takes what both mark, by the rule `settle`."""
_WHITE: Final = (255, 65_535)

Pair = tuple[LabelFile, str]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Structures:
    """Structures as label maps, the background being 0.

    Args:
        parts: Maps `[X, Y, Z]` that share no value: one, or several where structures are kept though they overlap.
        num_shared: Voxels that more than one structure marks.
    """

    parts: tuple[NDArray[np.uint16], ...]
    num_shared: int


class PackedMasks(Sequence[Mask]):
    """Masks of one shape `[X, Y, Z]` at a bit per voxel: a hundred organs of a large scan fit into memory.

    Args:
        shape: Shape of each of them.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape, self._bits = shape, list[NDArray[np.uint8]]()

    def append(self, mask: Mask) -> None:
        """Add one."""
        self._bits.append(np.packbits(mask.ravel()))

    def __len__(self) -> int:
        return len(self._bits)

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mask]: ...
    def __getitem__(self, index: int | slice) -> Mask | Sequence[Mask]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return np.unpackbits(self._bits[index], count=math.prod(self._shape)).reshape(self._shape).astype(bool)


def store_labels(task: LabelTask) -> list[StoredLabel | Failure]:
    """Put the label maps of one item into the cache, or say why not, one answer per label.

    Files of one set that hold one structure each become one label map.
    """
    answers: dict[int, StoredLabel | Failure] = {}
    structures: dict[str, list[int]] = defaultdict(list)
    for index, (label, kind) in enumerate(task.labels):
        if label.class_name:
            structures[label.set_name].append(index)
        else:
            answers[index] = _store_label((task, label, kind))
    for indices in structures.values():
        joint = _store_structures((task, tuple(task.labels[index] for index in indices)))
        answers |= dict.fromkeys(indices, joint)
    return [answers[index] for index in range(len(task.labels))]


@as_values
def _store_label(arguments: tuple[LabelTask, LabelFile, str]) -> StoredLabel:
    task, label, kind = arguments
    loaded = _read_label(task, label, kind)
    segments = value_names(label.source, kind)
    names = label.classes if label.classes is not None else segments or _names_beside(label) or None
    volume = _on_grid(loaded, task.image, is_cropped=bool(segments))
    if names is None or len(names) == 1:
        volume = _white_as(volume, next(iter(names)) if names else 1, label.ignore)
    present = {int(value) for value in _values(volume)} - {0}
    known = {label.ignore} if label.ignore is not None else set()
    if names is not None and not present <= {*names, *known}:
        undeclared = ", ".join(map(str, sorted(present - {*names, *known})[:10]))
        raise InputError("E_LABEL_VALUES", f"values that are not declared: {undeclared}")
    if names is None:
        names = {value: f"class_{value}" for value in sorted(present - known)}
    noted = {"W_LABEL_IGNORE": present & known, "W_LABEL_BY_CONTENT": label.is_by_content}
    warnings = (*loaded.warnings, *(code for code, holds in noted.items() if holds))
    return _published(task, label, volume, names, warnings)


def _names_beside(label: LabelFile) -> dict[int, str]:
    """Names of values that a table beside the file gives."""
    if label.names_below is None or not isinstance(label.source, Path):
        return {}
    from medssl_cli.formats.bids import read_value_names

    return read_value_names(label.source, label.names_below)


@as_values
def _store_structures(arguments: tuple[LabelTask, tuple[Pair, ...]]) -> StoredLabel:
    """Files of one structure each, in order of their names; several of one name are one structure."""
    task, pairs = arguments
    ordered = sorted(pairs, key=lambda pair: pair[0].class_name or "")
    written = list(dict.fromkeys(label.class_name or "" for label, _ in ordered))
    names = unique_names(written)
    if len(names) > MAX_VALUE:
        raise InputError("E_LABEL_VALUES", f"{len(names)} structures; a label map holds {MAX_VALUE}")
    masks = PackedMasks(task.image.shape)
    warnings: dict[str, None] = {}
    volume: Volume | None = None
    for _, members in groupby(ordered, key=lambda pair: pair[0].class_name or ""):
        union: Mask = np.zeros(task.image.shape, bool)
        for label, kind in members:
            loaded = _read_label(task, label, kind)
            volume = _on_grid(loaded, task.image)
            _values(volume)
            union |= volume.voxels[0] != 0
            warnings |= dict.fromkeys(loaded.warnings)
        masks.append(union)
    if volume is None:
        raise AssertionError("no structures")
    found = merge(masks, task.overlap)
    message = ""
    if found.num_shared:
        warnings["W_LABEL_OVERLAP"] = None
        message = f"W_LABEL_OVERLAP: {found.num_shared} voxels, rule {task.overlap}"
    is_new = False
    for number, part in enumerate(found.parts, start=1):
        own = {
            value: name for value, name in enumerate(names, start=1) if len(found.parts) == 1 or (part == value).any()
        }
        label = pairs[0][0] if number == 1 else replace(pairs[0][0], set_name=f"{pairs[0][0].set_name}{number}")
        is_new |= _published(task, label, replace(volume, voxels=part[None]), own, ()).is_new
    if not any(part.any() for part in found.parts):
        warnings["W_EMPTY_LABEL"] = None
    return StoredLabel(is_new, tuple(warnings), message)


def merge(masks: Sequence[Mask], rule: Overlap) -> Structures:
    """Structures as label maps; the n-th has the value n.

    Args:
        masks: `[X, Y, Z]` each.
        rule: Who has a voxel that several mark. "settle": the last, as in TotalSegmentator, as long as each structure
            keeps half of its voxels; "first", "last", "smallest": that one, whatever is left of the others; "parts":
            all, in as many maps as are needed; "refuse": nobody.

    Raises:
        InputError: `E_SEGMENT_OVERLAP`.
    """
    sizes = [int(mask.sum()) for mask in masks]
    depth = np.zeros(masks[0].shape, np.uint16)
    for mask in masks:
        depth += mask
    num_shared = int((depth > 1).sum())
    if num_shared and rule == "refuse":
        raise InputError("E_SEGMENT_OVERLAP", f"{num_shared} voxels belong to several of {len(masks)} structures")
    if num_shared and rule == "parts":
        return Structures(_parts(masks), num_shared)
    order = list(range(len(masks)))
    if rule == "first":
        order.reverse()
    elif rule == "smallest":
        order.sort(key=lambda index: (-sizes[index], index))
    merged = np.zeros(masks[0].shape, np.uint16)
    for index in order:
        merged[masks[index]] = index + 1
    if num_shared and rule == "settle":
        left = np.bincount(merged.ravel(), minlength=len(masks) + 1)[1:]
        for index, (size, kept) in enumerate(zip(sizes, left, strict=True), start=1):
            if kept < LEAST_LEFT * size:
                raise InputError(
                    "E_SEGMENT_OVERLAP",
                    f"structure {index} of {len(masks)} would keep {kept} of {size} voxels",
                    hint="choose who has them with --overlap: first, last, smallest; or parts, which keeps both",
                )
    return Structures((merged,), num_shared)


def _parts(masks: Sequence[Mask]) -> tuple[NDArray[np.uint16], ...]:
    """Each structure in the first map in which it meets no other."""
    parts: list[NDArray[np.uint16]] = []
    for value, mask in enumerate(masks, start=1):
        part = next((part for part in parts if not part[mask].any()), None)
        if part is None:
            part = np.zeros(mask.shape, np.uint16)
            parts.append(part)
        part[mask] = value
    return tuple(parts)


def _published(
    task: LabelTask, label: LabelFile, volume: Volume, names: dict[int, str], warnings: tuple[str, ...]
) -> StoredLabel:
    found = warnings if volume.voxels.any() else (*warnings, "W_EMPTY_LABEL")
    cache = Cache(task.cache_root)
    label_set = f"{task.label_set}-{label.set_name}"[:MAX_SET_NAME] if label.set_name else task.label_set
    is_new = cache.add_label(
        task.image.item_id,
        label_set,
        volume,
        names,
        ignore=label.ignore,
        regions=label.regions,
        dry_run=task.dry_run,
    )
    return StoredLabel(is_new, found)


def _read_label(task: LabelTask, label: LabelFile, kind: str) -> LoadedImage:
    policy = replace(task.policy, split_4d=False)
    (image,) = open_images(label.source, policy, kind=kind, is_label=True)
    _check_orientation(image, task.image)
    return image


def _check_orientation(loaded: LoadedImage, image: StoredImage) -> None:
    """Refuse a label map that was not turned as its picture was: nothing says which way up it was drawn."""
    if exif_orientation(loaded.repairs) != image.orientation:
        raise InputError(
            "E_LABEL_ORIENTATION",
            f"a picture of EXIF orientation {image.orientation}, a label of {exif_orientation(loaded.repairs)}",
        )


def _on_grid(loaded: LoadedImage, image: StoredImage, *, is_cropped: bool = False) -> Volume:
    """A label map turned onto the image's grid, if it has the same voxel centres; 3D Slicer may crop it."""
    volume = loaded.volume
    if volume.shape == image.shape and is_same_grid(image.affine, volume.affine, image.shape):
        return volume
    turned = turned_onto(volume.voxels, volume.affine, image.affine, image.shape, is_cropped=is_cropped)
    if turned is not None:
        return replace(volume, voxels=np.ascontiguousarray(turned), affine=image.affine)
    if volume.shape != image.shape:
        raise InputError("E_LABEL_GRID_MISMATCH", f"the label has {volume.shape} voxels, the image {image.shape}")
    distance = corner_displacement_mm(image.affine, volume.affine, image.shape)
    raise InputError("E_LABEL_GRID_MISMATCH", f"the label lies up to {distance:.3g} mm away from the image")


def _white_as(volume: Volume, value: int, ignore: int | None) -> Volume:
    """A mask of 0 and 255 (or 65,535), the white of pictures, has the value of its only class instead."""
    found = np.unique(volume.voxels).tolist()
    if found not in [[0, white] for white in _WHITE if white != ignore]:
        return volume
    return replace(volume, voxels=np.where(volume.voxels != 0, value, 0))


def _values(volume: Volume) -> NDArray[np.generic]:
    """The values of a label map, which must be whole numbers that it can hold."""
    values = np.unique(volume.voxels)
    if values[0] < 0 or values[-1] > MAX_VALUE or (values != np.rint(values)).any():
        raise InputError(
            "E_LABEL_VALUES", f"values from {values[0]:g} to {values[-1]:g} are not whole numbers from 0 to {MAX_VALUE}"
        )
    if len(values) > MAX_DIFFERENT:
        raise InputError("E_LABEL_VALUES", f"{len(values)} different values: this is an image, not a label map")
    return values
