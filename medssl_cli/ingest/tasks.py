"""What the child processes of an ingest do. Values go in and come out; voxels never leave the child."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from medssl_cli import __version__
from medssl_cli.base.errors import InputError
from medssl_cli.cache.fingerprints import fingerprint
from medssl_cli.cache.items import ItemRecord, Provenance
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.cache.store import Cache
from medssl_cli.formats.discover import HEAD_BYTES
from medssl_cli.formats.image_notes import may_be_label_map
from medssl_cli.formats.labels import AnnotationKind
from medssl_cli.formats.labels.recognise import kind_of_object
from medssl_cli.formats.layouts import LabelFile
from medssl_cli.formats.loaded import LoadedImage, exif_orientation
from medssl_cli.formats.open import Surroundings, open_images
from medssl_cli.formats.picture_stacks import PictureStack
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.predictions import is_prediction
from medssl_cli.formats.source import Member, Source, read_head
from medssl_cli.imaging.geometry import Affine, Shape
from medssl_cli.imaging.planes import Planes, middle_planes
from medssl_cli.ingest.channels import add_channel, example_key
from medssl_cli.ingest.failures import Failure, as_values

if TYPE_CHECKING:
    from medssl_cli.formats.series import SeriesPart

NEAR_A_FACE: Final = ("unknown", "HEAD", "BRAIN", "SKULL", "NECK", "CSPINE", "WHOLEBODY")
Overlap = Literal["settle", "first", "last", "smallest", "parts", "refuse"]
"""What becomes of voxels that files of one structure each share; see `label_maps.merge`."""
_UNFILLED: Final = "0" * 64


@dataclass(frozen=True)
class ImageTask:
    """Read, judge and store what one source holds: one image, or the images of a 4D file.

    Args:
        source: A file, or the slices of a series or the pictures of a folder that make one image.
        kind: Kind of a file, as `discover` calls it.
        cache_root: Folder of an existing cache.
        policy: What is accepted and repaired.
        modality: Modality of a file that does not say.
        patient: Patient of a file or series that does not say; None if nothing says.
        stem: Stem of a file, without channel number.
        channel: Channel of a file that is one of several images of a case.
        parts: Modality ("" if unknown) and channel of each image of a 4D file, if they are declared.
        example: What the layout calls the case of a file, in the clear.
        notes: `W_` codes that its surroundings give rise to.
        partners: Files of images that it may be a label map of; then it is looked at before it is stored.
        dry_run: Judge only.
    """

    source: "Source | SeriesPart | PictureStack"
    kind: str
    cache_root: Path
    policy: Policy = STRICT
    modality: str = "unknown"
    patient: str | None = None
    stem: str = ""
    channel: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    example: str | None = None
    notes: tuple[str, ...] = ()
    partners: tuple[Source, ...] = ()
    dry_run: bool = False

    @property
    def file(self) -> Source | None:
        """The file, if the images are all that one file holds."""
        return self.source if isinstance(self.source, Path | Member) else None

    @property
    def part(self) -> "SeriesPart | None":
        """The slices of a series, if they make the image."""
        return None if isinstance(self.source, Path | Member | PictureStack) else self.source

    @property
    def stack(self) -> PictureStack | None:
        """The pictures of a folder, if they make the image."""
        return self.source if isinstance(self.source, PictureStack) else None

    @property
    def files(self) -> list[Source]:
        """All files, sorted."""
        return [self.source] if isinstance(self.source, Path | Member) else sorted(self.source.sources, key=str)


@dataclass(frozen=True)
class StoredImage:
    """A judged image: where it is and whether it is new.

    Args:
        planes: Planes of a new volume, for the page.
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
class LabelLike:
    """A file that may be a label map of one of its partners: nothing was stored of it.

    Args:
        shape: Shape of its grid.
        affine: Affine of its grid.
    """

    shape: Shape
    affine: Affine


@dataclass(frozen=True)
class LabelTask:
    """Read, judge and store the label maps of one item, one after the other.

    Args:
        labels: Label maps and the kind of each file.
        image: The item.
        cache_root: Folder of an existing cache.
        label_set: Name of the set.
        policy: What is accepted.
        overlap: What becomes of voxels that several structures share.
        dry_run: Judge only.
    """

    labels: tuple[tuple[LabelFile, str], ...]
    image: StoredImage
    cache_root: Path
    label_set: str
    policy: Policy = STRICT
    overlap: Overlap = "settle"
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
    from medssl_cli.formats.series import lost_slice

    found = _headers_or_labels(arguments)
    if isinstance(found, Failure) and not found.is_fatal and (file := lost_slice(arguments[0], found.code)):
        return Unread(found, file)
    return found


