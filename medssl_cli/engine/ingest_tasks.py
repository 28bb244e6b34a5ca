"""What the child processes of an ingest do. Values go in and come out; voxels never leave the child."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from medssl_cli import __version__
from medssl_cli.cache.items import ItemRecord, Provenance
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.cache.store import Cache
from medssl_cli.errors import InputError, MedsslError, StorageError
from medssl_cli.formats import Identity, LoadedImage
from medssl_cli.formats.nifti import read_nifti, stem_of
from medssl_cli.imaging.geometry import Affine, Shape, corner_displacement_mm, is_same_grid
from medssl_cli.imaging.volume import Volume

HU_RANGE: Final = (-8192, 32767)
MAX_LABEL: Final = 255
_UNFILLED: Final = "0" * 64
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """Why a task has no result; `is_fatal` ends the whole ingest: the disk, not the input, is at fault."""

    code: str
    message: str
    hint: str = ""
    is_fatal: bool = False


@dataclass(frozen=True)
class ImageTask:
    """Read, judge and store one image.

    Args:
        source: A NIfTI file, or a `SeriesPart` of DICOM headers.
        cache_root: Of an existing cache.
        modality: Of a NIfTI file.
        patient: Of a NIfTI file; None if nothing says.
        stem: Of a NIfTI file, without channel number.
        dry_run: Judge only.
    """

    source: Any
    cache_root: Path
    modality: str = "unknown"
    patient: str | None = None
    stem: str = ""
    dry_run: bool = False


@dataclass(frozen=True)
class StoredImage:
    """A judged image: where it is and whether it is new."""

    item_id: str
    series_key: str
    is_new: bool
    shape: Shape
    affine: Affine
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class LabelTask:
    """Read, judge and store the label maps of one item, one after the other.

    Args:
        labels: Files and the names of their values, where declared.
        image: The item.
        cache_root: Of an existing cache.
        label_set: Name of the set.
        dry_run: Judge only.
    """

    labels: tuple[tuple[Path, dict[int, str] | None], ...]
    image: StoredImage
    cache_root: Path
    label_set: str
    dry_run: bool = False


@dataclass(frozen=True)
class StoredLabel:
    """A judged label map."""

    is_new: bool
    warnings: tuple[str, ...]


def _as_values(function: Callable[[Task], Result]) -> Callable[[Task], Result | Failure]:
    """Return failures instead of raising them; silence libraries, whose warnings quote headers and paths."""

    @wraps(function)
    def guarded(task: Task) -> Result | Failure:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function(task)
        except MedsslError as error:
            return Failure(error.code, error.message, error.hint, is_fatal=isinstance(error, StorageError))
        except MemoryError:
            return Failure("E_TOO_BIG", "the image does not fit into the memory of a worker")

    return guarded


def read_headers(paths: tuple[Path, ...]) -> list[Any]:
    """DICOM headers of several files; a `Failure` in the place of each that cannot be read."""
    from medssl_cli.formats.dicom import read_header

    return [_as_values(read_header)(path) for path in paths]


@_as_values
def store_image(task: ImageTask) -> StoredImage:
    """Put one image into the cache, or say why not."""
    image = _read_image(task)
    volume = image.volume
    cache = Cache(task.cache_root)
    found = tuple(dict.fromkeys((*image.warnings, *_content_warnings(image))))
    record = _record(image, cache.item_id(volume), cache.pseudonyms, found)
    is_known = cache.item_directory(record.item_id).exists()
    is_new = not is_known if task.dry_run else cache.add(volume, record)
    return StoredImage(record.item_id, record.series_key, is_new, volume.shape, volume.affine, found)


def _read_image(task: ImageTask) -> LoadedImage:
    if not isinstance(task.source, Path):
        from medssl_cli.formats.dicom import read_series

        return read_series(task.source)
    image = read_nifti(task.source, modality=task.modality).image
    study = task.patient or task.stem
    return replace(image, identity=Identity(patient=task.patient, study=study, series=stem_of(task.source.name)))


def _content_warnings(image: LoadedImage) -> list[str]:
    """What the voxels and the missing words of the header give rise to."""
    volume = image.volume
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    is_implausible = low < HU_RANGE[0] or high > HU_RANGE[1] or low >= 0
    conditions = {
        "W_CONSTANT_IMAGE": low == high,
        "W_HU_IMPLAUSIBLE": image.source_kind == "nifti" and volume.units == "HU" and is_implausible,
        "W_UNKNOWN_MODALITY": volume.modality == "unknown",
        "W_NO_PATIENT_KEY": not image.identity.patient,
    }
    return [code for code, holds in conditions.items() if holds]


def _record(image: LoadedImage, item_id: str, pseudonyms: Pseudonyms, found: tuple[str, ...]) -> ItemRecord:
    volume, identity = image.volume, image.identity
    place = identity.frame_of_reference
    who = (identity.patient,) if identity.patient else ("by study", identity.study)
    return ItemRecord.model_validate(
        {
            "item_id": item_id,
            "patient_key": pseudonyms.of("patient", *who),
            "study_key": pseudonyms.of("study", identity.study),
            "series_key": pseudonyms.of("series", identity.series),
            "frame_of_reference_key": pseudonyms.of("frame_of_reference", place) if place else None,
            "has_patient_identity": bool(identity.patient),
            "modality": volume.modality,
            "units": volume.units,
            "shape": volume.shape,
            "dtype": volume.voxels.dtype.name,
            "affine": tuple(tuple(float(number) for number in row) for row in volume.affine),
            "image_sha256": _UNFILLED,
            "provenance": Provenance(
                source_kind=image.source_kind,
                num_files=image.num_files,
                medssl_version=__version__,
                key_id=pseudonyms.key_id,
                decoder=image.decoder,
                repairs=tuple(code for code in found if code == "W_AFFINE_ORTHONORMALISED"),
                warnings=found,
                max_corner_displacement_mm=image.max_corner_displacement_mm,
            ),
        }
    )


def store_labels(task: LabelTask) -> list[StoredLabel | Failure]:
    """Put the label maps of one item into the cache, or say why not, one answer per label."""
    return [_store_label((task, path, classes)) for path, classes in task.labels]


@_as_values
def _store_label(arguments: tuple[LabelTask, Path, dict[int, str] | None]) -> StoredLabel:
    task, path, classes = arguments
    loaded = read_nifti(path).image
    label, present = _label_map(loaded, task.image)
    if classes is not None and not present <= {0, *classes}:
        undeclared = ", ".join(map(str, sorted(present - {0, *classes})[:10]))
        raise InputError("E_LABEL_VALUES", f"values that dataset.json does not declare: {undeclared}")
    names = classes if classes is not None else {value: f"class_{value}" for value in sorted(present - {0})}
    found = loaded.warnings if present - {0} else (*loaded.warnings, "W_EMPTY_LABEL")
    if task.dry_run:
        return StoredLabel(is_new=True, warnings=found)
    cache = Cache(task.cache_root)
    return StoredLabel(cache.add_label(task.image.item_id, task.label_set, label, names), found)


def _label_map(loaded: LoadedImage, image: StoredImage) -> tuple[Volume, set[int]]:
    """A uint8 map on the image's grid, and the values in it."""
    volume = loaded.volume
    if volume.shape != image.shape:
        raise InputError("E_LABEL_GRID_MISMATCH", f"the label has {volume.shape} voxels, the image {image.shape}")
    if not is_same_grid(image.affine, volume.affine, image.shape):
        distance = corner_displacement_mm(image.affine, volume.affine, image.shape)
        raise InputError("E_LABEL_GRID_MISMATCH", f"the label lies up to {distance:.3g} mm away from the image")
    values = np.unique(volume.voxels)
    if values[0] < 0 or values[-1] > MAX_LABEL or (values != np.rint(values)).any():
        raise InputError(
            "E_LABEL_VALUES", f"values from {values[0]:g} to {values[-1]:g} are not whole numbers from 0 to {MAX_LABEL}"
        )
    return replace(volume, voxels=volume.voxels.astype(np.uint8)), {int(value) for value in values}
