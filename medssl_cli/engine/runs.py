"""The run folder: what was trained on what, how it went, and everything needed to go on or to use it.

RUN/run.json  recipe.lock.yaml  manifest.json  environment.json  metrics.jsonl  tensorboard/  checkpoints/  cost.json
encoder.safetensors  learnt.json  summary.json

A run folder may come from anywhere: whatever is read here is bounded, checked, and refused with a code.
"""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from medssl_cli import __version__
from medssl_cli.base.errors import GateError, MedsslError, UsageError
from medssl_cli.base.files import (
    read_regular,
    remove_temporaries,
    sha256_json,
    storage_errors,
    write_atomic,
    write_json,
)
from medssl_cli.base.plain_json import parse_json
from medssl_cli.base.plain_yaml import MAX_BYTES, parse_yaml
from medssl_cli.base.strict import Digest, Strict
from medssl_cli.cache.items import Entry, ItemRecord
from medssl_cli.cache.publish import unreadable
from medssl_cli.engine.checkpoints import CheckpointFolder
from medssl_cli.engine.earlier_recipes import with_norm_of_decoder
from medssl_cli.engine.resuming import argument_changes, described, longer, recipe_changes
from medssl_cli.recipe import PretrainRecipe, Recipe, dump_recipe, to_yaml, validate_recipe

PACKAGES: Final = ("torch", "monai", "numpy", "lightning-fabric", "blosc2", "SimpleITK")
LOCK: Final = "recipe.lock.yaml"
RECORD: Final = "run.json"
SUMMARY: Final = "summary.json"
MANIFEST: Final = "manifest.json"
Kind = Literal["pretrain", "finetune"]
T = TypeVar("T")


class RunRecord(Strict):
    """`run.json`: what makes a folder a run. Runs of medssl before it have none; their recipe tells their kind.

    Args:
        format_version: 1 is from before decoders followed `backbone.norm`.
        kind: The command that made it.
        recipe_sha256: SHA-256 of the plain data in `recipe.lock.yaml`, as it was written.
        recipe_sha256_before: Digest of the recipe that it replaced: after a kill between the two files the old one is
            there.
    """

    format_version: Literal[1, 2] = 2
    kind: Kind
    recipe_sha256: Digest
    recipe_sha256_before: Digest | None = None


class _ManifestItem(BaseModel):
    """Fields of a manifest's item that others rely on."""

    item: str
    patient: str


class _Origin(BaseModel):
    """Whom the weights that a run began with have seen."""

    patients: list[str] | None
    labelled: list[str]


class _Arguments(BaseModel):
    """Arguments in a manifest that others rely on."""

    fold: Annotated[int, Field(ge=0, le=2**31)] = 0
    init: _Origin | None = None


class _ManifestDocument(BaseModel):
    """`manifest.json`."""

    arguments: _Arguments
    splits: dict[str, list[_ManifestItem]]
    sha256: Digest


@dataclass(frozen=True)
class Manifest:
    """Which items a run uses, with their digests.

    Args:
        splits: Items of each split, by its name.
        arguments: Other choices that decide what is trained (fold, fraction, initial weights, budget).
    """

    splits: dict[str, Sequence[ItemRecord | Entry]]
    arguments: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """JSON with its own digest."""
        body = {
            "arguments": self.arguments,
            "splits": {
                name: [
                    {
                        "item": record.item_id,
                        "patient": record.patient_key,
                        "image_sha256": record.image_sha256,
                        "label_sha256": dict(sorted(record.label_digests.items())),
                    }
                    for record in records
                ]
                for name, records in self.splits.items()
            },
        }
        return {**body, "sha256": sha256_json(body)}


