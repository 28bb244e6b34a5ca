"""What rides inside `model.onnx`: all that inference needs and all that a reader should know about the model."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from medssl_cli.base.errors import StorageError, UsageError
from medssl_cli.base.plain_json import parse_json
from medssl_cli.base.strict import Digest, PositiveInt, Size, Strict
from medssl_cli.deploy.onnx_file import MAX_BYTES, read_head, seal, unseal
from medssl_cli.deploy.run_scores import RunScores
from medssl_cli.deploy.surprise import EmbeddingSummary
from medssl_cli.deploy.training_images import TrainingImages
from medssl_cli.heads import Head, MasksHead, Port
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe_sections import Algorithm, ClassDetails

HEAD_BYTES: Final = 4 * 1024 * 1024
Precision = Literal["float32", "float16"]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Parity(Strict):
    """How close ONNX Runtime came to torch on real images, end to end.

    Args:
        max_abs_difference: Largest |torch - onnx| of a network's number, divided by max(1, largest of its call).
        argmax_agreement: Fraction of voxels with the same class on the source grid; None of other answers than masks.
        min_dice: Smallest Dice between the two masks over cases and structures; None of other answers than masks.
        num_cases: Whole images compared.
    """

    max_abs_difference: Annotated[float, Field(ge=0)]
    argmax_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    min_dice: Annotated[float, Field(ge=0, le=1)] | None = None
    num_cases: PositiveInt


class Bundle(Strict):
    """The contract of an exported model.

    Args:
        task: Name of the task; also the name of the installed model.
        preprocessing: What the network sees of an image, its channels among it.
        head: What the model answers with, and how its numbers become answers.
        in_channels: Channels of the network's input; as many as preprocessing names, in its order.
        modality: Modality of the training images; None for any.
        label_set: Name of the reference labels in a cache.
        weights_sha256: SHA-256 of the weights that were exported.
        manifest_sha256: SHA-256 of the run's list of items.
        trained_on: `patient_digest` of every patient seen in training or model selection.
        split_seed: Seed of the patient split.
        fold: Fold of the patient split.
        class_details: What classes are in DICOM objects and how they are shown, where the recipe says so, by name.
        algorithm: What DICOM objects say made them, where the recipe says so.
        precision: What the network computes in; its inputs and outputs are float32 in any case.
        parity: None only while export has not compared the model with torch yet; such a model does not load.
        training: What the training images were like; None in models of medssl before it knew.
        scores: How the run did when it was evaluated; None where it was not, before its export.
        memory_bytes: Memory of the model's process once it had answered, when the file was proven; None in models of
            medssl before it noted that.
    """

    contract_version: Literal[2] = 2
    task: TaskName
    preprocessing: Preprocessing
    head: Head
    in_channels: PositiveInt = 1
    modality: str | None = None
    label_set: str = "seg"
    medssl_version: str
    recipe_sha256: Digest
    weights_sha256: Digest
    manifest_sha256: Digest
    trained_on: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")], ...] = ()
    split_seed: Annotated[int, Field(ge=0)]
    fold: Annotated[int, Field(ge=0)]
    class_details: dict[str, ClassDetails] = Field(default={})
    algorithm: Algorithm | None = None
    precision: Precision = "float32"
    parity: Parity | None = None
    intended_use: Annotated[str, Field(max_length=500)]
    licence: Annotated[str, Field(max_length=200)] = "not stated"
    training: TrainingImages | None = None
    scores: RunScores | None = None
    memory_bytes: PositiveInt | None = None

    @model_validator(mode="after")
    def _sorted_patients(self) -> Self:
        if list(self.trained_on) != sorted(set(self.trained_on)):
            raise ValueError("trained_on must be sorted and without repetition")
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.in_channels != len(self.preprocessing.rules):
            raise ValueError(f"preprocessing is of {len(self.preprocessing.rules)} channels, not {self.in_channels}")
        self.head.inputs(self.preprocessing, self.in_channels)
        return self

    @model_validator(mode="after")
    def _details_of_its_classes(self) -> Self:
        if not set(self.class_details) <= set(self.head.words):
            raise ValueError("class_details are of the classes")
        return self

    @property
    def takes_flat(self) -> bool:
        """Whether the model is for pictures and projections; else it is for volumes."""
        return self.head.takes_flat(self.preprocessing)

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What the network takes."""
        return self.head.inputs(self.preprocessing, self.in_channels)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What the network gives."""
        answers = self.head.outputs(self.preprocessing)
        summary = self.embeddings
        return answers if summary is None else (*answers, Port(name="embedding", sizes=("batch", summary.dim)))

    @property
    def embeddings(self) -> EmbeddingSummary | None:
        """What the embeddings of the training images were like, where the model gives embeddings beside its answers."""
        return None if self.training is None else self.training.embeddings

    @property
    def call_size(self) -> Size:
        """Voxels that one call of the network sees at most."""
        return self.head.call_size(self.preprocessing)

    def has_seen(self, patient_key: str) -> bool:
        """Whether the model was trained or selected on a patient of this key."""
        return patient_digest(patient_key) in self.trained_on

    @property
    def proof(self) -> str:
        """How well torch and ONNX Runtime agree, in one sentence."""
        if self.parity is None:
            return "not compared with torch yet"
        parity = self.parity
        masks = ""
        if parity.argmax_agreement is not None and parity.min_dice is not None:
            masks = f"on {100 * parity.argmax_agreement:.4f} % of voxels, Dice {parity.min_dice:.5f}, "
        half = "" if self.precision == "float32" else f" (computed in {self.precision})"
        return (
            f"torch and ONNX Runtime{half} agree {masks}logits within {parity.max_abs_difference:.1e}, "
            f"on {parity.num_cases} whole images"
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
    with opened_model(path) as stream:
        try:
            data = stream.read()
        except MemoryError as error:
            raise UsageError("E_MODEL_INVALID", f"{path.name} does not fit into memory") from error
    return data, *checked_model(data, path.name)


def checked_model(data: bytes | memoryview, name: str) -> tuple[Bundle, str]:
    """Check every byte of a model.

    Args:
        data: The whole file.
        name: How to call it in messages.

    Returns:
        Its bundle and its SHA-256.

    Raises:
        UsageError: `E_MODEL_INVALID`.
        GateError: `E_MODEL_CORRUPT`.
    """
    bundle_json, digest = unseal(data, name=name)
    bundle = _parse(bundle_json, name)
    if bundle.parity is None:
        raise UsageError("E_MODEL_INVALID", f"{name} was never compared with its trained network")
    return bundle, digest


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
        return Bundle.model_validate(_current(parse_json(bundle_json)))
    except ValidationError as error:
        places = {".".join(str(part) for part in fault["loc"]) or "bundle" for fault in error.errors()}
        where = ", ".join(sorted(places))
    except ValueError:
        where = "bundle"
    raise UsageError("E_MODEL_INVALID", f"{name} has a bundle that this medssl cannot read: {where}")


def _current(document: Any) -> Any:
    """A bundle's document in the form of today: those of contract 1 had masks only, whose fields were the bundle's."""
    if not isinstance(document, dict) or document.get("contract_version", 1) != 1:
        return document
    head = {name: document[name] for name in MasksHead.model_fields if name in document and name != "kind"}
    rest = {name: value for name, value in document.items() if name not in head}
    return {**rest, "contract_version": 2, "head": {**head, "kind": "masks"}}


@contextlib.contextmanager
def opened_model(path: Path) -> Iterator[BufferedReader]:
    """A model's file that is not larger than a model can be.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_MODEL_INVALID`.
        StorageError: `E_IO`, it cannot be read, inside the block too.
    """
    with _opened(path) as stream:
        if os.fstat(stream.fileno()).st_size > MAX_BYTES:
            raise UsageError("E_MODEL_INVALID", f"{path.name} is larger than 2 GiB")
        yield stream


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    if not path.is_file():
        raise UsageError("E_NOT_FOUND", f"no model file {path}")
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise StorageError("E_IO", f"cannot read {path.name}") from error
