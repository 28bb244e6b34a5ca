"""Prepared views: cached images on the grid that a recipe trains on, made on demand and safe to delete.

Only geometry is stored, so every recipe with the same orientation and spacing shares the files. An image that is on
the wanted grid already is used where it lies.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.arrays import write_array
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.cache.writers import make_private
from medssl_cli.errors import MedsslError
from medssl_cli.files import remove_temporaries, sha256_json, storage_errors, write_atomic, write_json
from medssl_cli.imaging.geometry import Affine, Shape
from medssl_cli.imaging.preprocessing import Intensity, intensity_of, needs_new_grid, to_grid
from medssl_cli.imaging.volume import Volume
from medssl_cli.parallel import available_cores, supervised_map
from medssl_cli.recipe import Preprocessing

VERSION: Final = 1
MAX_POINTS_PER_CLASS: Final = 1000
TIMEOUT_S: Final = 600.0
INLINE_LIMIT: Final = 400


@dataclass(frozen=True)
class PreparedItem:
    """One image ready for cropping.

    Args:
        item_id: Of the cached item.
        shape: Size (X, Y, Z) on the prepared grid.
        affine: Of the prepared grid.
        intensity: Rule that turns stored values into network input.
        image: File of the voxels.
        label: File of the label map, if one was asked for.
        points: For each class present, some of its voxels `[N, 3]`.
    """

    item_id: str
    shape: Shape
    affine: Affine
    intensity: Intensity
    image: Path
    label: Path | None
    points: dict[int, NDArray[np.int32]]


@dataclass(frozen=True)
class _Task:
    cache_root: Path
    record: ItemRecord
    preprocessing: Preprocessing
    label_set: str | None


def prepare(
    cache: Cache,
    records: Sequence[ItemRecord],
    preprocessing: Preprocessing,
    *,
    label_set: str | None = None,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[PreparedItem]:
    """Bring items onto a recipe's grid; what was prepared before is not touched.

    Args:
        cache: Where they are.
        records: Which.
        preprocessing: The recipe's; its intensity rule is resolved per image, not stored.
        label_set: Prepare this label map too.
        num_workers: Child processes for new work; all cores by default.
        progress: Called with (done, total).

    Raises:
        MedsslError: The first item's failure; prepared items stay.
    """
    tasks = [_Task(cache.root, record, preprocessing, label_set) for record in records]
    missing = [task for task in tasks if not _meta_path(task).is_file()]
    done = len(tasks) - len(missing)
    for outcome in _run(cache, missing, num_workers or available_cores()):
        if isinstance(outcome, MedsslError):
            raise outcome
        done += 1
        if progress is not None:
            progress(done, len(tasks))
    return [_load(cache, task) for task in tasks]


def _run(cache: Cache, tasks: list[_Task], num_workers: int) -> Any:
    """Few or small images are not worth starting processes for."""
    voxels = sum(float(np.prod(task.record.shape)) for task in tasks)
    if num_workers == 1 or voxels < INLINE_LIMIT * 64**3:
        yield from (_prepare_one(task, cache) for task in tasks)
        return
    for outcome in supervised_map(_prepare_in_child, tasks, num_workers=num_workers, timeout_s=TIMEOUT_S):
        if outcome.failure:
            yield MedsslError("E_WORKER_CRASH", f"preparing item {outcome.task.record.item_id} {outcome.failure}")
        else:
            yield outcome.result


def _prepare_in_child(task: _Task) -> MedsslError | None:
    return _prepare_one(task, Cache(task.cache_root))


def _prepare_one(task: _Task, cache: Cache) -> MedsslError | None:
    """Write the prepared files of one item; its `.json` comes last and makes them count."""
    try:
        image = cache.read_image(task.record)
        meta = _meta_path(task)
        with storage_errors("a prepared image"):
            make_private(meta.parent, below=task.cache_root)
        remove_temporaries(meta.parent)
        gridded = to_grid(image, task.preprocessing)
        is_stored = needs_new_grid(image, task.preprocessing)
        if is_stored and not _image_path(task).exists():
            write_array(_image_path(task), gridded.voxels[0])
        if task.label_set is not None:
            _prepare_label(task, cache, is_stored=is_stored)
        rule = intensity_of(gridded.voxels, task.preprocessing)
        document = {
            "shape": gridded.shape,
            "affine": gridded.affine.tolist(),
            "intensity": [rule.low, rule.high, rule.shift, rule.scale],
            "is_stored": is_stored,
        }
        write_json(meta, document)
    except MedsslError as error:
        return error
    return None


def _prepare_label(task: _Task, cache: Cache, *, is_stored: bool) -> None:
    label = to_grid(cache.read_label(task.record, str(task.label_set)), task.preprocessing, is_label=True)
    if is_stored:
        write_array(_label_path(task), label.voxels[0])
    points = {f"class_{value}": found for value, found in _points(label).items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **points)
    write_atomic(_points_path(task), buffer.getvalue())


def _points(label: Volume) -> dict[int, NDArray[np.int32]]:
    """Up to `MAX_POINTS_PER_CLASS` evenly chosen voxels of each class."""
    found = {}
    for value in np.unique(label.voxels):
        if value:
            where = np.argwhere(label.voxels[0] == value).astype(np.int32)
            picks = np.linspace(0, len(where) - 1, min(len(where), MAX_POINTS_PER_CLASS)).astype(int)
            found[int(value)] = where[picks]
    return found


def _load(cache: Cache, task: _Task) -> PreparedItem:
    meta = json.loads(_meta_path(task).read_text())
    x, y, z = meta["shape"]
    points: dict[int, NDArray[np.int32]] = {}
    label: Path | None = None
    if task.label_set is not None:
        with np.load(_points_path(task), allow_pickle=False) as archive:
            points = {int(name.removeprefix("class_")): archive[name] for name in archive.files}
        label = _label_path(task) if meta["is_stored"] else cache.label_path(task.record, task.label_set)
    return PreparedItem(
        item_id=task.record.item_id,
        shape=(x, y, z),
        affine=np.array(meta["affine"], dtype=np.float64),
        intensity=Intensity(*meta["intensity"]),
        image=_image_path(task) if meta["is_stored"] else cache.image_path(task.record),
        label=label,
        points=points,
    )


def _folder(task: _Task) -> Path:
    geometry = {
        "orientation": task.preprocessing.orientation,
        "spacing_mm": task.preprocessing.spacing_mm,
        "version": VERSION,
    }
    item_id = task.record.item_id
    return task.cache_root / "prepared" / sha256_json(geometry)[:16] / item_id[:2]


def _image_path(task: _Task) -> Path:
    return _folder(task) / f"{task.record.item_id}.b2nd"


def _label_path(task: _Task) -> Path:
    return _folder(task) / f"{task.record.item_id}-{_label_tag(task)}.b2nd"


def _points_path(task: _Task) -> Path:
    return _folder(task) / f"{task.record.item_id}-{_label_tag(task)}.npz"


def _label_tag(task: _Task) -> str:
    """A label map by name and content, so that a replaced label is prepared anew."""
    name = str(task.label_set)
    return f"{name}-{task.record.labels[name].sha256[:12]}"


def _meta_path(task: _Task) -> Path:
    rule = sha256_json({"window": task.preprocessing.window_hu, "zscore": task.preprocessing.zscore})[:8]
    label = "" if task.label_set is None else f"-{_label_tag(task)}"
    return _folder(task) / f"{task.record.item_id}-{rule}{label}.json"