@as_values
def _headers_or_labels(arguments: tuple[Source, Policy]) -> Any:
    from medssl_cli.formats.series import read_headers, sop_class_of

    source, policy = arguments
    try:
        return read_headers(source, policy)
    except InputError as error:
        if error.code == "S_NON_IMAGE" and (kind := kind_of_object(sop_class_of(source))):
            return LabelObject(kind)
        raise


@as_values
def store_images(task: ImageTask) -> tuple[StoredImage, ...] | LabelLike:
    """Put what a source holds into the cache, or say why not; all of its images or none."""
    cache = Cache(task.cache_root)
    images = _images_of(task)
    if task.partners and len(images) == 1 and may_be_label_map(images[0]):
        return LabelLike(images[0].volume.shape, images[0].volume.affine)
    if task.file and task.policy.predictions and is_prediction(read_head(task.file, HEAD_BYTES)):
        raise InputError("S_PREDICTION", "a mask of medssl infer that no image belongs to")
    channels = (
        [channel for _, channel in task.parts] if len(task.parts) == len(images) else [task.channel] * len(images)
    )
    return tuple(_store(image, cache, task, channel) for image, channel in zip(images, channels, strict=True))


def _images_of(task: ImageTask) -> list[LoadedImage]:
    """The images of a task's source; those of a 4D file if it has as many as channels are declared, or on request."""
    around = Surroundings(
        task.modality,
        tuple(modality for modality, _ in task.parts),
        task.patient,
        task.patient or task.stem,
        task.notes,
    )
    policy = replace(task.policy, split_4d=True) if task.parts else task.policy
    images = [_of_patient(image, task) for image in open_images(task.source, policy, kind=task.kind, around=around)]
    if task.parts and len(images) not in (1, len(task.parts)) and not task.policy.split_4d:
        raise InputError(
            "E_4D_INPUT", f"{len(images)} images in a file of which {len(task.parts)} channels are declared"
        )
    if len(images) == len(task.parts) > 1:
        return [replace(image, warnings=(*image.warnings, "W_CHANNELS")) for image in images]
    return images


def _of_patient(image: LoadedImage, task: ImageTask) -> LoadedImage:
    """An image of a series that names no patient, as that of the one whom a pattern of the user found."""
    if task.part is None or task.patient is None or image.identity.patient is not None:
        return image
    warnings = tuple(code for code in image.warnings if code != "W_NO_PATIENT_KEY")
    return replace(image, identity=replace(image.identity, patient=task.patient), warnings=warnings)


def _store(image: LoadedImage, cache: Cache, task: ImageTask, channel: str | None) -> StoredImage:
    volume, dry_run = image.volume, task.dry_run
    found = image.warnings
    example = example_key(cache.pseudonyms, image.identity.patient, task.example)
    record = _record(image, cache.item_id(volume), cache.pseudonyms, found, channel, example)
    if cache.is_forgotten(record.patient_key):
        raise InputError("E_FORGOTTEN", "the patient was removed from this cache on request")
    twins = _twins(image, cache)
    if twins and volume.modality == "unknown":
        if not dry_run:
            add_channel(cache, twins[0].item_id, channel, example)
        return StoredImage.of(twins[0])
    is_known = cache.item_directory(record.item_id).exists()
    is_new = not is_known if dry_run else cache.add(volume, record)
    if twins:
        found += ("W_MODALITY_CHANGED",)
    if not dry_run:
        for twin in twins:
            cache.correct(twin.item_id, record.item_id)
        found += tuple(_version_warnings(cache, record))
        if not is_new and not add_channel(cache, record.item_id, channel, example):
            found += ("W_OTHER_CHANNEL",)
    planes = middle_planes(volume.voxels[0]) if is_new and record.is_volume else None
    message = "; ".join(image.details)
    return StoredImage(
        record.item_id, record.series_key, is_new, volume.shape, volume.affine, found, planes, message,
        exif_orientation(image.repairs),
    )  # fmt: skip


def _twins(image: LoadedImage, cache: Cache) -> list[ItemRecord]:
    """The same voxels under other modalities, as long as they count; a file may say its own modality."""
    if image.states_modality:
        return []
    records = [cache.record(item_id) for item_id in cache.twins(image.volume)]
    return [record for record in records if record.superseded_by is None]


def _version_warnings(cache: Cache, record: ItemRecord) -> Iterator[str]:
    """What an image has to do with larger and smaller versions, and with the same image of others."""
    held = cache.record(record.item_id)
    if held.patient_key != record.patient_key:
        yield "W_NEAR_DUPLICATE"
    smaller = [
        other for other in cache.versions(held) if other.superseded_by == record.item_id and other.shape != record.shape
    ]
    if held.superseded_by or smaller:
        yield "W_SUPERSEDED"


def _record(
    image: LoadedImage,
    item_id: str,
    pseudonyms: Pseudonyms,
    found: tuple[str, ...],
    channel: str | None,
    example: str | None,
) -> ItemRecord:
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
            "channel": channel,
            "example_key": example,
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
