"""What rides inside `model.onnx`: all that inference needs and all that a reader should know about the model."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from medssl_cli.classes import Member, Members, WantedClasses
from medssl_cli.deploy.onnx_file import MAX_BYTES, read_head, seal, unseal
from medssl_cli.errors import StorageError, UsageError
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.strict import PositiveFloat, PositiveInt, Size, Strict

HEAD_BYTES: Final = 4 * 1024 * 1024
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Parity(Strict):
    """How close ONNX Runtime came to torch on real cases, end to end.

    Args:
        max_abs_difference: Largest |torch - onnx| of a logit, divided by max(1, largest |logit| of its tile).
        argmax_agreement: Fraction of voxels with the same class on the source grid.
        min_dice: Smallest Dice between the two masks over cases and structures.
        num_cases: Whole volumes compared.
    """

    max_abs_difference: Annotated[float, Field(ge=0)]
    argmax_agreement: Annotated[float, Field(ge=0, le=1)]
    min_dice: Annotated[float, Field(ge=0, le=1)]
    num_cases: PositiveInt


class Bundle(Strict):
    """The contract of an exported model.

    Args:
        task: Name of the task; also the name of the installed model.
        classes: Names by label value, background (0) left out.
        modality: Of the training images; None for any.
        label_set: Name of the reference labels in a cache.
        label_classes: By name, the names or values of labels that make up each class; None in models of medssl before
            it knew them, whose labels had the values of `classes`.
        label_ignore: Names or values of labels that count for nothing.
        nsd_tolerance_mm: The recipe's tolerance, so that evaluation of the model needs no recipe.
        weights_sha256: Of the weights that were exported.
        manifest_sha256: Of the run's list of items.
        trained_on: `patient_digest` of every patient seen in fine-tuning or model selection.
        split_seed: Of the patient split.
        fold: Of the patient split.
        parity: None only while export has not compared the model with torch yet; such a model does not load.
    """

    head: ClassVar[Literal["masks"]] = "masks"
    """What the network answers with."""

    contract_version: Literal[1] = 1
    task: TaskName
    preprocessing: Preprocessing
    classes: dict[int, str] = Field(min_length=1, max_length=255)
    in_channels: PositiveInt = 1
    modality: str | None = None
    label_set: str = "seg"
    label_classes: dict[str, Members] | None = None
    label_ignore: tuple[Member, ...] = ()
    tile_size: Size
    overlap: Annotated[float, Field(ge=0, lt=1)]
    mirror_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = ()
    nsd_tolerance_mm: PositiveFloat
    medssl_version: str
    recipe_sha256: Digest
    weights_sha256: Digest
    manifest_sha256: Digest
    trained_on: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")], ...] = ()
    split_seed: Annotated[int, Field(ge=0)]
    fold: Annotated[int, Field(ge=0)]
    parity: Parity | None = None
    intended_use: Annotated[str, Field(max_length=500)]
    licence: Annotated[str, Field(max_length=200)] = "not stated"

    @field_validator("classes")
    @classmethod
    def _without_gaps(cls, classes: dict[int, str]) -> dict[int, str]:
        if sorted(classes) != list(range(1, len(classes) + 1)):
            raise ValueError("label values must be 1, 2, 3 ... without gaps")
        return classes

    @model_validator(mode="after")
    def _sorted_patients(self) -> Self:
        if list(self.trained_on) != sorted(set(self.trained_on)):
            raise ValueError("trained_on must be sorted and without repetition")
        return self

    @property
    def wanted(self) -> WantedClasses:
        """Which labels of a cache make up which class, in the order of the network's outputs."""
        known = self.label_classes or {}
        ordered = sorted(self.classes.items())
        return WantedClasses({name: known.get(name, (name, value)) for value, name in ordered}, self.label_ignore)

    def has_seen(self, patient_key: str) -> bool:
        """Whether the model was trained or selected on a patient of this key."""
        return patient_digest(patient_key) in self.trained_on

    @property
    def proof(self) -> str:
        """How well torch and ONNX Runtime agree, in one sentence."""
        if self.parity is None:
            return "not compared with torch yet"
        return (
            f"torch and ONNX Runtime agree on {100 * self.parity.argmax_agreement:.4f} % of voxels, "
            f"Dice {self.parity.min_dice:.5f}, largest logit difference {self.parity.max_abs_difference:.1e}, "
            f"on {self.parity.num_cases} whole images"
        )

    def to_json(self) -> str:
        """Canonical JSON."""
        document = self.model_dump(mode="json")
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def patient_digest(patient_key: str) -> str:
    """What a model remembers of a training patient: 16 hexadecimal digits of the pseudonymous key's SHA-256."""
    return hashlib.sha256(patient_key.encode()).hexdigest()[:16]


def attach(model: bytes, bundle: Bundle) -> bytes:
    """A serialised ONNX model with its bundle and digest, ready to be written."""
    return seal(model, bundle.to_json())


def load_model(path: Path) -> tuple[bytes, Bundle, str]:
    """Read a model whole and check every byte of it.

    Returns:
        The file's bytes, its bundle and its SHA-256.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_MODEL_INVALID`.
        GateError: `E_MODEL_CORRUPT`.
    """
    data = _read(path, MAX_BYTES)
    bundle_json, digest = unseal(data, name=path.name)
    bundle = _parse(bundle_json, path.name)
    if bundle.parity is None:
        raise UsageError("E_MODEL_INVALID", f"{path.name} was never compared with its trained network")
    return data, bundle, digest


def read_bundle(path: Path) -> Bundle:
    """The bundle alone, from the first bytes of a model; `load_model` checks the rest.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_MODEL_INVALID`.
    """
    with _opened(path) as stream:
        head = stream.read(HEAD_BYTES)
    return _parse(read_head(head, name=path.name), path.name)


def _parse(bundle_json: str, name: str) -> Bundle:
    try:
        return Bundle.model_validate_json(bundle_json)
    except ValidationError as error:
        places = {".".join(str(part) for part in fault["loc"]) or "bundle" for fault in error.errors()}
        where = ", ".join(sorted(places))
        raise UsageError("E_MODEL_INVALID", f"{name} has a bundle that this medssl cannot read: {where}") from error


def _read(path: Path, limit: int) -> bytes:
    with _opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise UsageError("E_MODEL_INVALID", f"{path.name} is larger than 2 GiB")
        try:
            return stream.read(size)
        except MemoryError as error:
            raise UsageError("E_MODEL_INVALID", f"{path.name} does not fit into memory") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if not path.is_file():
        raise UsageError("E_NOT_FOUND", f"no model file {path}")
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise StorageError("E_IO", f"cannot read {path.name}") from error
