"""The run folder: what was trained on what, how it went, and everything needed to go on or to use it.

RUN/recipe.lock.yaml  manifest.json  environment.json  metrics.jsonl  tensorboard/  checkpoints/  encoder.safetensors
"""

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from medssl_cli import __version__
from medssl_cli.cache.items import Entry, ItemRecord
from medssl_cli.engine.checkpoints import CheckpointFolder
from medssl_cli.engine.resuming import argument_changes, described, longer, recipe_changes
from medssl_cli.errors import UsageError
from medssl_cli.files import remove_temporaries, sha256_json, storage_errors, write_atomic, write_json
from medssl_cli.plain_yaml import parse_yaml
from medssl_cli.recipe import Recipe, dump_recipe, to_yaml, validate_recipe

PACKAGES: Final = ("torch", "monai", "numpy", "lightning-fabric", "blosc2", "SimpleITK")
LOCK: Final = "recipe.lock.yaml"
Kind = Literal["pretrain", "finetune"]


@dataclass(frozen=True)
class Manifest:
    """Which items a run uses, with their digests.

    Args:
        splits: For each split name, the items.
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
    def summary_path(self) -> Path:
        """Written when the run is finished."""
        return self.root / "summary.json"

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.summary_path.is_file()


def start_run(root: Path, kind: Kind, recipe: Recipe, manifest: Manifest) -> Run:
    """Make a run folder, or open the one that the same command made before, and remove what a killed one left behind.

    Keys that change nothing that is learnt may have changed since, and the training may have become longer; see
    `engine.resuming`.

    Raises:
        UsageError: `E_RECIPE_CHANGED` if the folder belongs to another recipe or to other data; it names what differs.
    """
    document = manifest.document()
    if (root / LOCK).is_file():
        run = open_run(root)
        if run.kind != kind:
            _refuse(root, f"medssl {run.kind}")
        run = _gone_on(run, recipe, document)
        _tidy(root)
        return run
    with storage_errors("the run"):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    _tidy(root)
    write_json(root / "environment.json", environment())
    write_json(root / "manifest.json", document)
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
        write_json(run.root / "manifest.json", document)
    _write_lock(run.root, run.kind, recipe)
    return Run(run.root, run.kind, recipe, document if options else run.manifest, described(grown))


def _write_lock(root: Path, kind: Kind, recipe: Recipe) -> None:
    write_atomic(root / LOCK, (f"# medssl {kind}\n" + to_yaml(dump_recipe(recipe))).encode())


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
        UsageError: `E_NO_RUN`.
    """
    lock = root / LOCK
    if not lock.is_file():
        raise UsageError("E_NO_RUN", f"{root} is not a run of medssl", hint="name a folder under ./runs")
    text = lock.read_text(encoding="utf-8")
    recipe = validate_recipe(parse_yaml(text, source=LOCK), source=LOCK)
    kind: Kind = "pretrain" if is_pretraining(root) else "finetune"
    manifest = json.loads((root / "manifest.json").read_bytes())
    return Run(root, kind, recipe, manifest)


def is_pretraining(root: Path) -> bool:
    """Whether a folder is a run of `medssl pretrain`; decided without reading more than its first line."""
    lock = root / LOCK
    return lock.is_file() and lock.read_text(encoding="utf-8").startswith("# medssl pretrain")


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