@dataclass(frozen=True)
class Run:
    """An open run folder."""

    root: Path
    kind: Kind
    recipe: Recipe
    manifest: dict[str, Any]
    grown: str = ""
    """How much longer this call makes it, for a message."""

    @property
    def checkpoints(self) -> CheckpointFolder:
        """Its checkpoints."""
        return CheckpointFolder(self.root / "checkpoints")

    @property
    def encoder_path(self) -> Path:
        """Pre-trained backbone weights, written when pre-training ends."""
        return self.root / "encoder.safetensors"

    @property
    def learnt_path(self) -> Path:
        """What was learnt on the validation images of reading the network's answers, where anything was."""
        return self.root / "learnt.json"

    @property
    def summary_path(self) -> Path:
        """Written when the run is finished."""
        return self.root / SUMMARY

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return is_finished(self.root)

    def summary(self, kind: type[T], change: Callable[[dict[str, Any]], dict[str, Any]]) -> T:
        """How a finished run ended.

        Args:
            kind: A dataclass.
            change: Change from what the file says to the fields of the dataclass; it may raise KeyError.

        Raises:
            GateError: `E_RUN_CORRUPT`.
        """
        document = read_document(self.summary_path)
        try:
            return TypeAdapter(kind).validate_python(change(document))
        except (ValidationError, KeyError) as error:
            raise damaged(self.summary_path.name) from error


def start_run(root: Path, kind: Kind, recipe: Recipe, manifest: Manifest) -> Run:
    """Make a run folder, or open the one that the same command made before, and remove what a killed one left behind.

    Keys that change nothing that is learnt may have changed since, and the training may have become longer; see
    `engine.resuming`.

    Raises:
        UsageError: `E_RECIPE_CHANGED` if the folder belongs to another recipe or to other data; it names what differs.
        GateError: `E_RUN_CORRUPT`.
    """
    document = manifest.document()
    if (root / LOCK).is_file():
        run = open_run(root)
        if run.kind != kind:
            _refuse(root, f"medssl {run.kind}")
        run = _gone_on(run, recipe, document)
        _tidy(root)
        return run
    if os.path.lexists(root / LOCK) or (root / SUMMARY).exists() or any(root.glob("checkpoints/*.safetensors")):
        raise damaged(LOCK, "it is gone, and the folder holds what a run has learnt")
    with storage_errors("the run"):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    _tidy(root)
    write_json(root / "environment.json", environment())
    write_json(root / MANIFEST, document)
    _write_lock(root, kind, recipe)
    return Run(root, kind, recipe, document)


def _gone_on(run: Run, recipe: Recipe, document: dict[str, Any]) -> Run:
    """A run with what the present command may change of it."""
    changes = recipe_changes(dump_recipe(run.recipe), dump_recipe(recipe))
    options = argument_changes(run.manifest["arguments"], document["arguments"])
    grown = longer(changes | options)
    refused = {key: change for key, change in (changes | options).items() if key not in grown}
    if refused:
        _refuse(run.root, f"another recipe or other options: {described(refused)}")
    if run.manifest["splits"] != document["splits"]:
        _refuse(run.root, "other images or labels")
    if not grown:
        return replace(run, recipe=recipe)
    run.summary_path.unlink(missing_ok=True)  # first: an interrupted change must not look finished
    if options:
        write_json(run.root / MANIFEST, document)
    _write_lock(run.root, run.kind, recipe)
    return Run(run.root, run.kind, recipe, document if options else run.manifest, described(grown))


def _write_lock(root: Path, kind: Kind, recipe: Recipe) -> None:
    """Write a run's recipe, and its hash before it, so that a kill in between leaves a run that can be opened.

    Raises:
        StorageError: `E_IO`.
    """
    text = f"# medssl {kind}\n" + to_yaml(dump_recipe(recipe))
    before = _digest_of(_lock_text(root)) if (root / LOCK).is_file() else None
    record = RunRecord(kind=kind, recipe_sha256=_digest_of(text), recipe_sha256_before=before)
    write_json(root / RECORD, record.model_dump(mode="json", exclude_none=True))
    write_atomic(root / LOCK, text.encode())


def _digest_of(text: str) -> str:
    """Digest of a recipe's plain data: comments and layout do not count."""
    return sha256_json(parse_yaml(text, source=LOCK))


def _tidy(root: Path) -> None:
    for folder in (root, *(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())):
        remove_temporaries(folder)


def _refuse(root: Path, what: str) -> None:
    raise UsageError(
        "E_RECIPE_CHANGED",
        f"the run {root} was started with {what}",
        hint="choose another folder with --run, or remove this one",
    )


