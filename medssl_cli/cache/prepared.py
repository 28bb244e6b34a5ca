"""Prepared views: cached images on the grid that a recipe trains on, made on demand and safe to delete.

Only geometry is stored, so every recipe with the same spacing, or fitting to the same size, shares the files. An image
that is on the wanted grid already is used where it lies.
"""

import contextlib
import os
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol, overload, runtime_checkable
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.classes import IGNORE
from medssl_cli.base.errors import GateError, MedsslError, UsageError
from medssl_cli.base.files import read_regular
from medssl_cli.base.plain_json import parse_json
from medssl_cli.cache.items import CachedImage
from medssl_cli.cache.prepared_views import PreparedView
from medssl_cli.cache.preparing import prepare_view
from medssl_cli.cache.publish import remove_quietly
from medssl_cli.cache.reading import ReadableCache
from medssl_cli.cache.records import IMAGE, label_file
from medssl_cli.cache.store import Cache
from medssl_cli.cache.targets import Table, places_in
from medssl_cli.imaging.geometry import Affine, Shape
from medssl_cli.imaging.preprocessing import Intensity
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.work.workers import available_cores, supervised_map

TIMEOUT_S: Final = 600.0
INLINE_LIMIT: Final = 400
MAX_LOADED: Final = 4096


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
        item_id: Id of the cached item; of several, the first.
        shape: Size (X, Y, Z) on the prepared grid.
        affine: Affine of the prepared grid.
        intensity: Rule that turns stored values into network input.
        image: File of the voxels.
        label: File of the label map as it is stored, if one was asked for.
        points: Some of the voxels of each class present, `[N, 3]`.
        table: Table from stored values of the label map to classes.
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
        tables: Tables from its values to the classes of a recipe, one for each record (`cache.targets`). Prepared files
            hold what is stored, so recipes with other classes share them.
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
        item_ids: Ids of the images that they belong to, `[N]`, as bytes.
        digests: SHA-256 of each.
    """

    label_set: str
    item_ids: NDArray[np.bytes_]
    digests: list[str]

    @classmethod
    def of(cls, label_set: str, records: Sequence[CachedImage | CachedExample]) -> "PreparedLabels":
        """Label maps of images that have one each, or of examples with an image that has one."""
        own = [record.labelled(label_set) if isinstance(record, CachedExample) else record for record in records]
        found = [image for image in own if image is not None]
        if len(found) < len(records):
            raise ValueError(f"{len(records) - len(found)} examples have no label map of the set {label_set!r}")
        item_ids = np.array([image.item_id for image in found], dtype=bytes)
        return cls(label_set, item_ids, [image.label_digests[label_set] for image in found])


class ItemSequence(Sequence[PreparedItem]):
    """Prepared items by their places; a slice is a list."""

    @overload
    def __getitem__(self, place: int) -> PreparedItem: ...

    @overload
    def __getitem__(self, place: slice) -> list[PreparedItem]: ...

    def __getitem__(self, place: int | slice) -> PreparedItem | list[PreparedItem]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        index = range(len(self))[place]
        return self.item(index)

    @abstractmethod
    def item(self, index: int) -> PreparedItem:
        """One item.

        Args:
            index: Its place, from 0.
        """


class PreparedItems(ItemSequence):
    """Prepared items by place. Their descriptions are read when asked for; the last few stay.

    So very many items take little memory, here and in each worker of a loader.

    Args:
        cache_root: Folder of the cache.
        preprocessing: What they were prepared for.
        item_ids: Which, `[N]`, or `[N, C]` with one per channel, as bytes.
        labels: Those to prepare beside them.
        tables: Tables from stored label values to classes, for each item.
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

    def item(self, index: int) -> PreparedItem:
        """See `ItemSequence.item`; the ones that were asked for last stay loaded."""
        if index not in self._loaded:
            if len(self._loaded) >= MAX_LOADED:
                self._loaded.pop(next(iter(self._loaded)))
            self._loaded[index] = _load(self.task(index), None if self._tables is None else self._tables[index])
        return self._loaded[index]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": {}}

    def task(self, place: int, shape: Shape = (0, 0, 0)) -> PreparedView:
        """How to prepare or load one."""
        item_ids = tuple(item_id.decode() for item_id in np.atleast_1d(self._item_ids[place]).tolist())
        task = PreparedView(self._cache_root, item_ids, shape, self._preprocessing, None)
        if self._labels is None:
            return task
        labels, item = self._labels, self._labels.item_ids[place].decode()
        return replace(task, label_set=labels.label_set, label_item=item, label_sha256=labels.digests[place])

    def description(self, place: int) -> Path:
        """The file whose being there makes one count as prepared."""
        return self.task(place).description

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


def _run(cache: Cache, tasks: list[PreparedView], num_workers: int) -> Any:
    """Few or small images are not worth starting processes for."""
    voxels = sum(float(np.prod(task.shape)) for task in tasks)
    if num_workers == 1 or voxels < INLINE_LIMIT * 64**3:
        yield from (prepare_view(task, cache) for task in tasks)
        return
    for outcome in supervised_map(_prepare_in_child, tasks, num_workers=num_workers, timeout_s=TIMEOUT_S):
        if outcome.failure:
            yield MedsslError("E_WORKER_CRASH", f"preparing item {outcome.task.item_id} {outcome.failure}")
        else:
            yield outcome.result


def _prepare_in_child(task: PreparedView) -> MedsslError | None:
    return prepare_view(task, Cache(task.cache_root))


def _load(task: PreparedView, table: Table | None) -> PreparedItem:
    """What was prepared of an item; what is damaged is removed, so that the next call prepares it anew."""
    try:
        return _read(task, table)
    except (ValueError, KeyError, TypeError, OSError, BadZipFile) as error:
        remove_quietly(task.description)
        raise GateError(
            "E_CACHE_CORRUPT",
            f"what was prepared of item {task.item_id} was damaged, and is removed",
            hint="run the same command again: it is prepared anew",
        ) from error


def _read(task: PreparedView, table: Table | None) -> PreparedItem:
    meta = parse_json(read_regular(task.description))
    x, y, z = meta["shape"]
    cache = ReadableCache(task.cache_root)
    points: dict[int, NDArray[np.int32]] = {}
    label: Path | None = None
    if task.label_set is not None:
        with np.load(task.points_path, allow_pickle=False) as archive:
            points = _of_classes({int(name.removeprefix("class_")): archive[name] for name in archive.files}, table)
        native = cache.item_directory(task.label_item) / label_file(task.label_set, task.label_sha256)
        label = task.label_path if meta.get("label_is_stored", meta["is_stored"]) else native
    first, *beside = (
        PreparedChannel(
            task.image_path(number) if own["is_stored"] else cache.item_directory(item_id) / IMAGE,
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
    """Points by class or region instead of by stored value; background and what is ignored have none."""
    if table is None:
        return points
    found: dict[int, list[NDArray[np.int32]]] = defaultdict(list)
    for value in sorted(points):
        for place in places_in(table, value):
            if place != IGNORE:
                found[place].append(points[value])
    return {place: np.concatenate(parts) for place, parts in found.items()}
