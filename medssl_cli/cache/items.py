"""What is recorded about an image: an allow-list. A field that is not here cannot be stored."""

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from medssl_cli.base.classes import MAX_VALUE
from medssl_cli.base.strict import Digest, Strict
from medssl_cli.cache.format import ALLOW_LIST_VERSION, RECORD_VERSION, Modality, check_label_set
from medssl_cli.formats.acquisition import Acquisition
from medssl_cli.formats.loaded import BurnedIn, SourceKind, SpacingKind
from medssl_cli.formats.name_words import is_channel_word, same_channel
from medssl_cli.imaging.geometry import Affine, Shape

Key = Annotated[str, Field(pattern=r"^[a-z2-7]{26}$")]
Value = Annotated[int, Field(ge=0, le=MAX_VALUE)]
WRITTEN_IF_KNOWN: Final = ("channel", "example_key")
Units = Literal["HU", "SUVbw", "Bq/ml", "a.u."]


class LabelRecord(Strict):
    """One label map of an item: whole numbers from 0 (background) to 65,535.

    Args:
        sha256: SHA-256 of its file.
        classes: What its values are called; `class_3` where nobody named the value 3.
        voxels_per_class: Number of voxels of the values that it shows, background and `ignore` left out.
        ignore: Value of voxels that nobody judged; written only where there is one.
        regions: Values of each region that its data set declares, by name: regions may overlap. Written only where
            there are any.
    """

    sha256: Digest
    classes: dict[Value, str]
    voxels_per_class: dict[Value, int]
    ignore: Value | None = None
    regions: dict[str, tuple[Value, ...]] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_empty(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = default(self)
        if self.ignore is None:
            del document["ignore"]
        if not self.regions:
            del document["regions"]
        return document


class Box(Strict):
    """A finding with a place: a nodule, a lung, an opacity.

    Args:
        name: What it is.
        lower: Corner in continuous voxel indices (x, y, z); voxel i covers [i - 0.5, i + 0.5].
        upper: The opposite corner.
        diameter_mm: Diameter of a nodule in mm.
        num_readers: How many readers marked it.
    """

    name: Annotated[str, Field(pattern=r"^[\w .+/-]{1,64}$")]
    lower: tuple[float, float, float]
    upper: tuple[float, float, float]
    diameter_mm: float | None = None
    num_readers: int | None = None


class Provenance(Strict):
    """Where an item came from, without saying from whom."""

    source_kind: SourceKind
    num_files: int
    allow_list_version: Literal[1] = ALLOW_LIST_VERSION
    medssl_version: str
    key_id: str
    decoder: str = ""
    repairs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    max_corner_displacement_mm: float = 0.0


class ItemRecord(Strict):
    """`item.json`: everything that is known about a stored image.

    What it may not have is written only where it has it.

    Args:
        channel: Which of several images of one case it is, `flair`: a word of `formats.name_words`, never a free text.
        example_key: Pseudonym of what the layout calls its case: images of one case share it.
    """

    format_version: Literal[1] = RECORD_VERSION
    item_id: Key
    patient_key: Key
    study_key: Key
    series_key: Key
    frame_of_reference_key: Key | None = None
    has_patient_identity: bool
    modality: Modality
    units: Units
    shape: tuple[int, int, int]
    dtype: Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
    affine: tuple[tuple[float, float, float, float], ...]
    image_sha256: Digest
    provenance: Provenance
    spacing_kind: SpacingKind | None = None
    burned_in: BurnedIn = "not_expected"
    inverted: bool = False
    channel: str | None = None
    example_key: Key | None = None
    recognizable_visual_features: Literal["not_removed", "not_expected"] = "not_expected"
    acquisition: Acquisition = Field(default_factory=Acquisition)
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    superseded_by: Key | None = None
    labels: dict[str, LabelRecord] = Field(default_factory=dict)
    boxes: dict[str, tuple[Box, ...]] = Field(default_factory=dict)
    findings: dict[str, dict[str, float]] = Field(default_factory=dict)

    @property
    def is_volume(self) -> bool:
        """Whether it has a place in the patient; a projection X-ray or a picture has not."""
        return self.spacing_kind is None

    @property
    def label_digests(self) -> dict[str, str]:
        """SHA-256 of each label map, by its set."""
        return {name: label.sha256 for name, label in self.labels.items()}

    @property
    def annotation_sets(self) -> tuple[str, ...]:
        """Kinds and names of what is known beside label maps, such as `findings/nih`."""
        return annotation_names(self.boxes, self.findings)

    @field_validator("labels", "boxes", "findings")
    @classmethod
    def _label_set_names(cls, labels: dict[str, Any]) -> dict[str, Any]:
        for name in labels:
            check_label_set(name)
        return labels

    @field_validator("shape")
    @classmethod
    def _sizes(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 < size < 2**31 for size in shape):
            raise ValueError("sizes")
        return shape

    @field_validator("affine")
    @classmethod
    def _places_voxels(cls, affine: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        rows = np.array(affine, dtype=np.float64)
        is_affine = rows.shape == (4, 4) and np.isfinite(rows).all() and rows[3].tolist() == [0, 0, 0, 1]
        if not is_affine or not abs(np.linalg.det(rows)) > 0:
            raise ValueError("affine")
        return affine

    @field_validator("channel")
    @classmethod
    def _allowed_channel(cls, word: str | None) -> str | None:
        """A word that may be recorded; those of earlier versions, such as `t1w`, under the one for all of them."""
        if word is None:
            return None
        if word != word.lower().strip() or not is_channel_word(same_channel(word)):
            raise ValueError("not a word for a channel")
        return same_channel(word)

    @model_serializer(mode="wrap")
    def _without_empty(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A record without channel and case is written as before there were any."""
        document: dict[str, Any] = default(self)
        return {name: value for name, value in document.items() if value is not None or name not in WRITTEN_IF_KNOWN}

    @property
    def affine_array(self) -> Affine:
        """`[4, 4]` float64."""
        return np.array(self.affine, dtype=np.float64)


class Entry(NamedTuple):
    """The little of a record that training needs, for caches of very many items: a tenth of its memory."""

    item_id: str
    patient_key: str
    modality: str
    shape: Shape
    fingerprint: str | None
    image_sha256: str
    is_volume: bool
    label_digests: dict[str, str]
    annotation_sets: tuple[str, ...] = ()
    channel: str | None = None
    example_key: str | None = None
    study_key: str = ""
    frame_of_reference_key: str | None = None
    grid: bytes = b""

    @property
    def affine_array(self) -> Affine:
        """`[4, 4]` float64."""
        return np.vstack([np.frombuffer(self.grid).reshape(3, 4), (0.0, 0.0, 0.0, 1.0)])


CachedImage = ItemRecord | Entry
"""What is known of one image: everything, or the little that training needs."""


def entry_of(record: ItemRecord) -> Entry:
    """The light form of a record."""
    return Entry(
        record.item_id,
        record.patient_key,
        record.modality,
        record.shape,
        record.fingerprint,
        record.image_sha256,
        record.is_volume,
        record.label_digests,
        record.annotation_sets,
        record.channel,
        record.example_key,
        record.study_key,
        record.frame_of_reference_key,
        grid_of(record.affine),
    )


def grid_of(affine: Iterable[Iterable[float]]) -> bytes:
    """The three rows of an affine that say something, as float64 in few bytes."""
    return np.array([*affine][:3], dtype=np.float64).tobytes()


def annotation_names(boxes: Iterable[str], findings: Iterable[str]) -> tuple[str, ...]:
    """Names of sets of boxes and of findings, each with its kind."""
    return *(f"boxes/{name}" for name in sorted(boxes)), *(f"findings/{name}" for name in sorted(findings))