def open_run(root: Path) -> Run:
    """Open an existing run folder.

    Raises:
        UsageError: `E_NO_RUN`, `E_RECIPE`.
        GateError: `E_RUN_CORRUPT`, a file of it is damaged, or its recipe was changed after it was written.
    """
    if not (root / LOCK).is_file():
        raise UsageError("E_NO_RUN", f"{root} is not a run of medssl", hint="name a folder under ./runs")
    document = parse_yaml(_lock_text(root), source=LOCK)
    recipe = validate_recipe(document, source=LOCK)
    kind: Kind = "pretrain" if isinstance(recipe, PretrainRecipe) else "finetune"
    record = _record(root)
    if record is not None and record.kind != kind:
        raise damaged(LOCK, f"it is no recipe of a {record.kind} run")
    if record is not None and sha256_json(document) not in (record.recipe_sha256, record.recipe_sha256_before):
        raise damaged(LOCK, "it was changed after it was written")
    if record is None or record.format_version == 1:
        recipe = with_norm_of_decoder(recipe)
    return Run(root, kind, recipe, manifest_of(root))


def is_finished(root: Path) -> bool:
    """Whether nothing is left to do for the run in a folder."""
    return (root / SUMMARY).is_file()


def is_finished_for(root: Path, *, steps: int, max_minutes: float | None) -> bool:
    """Whether the run in a folder is finished, and is not to become longer.

    Raises:
        UsageError: `E_NO_RUN`, `E_RECIPE`.
        GateError: `E_RUN_CORRUPT`.
    """
    if not is_finished(root):
        return False
    run = open_run(root)
    minutes = run.manifest["arguments"].get("max_minutes")
    return not longer({"steps": (run.recipe.steps, steps), "max_minutes": (minutes, max_minutes)})


def is_pretraining(root: Path) -> bool:
    """Whether a folder is a run of `medssl pretrain`; one that cannot be read is none."""
    try:
        record = _record(root)
        return record.kind == "pretrain" if record is not None else "method" in parse_yaml(_lock_text(root), source="")
    except (MedsslError, OSError):
        return False


def _record(root: Path) -> RunRecord | None:
    if not os.path.lexists(root / RECORD):
        return None
    try:
        return RunRecord.model_validate(read_document(root / RECORD))
    except ValidationError as error:
        raise damaged(RECORD) from error


def _lock_text(root: Path) -> str:
    try:
        return read_regular(root / LOCK, max_bytes=MAX_BYTES).decode()
    except ValueError as error:
        raise damaged(LOCK) from error


def manifest_of(root: Path) -> dict[str, Any]:
    """The checked `manifest.json` of a run.

    Raises:
        GateError: `E_RUN_CORRUPT`.
    """
    document = read_document(root / MANIFEST)
    try:
        _ManifestDocument.model_validate(document, strict=True)
    except ValidationError as error:
        raise damaged(MANIFEST) from error
    if document["sha256"] != sha256_json({key: value for key, value in document.items() if key != "sha256"}):
        raise damaged(MANIFEST, "its digest is another")
    return document


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object in a file of a run.

    Raises:
        GateError: `E_RUN_CORRUPT`, it is missing or something else.
        StorageError: `E_IO`, it cannot be read now.
    """
    try:
        document = parse_json(read_regular(path))
    except FileNotFoundError as error:
        raise damaged(path.name, "it is gone") from error
    except ValueError as error:
        raise damaged(path.name) from error
    except OSError as error:
        raise unreadable(path.name, error) from error
    if not isinstance(document, dict):
        raise damaged(path.name)
    return document


def damaged(name: str, why: str = "it is not what medssl writes") -> GateError:
    """`E_RUN_CORRUPT` about a file of a run."""
    return GateError("E_RUN_CORRUPT", f"{name} of the run is damaged: {why}")


def environment() -> dict[str, Any]:
    """Versions that a result depends on; nothing about the user or the machine's name."""
    return {
        "medssl": __version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
    }


def run_name(base: str, recipe: Recipe, shipped: Recipe, parts: Sequence[str] = ()) -> str:
    """Default folder name: readable, and different when options differ from the shipped recipe."""
    tag = [] if dump_recipe(recipe) == dump_recipe(shipped) else [sha256_json(dump_recipe(recipe))[:6]]
    return "-".join([base, *parts, *tag])
