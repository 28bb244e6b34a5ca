"""Prepared views: cached images on the grid that a recipe trains on, made on demand and safe to delete.

Only geometry is stored, so every recipe with the same spacing, or fitting to the same size, shares the files. An image
that is on the wanted grid already is used where it lies.
"""

import contextlib
import io
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol, overload, runtime_checkable
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.arrays import write_array
from medssl_cli.cache.items import Entry, ItemRecord
from medssl_cli.cache.publish import remove_quietly
from medssl_cli.cache.reading import ReadableCache
from medssl_cli.cache.records import IMAGE, label_file
from medssl_cli.cache.store import Cache
from medssl_cli.cache.targets import Table, to_classes
from medssl_cli.cache.writers import make_private
from medssl_cli.classes import IGNORE
from medssl_cli.errors import GateError, MedsslError, UsageError
from medssl_cli.files import read_regular, remove_temporaries, sha256_json, storage_errors, write_atomic, write_json
from medssl_cli.imaging.geometry import Affine, Shape
from medssl_cli.imaging.placement import Placement, brought_to, on_one_grid, placement_of
from medssl_cli.imaging.preprocessing import Intensity, on_grid
from medssl_cli.imaging.volume import Volume
from medssl_cli.parallel import available_cores, supervised_map
from medssl_cli.plain_json import parse_json
from medssl_cli.recipe import Preprocessing

VERSION: Final = 2  # 1: images of whole numbers were rounded
MAX_POINTS_PER_CLASS: Final = 1000
TIMEOUT_S: Final = 600.0
INLINE_LIMIT: Final = 400
MAX_LOADED: Final = 4096


CachedImage = ItemRecord | Entry


@runtime_checkable
class CachedExample(Protocol):
    """Images that a network sees at once, one per channel."""

    @property
    def items(self) -> tuple[CachedImage, ...]:
        """In the order of the channels; the grid is the first one's."""

    def labelled(self, label_set: str) -> CachedImage | None:
        """The one of them that has the label map of a set."""


@dataclass(frozen=True)
class PreparedChannel:
    """One image on the grid of its example.

    Args:
        image: File of the voxels.
        intensity: Rule that turns stored values into network input.
    """

    image: Path
    intensity: Intensity


@dataclass(frozen=True)
class PreparedItem:
    """One example ready for cropping: an image, or several on one grid.

    Args:
        item_id: Of the cached item; of several, the first.
        shape: Size (X, Y, Z) on the prepared grid.
        affine: Of the prepared grid.
        intensity: Rule that turns stored values into network input.
        image: File of the voxels.
        label: File of the label map as it is stored, if one was asked for.
        points: For each class present, some of its voxels `[N, 3]`.
        table: From stored values of the label map to classes.
        beside: Channels after the first.
    """

    item_id: str
    shape: Shape
    affine: Affine
    intensity: Intensity
    image: Path
    label: Path | None
    points: dict[int, NDArray[np.int32]]
    table: Table | None = None
    beside: tuple[PreparedChannel, ...] = ()

    @property
    def channels(self) -> tuple[PreparedChannel, ...]:
        """All of them in their order."""
        return PreparedChannel(self.image, self.intensity), *self.beside


@dataclass(frozen=True)
class _Task:
    """One example to prepare or load; its label map belongs to one of its items."""

    cache_root: Path
    item_ids: tuple[str, ...]
    shape: Shape
    preprocessing: Preprocessing
    label_set: str | None
    label_item: str = ""
    label_sha256: str = ""

    @property
    def item_id(self) -> str:
        """Of the first channel."""
        return self.item_ids[0]


