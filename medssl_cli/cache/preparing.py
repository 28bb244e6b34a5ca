"""From cached images to the files of a prepared view: voxels on the grid that a recipe trains on, points of each class.

The description comes last and makes the others count.
"""

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import MedsslError
from medssl_cli.base.files import remove_temporaries, storage_errors, write_atomic, write_json
from medssl_cli.cache.arrays import write_array
from medssl_cli.cache.prepared_views import PreparedView
from medssl_cli.cache.store import Cache
from medssl_cli.cache.writers import make_private
from medssl_cli.imaging.placement import GridPlacement, brought_to, on_one_grid, placement_of
from medssl_cli.imaging.preprocessing import on_grid
from medssl_cli.imaging.volume import Volume

MAX_POINTS_PER_CLASS: Final = 1000


def prepare_view(task: PreparedView, cache: Cache) -> MedsslError | None:
    """Write the prepared files of one item; its `.json` comes last and makes them count."""
    try:
        stored = [cache.read_image(cache.record(item_id)) for item_id in task.item_ids]
        folders = {task.image_path(number).parent for number in range(len(task.item_ids))}
        with storage_errors("a prepared image"):
            for folder in folders:
                make_private(folder, below=task.cache_root)
        for folder in folders:
            remove_temporaries(folder)
        images = on_one_grid(stored)
        placement = placement_of(images, task.preprocessing)
        channels = []
        for number, image in enumerate(images):
            is_native = placement.is_identity and _is_same_grid(stored[number], stored[0])
            channels.append(_prepare_channel(task, number, image, placement, is_native=is_native))
        document: dict[str, Any] = {"shape": placement.shape, "affine": placement.affine.tolist(), **channels[0]}
        if len(channels) > 1:
            document["beside"] = channels[1:]
        if task.label_set is not None:
            document["label_is_stored"] = _prepare_label(task, cache, stored[0], placement)
        write_json(task.description, document)
    except MedsslError as error:
        return error
    return None


def _prepare_channel(
    task: PreparedView, number: int, image: Volume, placement: GridPlacement, *, is_native: bool
) -> dict[str, Any]:
    """Write one channel unless it is used where it lies, and say what the description says of it."""
    voxels, intensity = on_grid(image.voxels, placement, task.preprocessing.rules[number])
    if not is_native and not task.image_path(number).exists():
        write_array(task.image_path(number), voxels[0])
    rule = [intensity.low, intensity.high, intensity.shift, intensity.scale]
    return {"intensity": rule, "is_stored": not is_native}


def _is_same_grid(image: Volume, first: Volume) -> bool:
    return image.shape == first.shape and np.array_equal(image.affine, first.affine)


def _prepare_label(task: PreparedView, cache: Cache, first: Volume, placement: GridPlacement) -> bool:
    """Write a label map and points of its classes; returns whether it is another one than the cache's."""
    stored = cache.read_label(cache.record(task.label_item), str(task.label_set))
    label = placement.labels(brought_to(first, stored, is_label=True).voxels)[0]
    is_stored = not (placement.is_identity and _is_same_grid(stored, first))
    if is_stored:
        write_array(task.label_path, label)
    points = {f"class_{value}": found for value, found in _points(label).items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **points)
    write_atomic(task.points_path, buffer.getvalue())
    return is_stored


def _points(label: NDArray[np.generic]) -> dict[int, NDArray[np.int32]]:
    """Up to `MAX_POINTS_PER_CLASS` evenly chosen voxels of each class."""
    found = {}
    for value in np.unique(label):
        if value:
            where = np.argwhere(label == value).astype(np.int32)
            picks = np.linspace(0, len(where) - 1, min(len(where), MAX_POINTS_PER_CLASS)).astype(int)
            found[int(value)] = where[picks]
    return found
