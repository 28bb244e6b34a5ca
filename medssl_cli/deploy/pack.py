"""Several models in one file, for places without a network: a zip archive whose manifest names every member's SHA-256.

    cards/NAME.md        the card of each model
    models/NAME.onnx     the sealed models, as they are installed
    manifest.json        what is inside, each with size and digest

The same models give the same bytes. Nothing is installed before every member was checked: those that the manifest names
and no others, each of its size and digest, each a sound model of its name. The digests find damage; they are no
signature.
"""

import contextlib
import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from medssl_cli.base.errors import GateError, InputError, MedsslError, UsageError
from medssl_cli.base.files import (
    candidate_for,
    finish_output,
    json_bytes,
    make_output_folder,
    open_regular,
    remove_temporaries,
    replace_file,
    sha256_file,
    storage_errors,
    temporary_in,
)
from medssl_cli.base.plain_json import parse_json
from medssl_cli.base.strict import Digest, Strict
from medssl_cli.deploy.bundle import TaskName, load_model
from medssl_cli.deploy.card import card_markdown
from medssl_cli.deploy.model_store import ModelStore
from medssl_cli.deploy.onnx_file import MAX_BYTES
from medssl_cli.formats.archives import Archive, ArchiveEntry, open_archive

MANIFEST: Final = "manifest.json"
MAX_MODELS: Final = 500
MAX_MANIFEST_BYTES: Final = 2**20
MAX_CARD_BYTES: Final = 2**20
LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)
"""Time of every member, so that the same models give the same bytes."""
NAME_OF_FIRST: Final = 30
"""Where a zip archive names its first member: a card, or of packs by an earlier medssl the manifest."""
HINT: Final = "copy the pack again from where it came, or make it again: medssl models pack"


class PackedModel(Strict):
    """What a manifest says of one model.

    Args:
        name: Name that it is installed under.
        size_bytes: Size of its file.
        sha256: Digest of its file.
        card_sha256: Digest of its card.
        intended_use: What it is for.
        licence: Licence of its weights.
    """

    name: TaskName
    size_bytes: Annotated[int, Field(gt=0, le=MAX_BYTES)]
    sha256: Digest
    card_sha256: Digest
    intended_use: Annotated[str, Field(max_length=500)]
    licence: Annotated[str, Field(max_length=200)]

    @property
    def model(self) -> str:
        """Member with the model."""
        return f"models/{self.name}.onnx"

    @property
    def card(self) -> str:
        """Member with the card."""
        return f"cards/{self.name}.md"


class PackManifest(Strict):
    """What a pack holds.

    Args:
        pack_version: Version of this layout.
        models: Models by name.
    """

    pack_version: Literal[1] = 1
    models: Annotated[tuple[PackedModel, ...], Field(min_length=1, max_length=MAX_MODELS)]

    @property
    def members(self) -> list[str]:
        """Names of all members, in their order."""
        return [MANIFEST, *(one.card for one in self.models), *(one.model for one in self.models)]


@dataclass(frozen=True)
class Unpacked:
    """What became of one model of a pack: `installed`, `replaced`, or `kept` where the same one was there already."""

    name: str
    status: Literal["installed", "replaced", "kept"]


def write_pack(path: Path, store: ModelStore, names: Sequence[str]) -> PackManifest:
    """Pack installed models into one file.

    Args:
        path: File to write; a pack of that name is replaced.
        store: Where the models are.
        names: Which of them; every byte of each is checked.

    Raises:
        UsageError: `E_NO_MODEL`, `E_MODEL_INVALID`; `E_OUTPUT_EXISTS`, something else is there.
        GateError: `E_MODEL_CORRUPT`.
        StorageError: `E_IO`.
    """
    if os.path.lexists(path) and not _begins_like_a_pack(path):
        raise UsageError("E_OUTPUT_EXISTS", f"{path.name} exists and is no pack of models", hint="choose another name")
    make_output_folder(path.parent)
    remove_temporaries(path.parent)
    with candidate_for(path) as candidate:
        with storage_errors(path.name), zipfile.ZipFile(candidate, "x") as archive:
            models = tuple(_packed(archive, store.find(name)) for name in sorted(set(names)))
            manifest = PackManifest(models=models)
            _add(archive, MANIFEST, json_bytes(manifest.model_dump(mode="json")))
        finish_output(candidate)
    return manifest


def unpack(path: Path, store: ModelStore, *, replace: bool = False) -> list[Unpacked]:
    """Check a pack whole, then install its models.

    A model that is installed with the same bytes is kept. One of the same name with other bytes is an error, and
    nothing is installed, unless `replace`. Every model gets its name in one step: after a kill the same call goes on.

    Args:
        path: The pack.
        store: Where the models go.
        replace: Whether installed models of the same names are replaced.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_PACK_INVALID`; `E_MODEL_EXISTS`.
        GateError: `E_PACK_CORRUPT`.
        StorageError: `E_IO`.
    """
    if not path.is_file():
        raise UsageError("E_NOT_FOUND", f"no file {path}", hint="check the spelling")
    with _refusals(path):
        archive = open_archive(path)
        manifest, entries = _checked_members(archive)
    make_output_folder(store.root)
    remove_temporaries(store.root)
    before = {one.name: _installed_sha256(store, one.name) for one in manifest.models}
    changed = [one.name for one in manifest.models if before[one.name] not in (None, one.sha256)]
    if changed and not replace:
        raise UsageError(
            "E_MODEL_EXISTS",
            f"other models are installed as {', '.join(changed[:5])}; nothing was unpacked",
            hint="pass --replace to medssl models unpack, or unpack into another folder with --models",
        )
    with contextlib.ExitStack() as stack:
        ready = []
        for packed in manifest.models:
            place = temporary_in(store.root)
            stack.callback(place.unlink, missing_ok=True)
            with _refusals(path):
                _require_digest(packed.card, packed.card_sha256, archive.stream(entries[packed.card]))
                _write(place, packed, archive.stream(entries[packed.model]))
            ready.append(place)
        return [
            _install(place, packed, store, before[packed.name])
            for place, packed in zip(ready, manifest.models, strict=True)
        ]


