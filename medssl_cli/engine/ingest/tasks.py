"""What the child processes of an ingest do. Values go in and come out; voxels never leave the child."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from medssl_cli import __version__
from medssl_cli.cache.fingerprints import fingerprint
from medssl_cli.cache.items import ItemRecord, Provenance
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.cache.store import Cache
from medssl_cli.classes import MAX_VALUE, NOT_JUDGED
from medssl_cli.engine.ingest.failures import Failure, as_values
from medssl_cli.errors import InputError
from medssl_cli.formats.labels import AnnotationKind
from medssl_cli.formats.labels.recognise import kind_of_object
from medssl_cli.formats.layouts import LabelFile
from medssl_cli.formats.loaded import LoadedImage, exif_orientation
from medssl_cli.formats.nifti import read_nifti, read_nifti_series
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.predictions import is_prediction
from medssl_cli.formats.source import Source, read_head
from medssl_cli.imaging.geometry import Affine, Shape, corner_displacement_mm, is_same_grid
from medssl_cli.imaging.planes import Planes, middle_planes
from medssl_cli.imaging.volume import Volume

HEAD_BYTES: Final = 4096
HU_RANGE: Final = (-8192, 32767)
NEAR_A_FACE: Final = ("unknown", "HEAD", "BRAIN", "SKULL", "NECK", "CSPINE", "WHOLEBODY")
MAX_DIFFERENT: Final = 256
"""Values of a label map, background among them. An image that lies among labels has more."""
_UNFILLED: Final = "0" * 64


@dataclass(frozen=True)
class ImageTask:
    """Read, judge and store what one source holds: one image, or the images of a 4D file.

    Args:
        source: A file of some kind, or a `SeriesPart` of DICOM headers.
        kind: Of the file, as `discover` calls it.
        cache_root: Of an existing cache.
        policy: What is accepted and repaired.
        modality: Of a file that does not say.
        patient: Of a file that does not say; None if nothing says.
        stem: Of a file, without channel number.
        is_label: It is a label map: nothing is resampled or filled in.
        dry_run: Judge only.
    """

    source: Any
    kind: str
    cache_root: Path
    policy: Policy = STRICT
    modality: str = "unknown"
    patient: str | None = None
    stem: str = ""
    is_label: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class StoredImage:
    """A judged image: where it is and whether it is new.

    Args:
        planes: Of a new volume, for the page.
        message: What more there is to say about its warnings.
        orientation: EXIF orientation that its file was stored in, 1 to 8.
    """

    item_id: str
    series_key: str
    is_new: bool
    shape: Shape
    affine: Affine
    warnings: tuple[str, ...]
    planes: Planes | None = None
    message: str = ""
    orientation: int = 1

    @classmethod
    def of(cls, record: ItemRecord) -> "StoredImage":
        """An image that was stored earlier."""
        orientation = exif_orientation(record.provenance.repairs)
        return cls(
            record.item_id, record.series_key, False, record.shape, record.affine_array, (), orientation=orientation
        )


@dataclass(frozen=True)
class LabelTask:
    """Read, judge and store the label maps of one item, one after the other.

    Args:
        labels: Label maps and the kind of each file.
        image: The item.
        cache_root: Of an existing cache.
        label_set: Name of the set.
        policy: What is accepted.
        dry_run: Judge only.
    """

    labels: tuple[tuple[LabelFile, str], ...]
    image: StoredImage
    cache_root: Path
    label_set: str
    policy: Policy = STRICT
    dry_run: bool = False


@dataclass(frozen=True)
class StoredLabel:
    """A judged label.

    Args:
        message: What more there is to say about its warnings.
        refused: Parts of it that were not stored, such as one structure of a structure set.
    """

    is_new: bool
    warnings: tuple[str, ...]
    message: str = ""
    refused: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Unread:
    """A DICOM file that was refused, and the series that it says it belongs to."""

    failure: Failure
    file: Any


@dataclass(frozen=True)
class LabelObject:
    """A DICOM file that holds labels, and which reader takes it."""

    kind: AnnotationKind


def read_header_batch(batch: tuple[tuple[Source, ...], Policy]) -> list[Any]:
    """What several DICOM files are: headers, a tuple for each image file; a `LabelObject`; a `Failure` or `Unread`."""
    sources, policy = batch
    return [_read_header((source, policy)) for source in sources]


def _read_header(arguments: tuple[Source, Policy]) -> Any:
    from medssl_cli.formats.dicom import refused_file

    found = _read_dicom(arguments)
    may_be_slice = isinstance(found, Failure) and found.code.startswith(("E_", "S_UNSUPPORTED_MODALITY"))
    if may_be_slice and not found.is_fatal:
        return Unread(found, refused_file(arguments[0], found.code))
    return found


@as_values
def _read_dicom(arguments: tuple[Source, Policy]) -> Any:
    from medssl_cli.formats.dicom import read_headers, sop_class_of

    source, policy = arguments
    try:
        return read_headers(source, policy)
    except InputError as error:
        if error.code == "S_NON_IMAGE" and (kind := kind_of_object(sop_class_of(source))):
            return LabelObject(kind)
        raise


@as_values
def store_images(task: ImageTask) -> tuple[StoredImage, ...]:
    """Put what a source holds into the cache, or say why not; all of its images or none."""
    cache = Cache(task.cache_root)
    return tuple(_store(image, cache, dry_run=task.dry_run) for image in _read_images(task))


def _store(image: LoadedImage, cache: Cache, *, dry_run: bool) -> StoredImage:
    volume = image.volume
    found = tuple(dict.fromkeys((*image.warnings, *_content_warnings(image))))
    record = _record(image, cache.item_id(volume), cache.pseudonyms, found)
    if cache.is_forgotten(record.patient_key):
        raise InputError("E_FORGOTTEN", "the patient was removed from this cache on request")
    is_known = cache.item_directory(record.item_id).exists()
    is_new = not is_known if dry_run else cache.add(volume, record)
    if not dry_run:
        found += tuple(_version_warnings(cache, record))
    planes = middle_planes(volume.voxels[0]) if is_new and record.is_volume else None
    message = "; ".join(image.details)
    return StoredImage(
        record.item_id, record.series_key, is_new, volume.shape, volume.affine, found, planes, message,
        exif_orientation(image.repairs),
    )  # fmt: skip


def _version_warnings(cache: Cache, record: ItemRecord) -> Iterator[str]:
    """What an image has to do with others in the cache."""
    held = cache.record(record.item_id)
    if held.patient_key != record.patient_key:
        yield "W_NEAR_DUPLICATE"
    if held.superseded_by or cache.replaced_by(record.item_id):
        yield "W_SUPERSEDED"


def _read_images(task: ImageTask) -> list[LoadedImage]:
    if task.kind == "dicom":
        from medssl_cli.formats.dicom import read_series

        return [read_series(task.source, task.policy)]
    images = _READERS[task.kind](task)
    study = task.patient or task.stem
    return [replace(image, identity=replace(image.identity, patient=task.patient, study=study)) for image in images]


def _read_nifti(task: ImageTask) -> list[LoadedImage]:
    if task.policy.predictions and not task.is_label and is_prediction(read_head(task.source, HEAD_BYTES)):
        raise InputError("S_PREDICTION", "a mask of medssl infer that no image belongs to")
    if task.policy.split_4d and not task.is_label:
        return read_nifti_series(task.source, modality=task.modality, policy=task.policy)
    return [read_nifti(task.source, modality=task.modality, policy=task.policy, is_label=task.is_label).image]


def _read_nrrd(task: ImageTask) -> list[LoadedImage]:
    from medssl_cli.formats.nrrd import read_nrrd

    return [read_nrrd(task.source, modality=task.modality, policy=task.policy, is_label=task.is_label)]


def _read_metaimage(task: ImageTask) -> list[LoadedImage]:
    from medssl_cli.formats.metaimage import read_metaimage

    return [read_metaimage(task.source, modality=task.modality, policy=task.policy, is_label=task.is_label)]


def _read_picture(task: ImageTask) -> list[LoadedImage]:
    from medssl_cli.formats.pictures import read_picture

    return [read_picture(task.source, modality=task.modality, policy=task.policy)]


_READERS: Final[dict[str, Callable[[ImageTask], list[LoadedImage]]]] = {
    "nifti": _read_nifti,
    "nrrd": _read_nrrd,
    "metaimage": _read_metaimage,
    "picture": _read_picture,
}


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
            "spacing_kind": image.spacing_kind,
            "burned_in": image.burned_in,
            "inverted": image.inverted,
            "recognizable_visual_features": _visual_features(image),
            "acquisition": image.acquisition,
            "fingerprint": fingerprint(volume),
            "provenance": Provenance(
                source_kind=image.source_kind,
                num_files=image.num_files,
                medssl_version=__version__,
                key_id=pseudonyms.key_id,
                decoder=image.decoder,
                repairs=image.repairs,
                warnings=found,
                max_corner_displacement_mm=image.max_corner_displacement_mm,
            ),
        }
    )


def _visual_features(image: LoadedImage) -> str:
    """Whether a face could be drawn from the voxels: of a volume that is not known to lie elsewhere, yes."""
    is_elsewhere = image.acquisition.body_part not in NEAR_A_FACE
    return "not_expected" if image.spacing_kind is not None or is_elsewhere else "not_removed"


def store_labels(task: LabelTask) -> list[StoredLabel | Failure]:
    """Put the label maps of one item into the cache, or say why not, one answer per label.

    Files that hold one structure each become one label map.
    """
    structures = tuple(pair for pair in task.labels if pair[0].class_name)
    joint = _store_structures((task, structures)) if structures else None
    return [
        joint if joint is not None and label.class_name else _store_label((task, label, kind))
        for label, kind in task.labels
    ]


@as_values
def _store_label(arguments: tuple[LabelTask, LabelFile, str]) -> StoredLabel:
    task, label, kind = arguments
    loaded = _read_label(task, label, kind)
    _check_orientation(loaded, task.image)
    volume, present = _label_map(loaded, task.image)
    classes = label.classes
    if classes is not None and not present <= {0, *classes}:
        undeclared = ", ".join(map(str, sorted(present - {0, *classes})[:10]))
        raise InputError("E_LABEL_VALUES", f"values that dataset.json does not declare: {undeclared}")
    names = classes if classes is not None else {value: f"class_{value}" for value in sorted(present - {0})}
    ignored = next((value for value, name in (classes or {}).items() if name == NOT_JUDGED), None)
    return _published(task, volume, names, loaded.warnings, ignore=ignored)


@as_values
def _store_structures(arguments: tuple[LabelTask, tuple[tuple[LabelFile, str], ...]]) -> StoredLabel:
    task, pairs = arguments
    ordered = sorted(pairs, key=lambda pair: pair[0].class_name or "")
    if len(ordered) > MAX_VALUE:
        raise InputError("E_LABEL_VALUES", f"{len(ordered)} structures; a label map holds {MAX_VALUE}")
    merged: Volume | None = None
    warnings: tuple[str, ...] = ()
    for value, (label, kind) in enumerate(ordered, start=1):
        loaded = _read_label(task, label, kind)
        _check_orientation(loaded, task.image)
        volume, _ = _label_map(loaded, task.image)
        inside = volume.voxels.astype(bool)
        merged = merged or replace(volume, voxels=np.zeros(volume.voxels.shape, dtype=np.uint16))
        if merged.voxels[inside].any():
            raise InputError("E_SEGMENT_OVERLAP", f"structure {value} of {len(ordered)} overlaps with another")
        merged.voxels[inside] = value
        warnings += loaded.warnings
    if merged is None:
        raise AssertionError("no structures")
    names = {value: label.class_name or "" for value, (label, _) in enumerate(ordered, start=1)}
    return _published(task, merged, names, tuple(dict.fromkeys(warnings)))


def _published(
    task: LabelTask, volume: Volume, names: dict[int, str], warnings: tuple[str, ...], ignore: int | None = None
) -> StoredLabel:
    found = warnings if volume.voxels.any() else (*warnings, "W_EMPTY_LABEL")
    cache = Cache(task.cache_root)
    classes = {value: name for value, name in names.items() if value != ignore}
    is_new = cache.add_label(task.image.item_id, task.label_set, volume, classes, ignore=ignore, dry_run=task.dry_run)
    return StoredLabel(is_new, found)


def _read_label(task: LabelTask, label: LabelFile, kind: str) -> LoadedImage:
    """A label map; a picture of labels has no writing burned in."""
    policy = replace(task.policy, burned_in="accept")
    (image,) = _READERS[kind](ImageTask(label.source, kind, task.cache_root, policy, is_label=True))
    return replace(image, warnings=tuple(code for code in image.warnings if code != "W_BURNED_IN_UNKNOWN"))


def _check_orientation(loaded: LoadedImage, image: StoredImage) -> None:
    """Refuse a label map that was not turned as its picture was: nothing says which way up it was drawn."""
    if exif_orientation(loaded.repairs) != image.orientation:
        raise InputError(
            "E_LABEL_ORIENTATION",
            f"a picture of EXIF orientation {image.orientation}, a label of {exif_orientation(loaded.repairs)}",
        )


def _label_map(loaded: LoadedImage, image: StoredImage) -> tuple[Volume, set[int]]:
    """A uint8 or uint16 map on the image's grid, and the values in it."""
    volume = loaded.volume
    if volume.shape != image.shape:
        raise InputError("E_LABEL_GRID_MISMATCH", f"the label has {volume.shape} voxels, the image {image.shape}")
    if not is_same_grid(image.affine, volume.affine, image.shape):
        distance = corner_displacement_mm(image.affine, volume.affine, image.shape)
        raise InputError("E_LABEL_GRID_MISMATCH", f"the label lies up to {distance:.3g} mm away from the image")
    values = np.unique(volume.voxels)
    if values[0] < 0 or values[-1] > MAX_VALUE or (values != np.rint(values)).any():
        raise InputError(
            "E_LABEL_VALUES", f"values from {values[0]:g} to {values[-1]:g} are not whole numbers from 0 to {MAX_VALUE}"
        )
    if len(values) > MAX_DIFFERENT:
        raise InputError("E_LABEL_VALUES", f"{len(values)} different values: this is an image, not a label map")
    dtype = np.uint8 if values[-1] <= np.iinfo(np.uint8).max else np.uint16
    return replace(volume, voxels=volume.voxels.astype(dtype)), {int(value) for value in values}