def prepare(
    cache: Cache,
    records: Sequence[CachedImage | CachedExample],
    preprocessing: Preprocessing,
    *,
    label_set: str | None = None,
    tables: Sequence[Table] | None = None,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> "PreparedItems":
    """Bring items onto a recipe's grid; what was prepared before is not touched.

    Args:
        cache: Where they are.
        records: Which: images, or examples with an image for each channel.
        preprocessing: The recipe's; its intensity rules are resolved per image, not stored.
        label_set: Prepare this label map too.
        tables: From its values to the classes of a recipe, one for each record (`cache.targets`). Prepared files hold
            what is stored, so recipes with other classes share them.
        num_workers: Child processes for new work; all cores by default.
        progress: Called with (done, total).

    Raises:
        UsageError: `E_RECIPE`, the recipe has another number of channels.
        MedsslError: The first item's failure; prepared items stay.
    """
    images, num_channels = [_images_of(record) for record in records], len(preprocessing.rules)
    if any(len(own) != num_channels for own in images):
        raise UsageError(
            "E_RECIPE",
            f"data.channels names {num_channels} channels, and images are taken one by one here",
            hint="leave data.channels out, or name one",
        )
    prepared = PreparedItems(
        cache.root,
        preprocessing,
        np.array([[image.item_id for image in own] for own in images], dtype=bytes),
        None if label_set is None else PreparedLabels.of(label_set, records),
        tables,
    )
    present = prepared.present()
    missing = [prepared.task(place, own[0].shape) for place, own in enumerate(images) if place not in present]
    done = len(records) - len(missing)
    for outcome in _run(cache, missing, num_workers or available_cores()):
        if isinstance(outcome, MedsslError):
            raise outcome
        done += 1
        if progress is not None:
            progress(done, len(records))
    return prepared


def _images_of(record: CachedImage | CachedExample) -> tuple[CachedImage, ...]:
    return record.items if isinstance(record, CachedExample) else (record,)


@dataclass(frozen=True)
class PreparedLabels:
    """Which label maps are prepared beside images.

    Args:
        label_set: Their name.
        item_ids: Of the images that they belong to, `[N]`, as bytes.
        digests: SHA-256 of each.
    """

    label_set: str
    item_ids: NDArray[np.bytes_]
    digests: list[str]

    @classmethod
    def of(cls, label_set: str, records: Sequence[CachedImage | CachedExample]) -> "PreparedLabels":
        """Of images that have one each, or of examples with an image that has one."""
        homes = [record.labelled(label_set) if isinstance(record, CachedExample) else record for record in records]
        found = [home for home in homes if home is not None]
        if len(found) < len(records):
            raise ValueError(f"{len(records) - len(found)} examples have no label map of the set {label_set!r}")
        item_ids = np.array([home.item_id for home in found], dtype=bytes)
        return cls(label_set, item_ids, [home.label_digests[label_set] for home in found])


class PreparedItems(Sequence[PreparedItem]):
    """Prepared items by place. Their descriptions are read when asked for; the last few stay.

    So very many items take little memory, here and in each worker of a loader.

    Args:
        cache_root: Of the cache.
        preprocessing: What they were prepared for.
        item_ids: Which, `[N]`, or `[N, C]` with one per channel, as bytes.
        labels: Those to prepare beside them.
        tables: From stored label values to classes, for each item.
    """

    def __init__(
        self,
        cache_root: Path,
        preprocessing: Preprocessing,
        item_ids: NDArray[np.bytes_],
        labels: PreparedLabels | None,
        tables: Sequence[Table] | None = None,
    ) -> None:
        self._cache_root = cache_root
        self._preprocessing = preprocessing
        self._item_ids = item_ids
        self._labels = labels
        self._tables = tables
        self._loaded: dict[int, PreparedItem] = {}

    def __len__(self) -> int:
        return len(self._item_ids)

    @overload
    def __getitem__(self, place: int) -> PreparedItem: ...

    @overload
    def __getitem__(self, place: slice) -> list[PreparedItem]: ...

    def __getitem__(self, place: int | slice) -> PreparedItem | list[PreparedItem]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        index = range(len(self))[place]
        if index not in self._loaded:
            if len(self._loaded) >= MAX_LOADED:
                self._loaded.pop(next(iter(self._loaded)))
            self._loaded[index] = _load(self.task(index), None if self._tables is None else self._tables[index])
        return self._loaded[index]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": {}}

    def task(self, place: int, shape: Shape = (0, 0, 0)) -> _Task:
        """How to prepare or load one."""
        item_ids = tuple(item_id.decode() for item_id in np.atleast_1d(self._item_ids[place]).tolist())
        task = _Task(self._cache_root, item_ids, shape, self._preprocessing, None)
        if self._labels is None:
            return task
        labels, home = self._labels, self._labels.item_ids[place].decode()
        return replace(task, label_set=labels.label_set, label_item=home, label_sha256=labels.digests[place])

    def description(self, place: int) -> Path:
        """The file whose being there makes one count as prepared."""
        return _meta_path(self.task(place))

    def present(self) -> set[int]:
        """Places of those that are prepared already; lists folders instead of asking for every file."""
        names: dict[Path, set[str]] = {}
        found = set()
        for place in range(len(self)):
            path = self.description(place)
            if path.parent not in names:
                with contextlib.suppress(FileNotFoundError), os.scandir(path.parent) as entries:
                    names[path.parent] = {entry.name for entry in entries}
            if path.name in names.setdefault(path.parent, set()):
                found.add(place)
        return found


def _run(cache: Cache, tasks: list[_Task], num_workers: int) -> Any:
    """Few or small images are not worth starting processes for."""
    voxels = sum(float(np.prod(task.shape)) for task in tasks)
    if num_workers == 1 or voxels < INLINE_LIMIT * 64**3:
        yield from (_prepare_one(task, cache) for task in tasks)
        return
    for outcome in supervised_map(_prepare_in_child, tasks, num_workers=num_workers, timeout_s=TIMEOUT_S):
        if outcome.failure:
            yield MedsslError("E_WORKER_CRASH", f"preparing item {outcome.task.item_id} {outcome.failure}")
        else:
            yield outcome.result


def _prepare_in_child(task: _Task) -> MedsslError | None:
    return _prepare_one(task, Cache(task.cache_root))


def _prepare_one(task: _Task, cache: Cache) -> MedsslError | None:
    """Write the prepared files of one item; its `.json` comes last and makes them count."""
    try:
        stored = [cache.read_image(cache.record(item_id)) for item_id in task.item_ids]
        folders = {_image_path(task, number).parent for number in range(len(task.item_ids))}
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
        write_json(_meta_path(task), document)
    except MedsslError as error:
        return error
    return None


def _prepare_channel(
    task: _Task, number: int, image: Volume, placement: Placement, *, is_native: bool
) -> dict[str, Any]:
    """Write one channel unless it is used where it lies, and say what the description says of it."""
    voxels, intensity = on_grid(image.voxels, placement, task.preprocessing.rules[number])
    if not is_native and not _image_path(task, number).exists():
        write_array(_image_path(task, number), voxels[0])
    rule = [intensity.low, intensity.high, intensity.shift, intensity.scale]
    return {"intensity": rule, "is_stored": not is_native}


def _is_same_grid(image: Volume, first: Volume) -> bool:
    return image.shape == first.shape and np.array_equal(image.affine, first.affine)


def _prepare_label(task: _Task, cache: Cache, first: Volume, placement: Placement) -> bool:
    """Write a label map and points of its classes; returns whether it is another one than the cache's."""
    stored = cache.read_label(cache.record(task.label_item), str(task.label_set))
    label = placement.labels(brought_to(first, stored, is_label=True).voxels)[0]
    is_stored = not (placement.is_identity and _is_same_grid(stored, first))
    if is_stored:
        write_array(_label_path(task), label)
    points = {f"class_{value}": found for value, found in _points(label).items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **points)
    write_atomic(_points_path(task), buffer.getvalue())
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


def _load(task: _Task, table: Table | None) -> PreparedItem:
    """What was prepared of an item; what is damaged is removed, so that the next call prepares it anew.

    Raises:
        GateError: `E_CACHE_CORRUPT`.
    """
    try:
        return _read(task, table)
    except (ValueError, KeyError, TypeError, OSError, BadZipFile) as error:
        remove_quietly(_meta_path(task))
        raise GateError(
            "E_CACHE_CORRUPT",
            f"what was prepared of item {task.item_id} was damaged, and is removed",
            hint="run the same command again: it is prepared anew",
        ) from error


def _read(task: _Task, table: Table | None) -> PreparedItem:
    meta = parse_json(read_regular(_meta_path(task)))
    x, y, z = meta["shape"]
    cache = ReadableCache(task.cache_root)
    points: dict[int, NDArray[np.int32]] = {}
    label: Path | None = None
    if task.label_set is not None:
        with np.load(_points_path(task), allow_pickle=False) as archive:
            points = _of_classes({int(name.removeprefix("class_")): archive[name] for name in archive.files}, table)
        native = cache.item_directory(task.label_item) / label_file(task.label_set, task.label_sha256)
        label = _label_path(task) if meta.get("label_is_stored", meta["is_stored"]) else native
    first, *beside = (
        PreparedChannel(
            _image_path(task, number) if own["is_stored"] else cache.item_directory(item_id) / IMAGE,
            Intensity(*own["intensity"]),
        )
        for number, (item_id, own) in enumerate(zip(task.item_ids, [meta, *meta.get("beside", [])], strict=True))
    )
    return PreparedItem(
        item_id=task.item_id,
        shape=(x, y, z),
        affine=np.array(meta["affine"], dtype=np.float64),
        intensity=first.intensity,
        image=first.image,
        label=label,
        points=points,
        table=table,
        beside=tuple(beside),
    )


def _of_classes(points: dict[int, NDArray[np.int32]], table: Table | None) -> dict[int, NDArray[np.int32]]:
    """Points by class instead of by stored value; background and what is ignored have none."""
    if table is None:
        return points
    found: dict[int, list[NDArray[np.int32]]] = defaultdict(list)
    for value in sorted(points):
        place = int(to_classes(np.array([value]), table)[0])
        if place not in (0, IGNORE):
            found[place].append(points[value])
    return {place: np.concatenate(parts) for place, parts in found.items()}


def _folder(task: _Task) -> Path:
    return task.cache_root / "prepared" / _geometry_tag(task.preprocessing) / task.item_id[:2]


@lru_cache(maxsize=8)
def _geometry_tag(preprocessing: Preprocessing) -> str:
    """Of everything that decides about the grid; what a recipe does not ask for leaves the tag as it was before."""
    geometry: dict[str, Any] = {
        "orientation": preprocessing.orientation,
        "spacing_mm": preprocessing.spacing_mm,
        "version": VERSION,
    }
    if preprocessing.fit is not None:
        geometry["fit"] = preprocessing.fit
    if preprocessing.foreground_crop:
        geometry["foreground_crop"] = True
    return sha256_json(geometry)[:16]


@lru_cache(maxsize=8)
def _intensity_tag(preprocessing: Preprocessing) -> str:
    documents = []
    for rule in preprocessing.rules:
        document: dict[str, Any] = {"window": rule.window_hu, "zscore": rule.zscore}
        if rule.percentiles is not None:
            document["percentiles"] = rule.percentiles
        documents.append(document)
    return sha256_json(documents[0] if len(documents) == 1 else documents)[:8]


def _image_path(task: _Task, number: int) -> Path:
    """Of a channel. It begins with the id of its own item, so that it goes when that item is forgotten."""
    item_id = task.item_ids[number]
    return _folder(task).with_name(item_id[:2]) / f"{item_id}{_company(task)}.b2nd"


def _label_path(task: _Task) -> Path:
    return _folder(task) / f"{task.item_id}{_company(task)}-{_label_tag(task)}.b2nd"


def _points_path(task: _Task) -> Path:
    return _folder(task) / f"{task.item_id}{_company(task)}-{_label_tag(task)}.npz"


def _company(task: _Task) -> str:
    """What tells views of an example from those of other examples that its images are in; nothing of an image alone."""
    return "" if len(task.item_ids) == 1 else "-" + sha256_json(list(task.item_ids))[:12]


def _label_tag(task: _Task) -> str:
    """A label map by name and content, so that a replaced label is prepared anew."""
    return f"{task.label_set}-{task.label_sha256[:12]}"


def _meta_path(task: _Task) -> Path:
    rule = _intensity_tag(task.preprocessing)
    label = "" if task.label_set is None else f"-{_label_tag(task)}"
    return _folder(task) / f"{task.item_id}{_company(task)}-{rule}{label}.json"