def _packed(archive: zipfile.ZipFile, path: Path) -> PackedModel:
    """Add a model and its card to a pack: the bytes that were checked are those that are copied.

    Raises:
        UsageError: `E_MODEL_INVALID`.
        GateError: `E_MODEL_CORRUPT`.
    """
    data, bundle, _ = load_model(path)
    if bundle.task != path.stem:
        raise UsageError(
            "E_MODEL_INVALID",
            f"{path.name} is not called as its task is",
            hint="install it by: medssl models add FILE",
        )
    card = card_markdown(bundle).encode()
    packed = PackedModel(
        name=bundle.task,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        card_sha256=hashlib.sha256(card).hexdigest(),
        intended_use=bundle.intended_use,
        licence=bundle.licence,
    )
    _add(archive, packed.card, card)
    _add(archive, packed.model, data)
    return packed


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """A member without compression, which weights do not gain from, and without a trace of this machine."""
    member = zipfile.ZipInfo(name, date_time=LONG_AGO)
    member.create_system, member.external_attr = 3, 0o100644 << 16
    archive.writestr(member, data)


def _begins_like_a_pack(path: Path) -> bool:
    try:
        with open_regular(path) as stream:
            start = stream.read(NAME_OF_FIRST + len(MANIFEST))
    except (OSError, ValueError):
        return False
    return start.startswith(b"PK\x03\x04") and start[NAME_OF_FIRST:].startswith((b"cards/", MANIFEST.encode()))


def _checked_members(archive: Archive) -> tuple[PackManifest, dict[str, ArchiveEntry]]:
    """The manifest and the members that it names, of sizes that may be unpacked.

    Raises:
        UsageError: `E_PACK_INVALID`.
        InputError: The archive cannot be read.
    """
    if not 0 < len(archive) <= 2 * MAX_MODELS + 1:
        raise _invalid(f"{len(archive)} members")
    listed = [archive.entry(number) for number in range(len(archive))]
    entries = {str(entry.inner): entry for entry in listed}
    first = entries.get(MANIFEST)
    if first is None or first.size > MAX_MANIFEST_BYTES:
        raise _invalid("no manifest")
    try:
        document = parse_json(b"".join(archive.stream(first)), are_keys_unique=True)
        manifest = PackManifest.model_validate(document)
    except (ValidationError, ValueError) as error:
        raise _invalid("a manifest that this medssl cannot read") from error
    if sorted(manifest.members) != sorted(str(entry.inner) for entry in listed):
        raise _invalid("other members than its manifest names")
    for packed in manifest.models:
        if entries[packed.model].size != packed.size_bytes or entries[packed.card].size > MAX_CARD_BYTES:
            raise _invalid(f"another size of {packed.name} than its manifest says")
    return manifest, entries


def _invalid(what: str) -> UsageError:
    return UsageError("E_PACK_INVALID", f"the file is no pack of models: it has {what}", hint=HINT)


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Around reading a pack: whatever is wrong with the archive is wrong with the pack.

    Raises:
        UsageError: `E_PACK_INVALID`.
        GateError: `E_PACK_CORRUPT`, a member is damaged.
    """
    try:
        yield
    except InputError as error:
        if error.code == "E_ARCHIVE_CRC":
            raise GateError("E_PACK_CORRUPT", f"{path.name}: {error.message}", hint=HINT) from error
        raise UsageError("E_PACK_INVALID", f"{path.name} is no pack of models: {error.message}", hint=HINT) from error


def _require_digest(member: str, sha256: str, pieces: Iterator[bytes]) -> None:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    if digest.hexdigest() != sha256:
        raise GateError("E_PACK_CORRUPT", f"{member} is another one than the manifest says", hint=HINT)


def _write(place: Path, packed: PackedModel, pieces: Iterator[bytes]) -> None:
    """A model under a temporary name, on the disk, of the digest that the manifest says, sound and of its name.

    Raises:
        GateError: `E_PACK_CORRUPT`.
        StorageError: `E_IO`.
    """
    with storage_errors("the model store"):
        if packed.size_bytes > shutil.disk_usage(place.parent).free:
            raise OSError(28, "no space left")
        with place.open("xb") as stream:
            _require_digest(packed.model, packed.sha256, _copied(pieces, stream))
        finish_output(place)
    try:
        _, bundle, _ = load_model(place)
    except MedsslError as error:
        raise GateError("E_PACK_CORRUPT", f"{packed.model} cannot be used: {error.code}", hint=HINT) from error
    if bundle.task != packed.name:
        raise GateError("E_PACK_CORRUPT", f"{packed.model} is the model {bundle.task}", hint=HINT)


def _copied(pieces: Iterator[bytes], stream: Any) -> Iterator[bytes]:
    for piece in pieces:
        stream.write(piece)
        yield piece


def _install(place: Path, packed: PackedModel, store: ModelStore, before: str | None) -> Unpacked:
    if before == packed.sha256:
        return Unpacked(packed.name, "kept")
    with storage_errors("the model store"):
        replace_file(place, store.path_of(packed.name))
    return Unpacked(packed.name, "installed" if before is None else "replaced")


def _installed_sha256(store: ModelStore, name: str) -> str | None:
    path = store.path_of(name)
    with storage_errors("the model store"):
        return sha256_file(path) if path.is_file() else None
