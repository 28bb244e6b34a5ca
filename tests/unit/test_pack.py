"""Packs of models: the same models give the same bytes, and nothing that was touched on the way is installed."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import GateError, MedsslError, UsageError
from medssl_cli.deploy import pack
from medssl_cli.deploy.model_store import ModelStore
from medssl_cli.deploy.pack import MANIFEST, unpack, write_pack
from tests.toy_model import write_toy_model

Members = dict[str, bytes]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    found = ModelStore(tmp_path / "models")
    for task in ("heart", "liver"):
        found.add(write_toy_model(tmp_path / "any.onnx", task=task))
    return found


@pytest.fixture
def packed(store: ModelStore, tmp_path: Path) -> Path:
    write_pack(tmp_path / "models.zip", store, store.names())
    return tmp_path / "models.zip"


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_models_arrive_as_they_were(store: ModelStore, packed: Path, tmp_path: Path) -> None:
    other = ModelStore(tmp_path / "other")

    done = unpack(packed, other)

    assert [(one.name, one.status) for one in done] == [("heart", "installed"), ("liver", "installed")]
    assert [other.find(name).read_bytes() for name in other.names()] == [
        store.find(name).read_bytes() for name in store.names()
    ]
    assert sorted(path.name for path in other.root.iterdir()) == ["heart.onnx", "liver.onnx"]


def test_the_same_models_give_the_same_bytes_and_say_what_they_are(
    store: ModelStore, packed: Path, tmp_path: Path
) -> None:
    write_pack(tmp_path / "again.zip", store, ["liver", "heart", "heart"])

    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    members = members_of(packed)
    assert list(members) == ["cards/heart.md", "models/heart.onnx", "cards/liver.md", "models/liver.onnx", MANIFEST]
    (first, _) = json.loads(members[MANIFEST])["models"]
    assert first["sha256"] == hashlib.sha256(members["models/heart.onnx"]).hexdigest()
    assert (first["licence"], first["intended_use"]) == ("not stated", "Tests")
    assert members["cards/heart.md"].startswith(b"# heart\n")


def test_a_pack_is_unpacked_again_without_change(packed: Path, tmp_path: Path) -> None:
    other = ModelStore(tmp_path / "other")
    unpack(packed, other)
    inode = other.find("heart").stat().st_ino

    assert [one.status for one in unpack(packed, other)] == ["kept", "kept"]
    assert other.find("heart").stat().st_ino == inode


def test_another_model_of_the_name_stops_everything_unless_it_may_be_replaced(packed: Path, tmp_path: Path) -> None:
    other = ModelStore(tmp_path / "other")
    own = other.add(write_toy_model(tmp_path / "any.onnx", task="liver", fold=3)).path
    before = own.read_bytes()

    with pytest.raises(UsageError, match="E_MODEL_EXISTS"):
        unpack(packed, other)
    assert other.names() == ["liver"]
    assert own.read_bytes() == before

    assert [one.status for one in unpack(packed, other, replace=True)] == ["installed", "replaced"]
    assert own.read_bytes() != before


def without(members: Members, name: str) -> Members:
    return {key: data for key, data in members.items() if key != name}


def manifest_with(members: Members, **changes: object) -> Members:
    document = json.loads(members[MANIFEST])
    document["models"][0] |= changes
    return {**members, MANIFEST: json.dumps(document).encode()}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def with_other_model(members: Members) -> Members:
    """A file that is no model, of which the manifest tells the truth."""
    data = b"nothing"
    told = manifest_with(members, sha256=digest(data), size_bytes=len(data))
    return {**told, "models/heart.onnx": data}


EDITS: dict[str, tuple[Callable[[Members], Members], str]] = {
    "no manifest": (lambda members: without(members, MANIFEST), "E_PACK_INVALID"),
    "manifest is no JSON": (lambda members: {**members, MANIFEST: b"{"}, "E_PACK_INVALID"),
    "manifest of the future": (
        lambda members: {**members, MANIFEST: members[MANIFEST].replace(b'"pack_version": 1', b'"pack_version": 2')},
        "E_PACK_INVALID",
    ),
    "member missing": (lambda members: without(members, "models/liver.onnx"), "E_PACK_INVALID"),
    "member more": (lambda members: {**members, "models/other.onnx": b"x"}, "E_PACK_INVALID"),
    "member outside": (lambda members: {**members, "../evil.onnx": b"x"}, "E_PACK_INVALID"),
    "absolute member": (lambda members: {**members, "/tmp/evil.onnx": b"x"}, "E_PACK_INVALID"),
    "name that leads out": (lambda members: manifest_with(members, name="../heart"), "E_PACK_INVALID"),
    "size differs": (lambda members: manifest_with(members, size_bytes=5), "E_PACK_INVALID"),
    "huge size": (lambda members: manifest_with(members, size_bytes=2**60), "E_PACK_INVALID"),
    "digest differs": (lambda members: manifest_with(members, sha256="0" * 64), "E_PACK_CORRUPT"),
    "card differs": (lambda members: {**members, "cards/heart.md": b"# Approved for everything"}, "E_PACK_CORRUPT"),
    "no model": (with_other_model, "E_PACK_CORRUPT"),
    "models exchanged": (
        lambda members: {
            **manifest_with(members, sha256=digest(members["models/liver.onnx"])),
            "models/heart.onnx": members["models/liver.onnx"],
        },
        "E_PACK_CORRUPT",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_pack_that_was_edited_installs_nothing(packed: Path, tmp_path: Path, name: str) -> None:
    change, code = EDITS[name]
    edited, other = write(tmp_path / "edited.zip", change(members_of(packed))), ModelStore(tmp_path / "other")

    with pytest.raises(MedsslError) as refused:
        unpack(edited, other)

    assert refused.value.code == code
    assert not other.root.exists() or list(other.root.iterdir()) == []


def test_a_link_in_a_pack_is_refused(packed: Path, tmp_path: Path) -> None:
    members, path = members_of(packed), tmp_path / "linked.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = (0o120777 if name == "models/heart.onnx" else 0o100644) << 16
            archive.writestr(info, data)

    with pytest.raises(UsageError, match="E_PACK_INVALID"):
        unpack(path, ModelStore(tmp_path / "other"))


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_a_pack_that_was_cut_off_is_refused(packed: Path, tmp_path: Path, keep: int) -> None:
    cut = tmp_path / "cut.zip"
    cut.write_bytes(packed.read_bytes()[:keep])

    with pytest.raises(UsageError, match="E_PACK_INVALID"):
        unpack(cut, ModelStore(tmp_path / "other"))


def test_flipped_bytes_are_found_wherever_they_are(packed: Path, tmp_path: Path) -> None:
    """But for bytes of a member's own header, which its directory repeats and nobody reads."""
    data, other = packed.read_bytes(), ModelStore(tmp_path / "other")
    flipped = tmp_path / "flipped.zip"
    with zipfile.ZipFile(packed) as archive:
        starts = [one.header_offset + len(one.FileHeader()) for one in archive.infolist()]
        places = [start + part * one.file_size // 4 for start, one in zip(starts, archive.infolist(), strict=True)
                  for part in range(4)]  # fmt: skip
    for place in places:
        flipped.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(MedsslError, match="E_PACK_"):
            unpack(flipped, other)
        assert other.names() == []


def test_a_kill_between_two_models_leaves_whole_ones_and_the_same_call_goes_on(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, calls, replace = ModelStore(tmp_path / "other"), list[Path](), pack.replace_file

    def killed(temporary: Path, path: Path) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(path)
        replace(temporary, path)

    with monkeypatch.context() as once:
        once.setattr(pack, "replace_file", killed)
        with pytest.raises(KeyboardInterrupt):
            unpack(packed, other)

    assert [path.name for path in other.root.iterdir()] == ["heart.onnx"]
    assert other.show("heart").bundle is not None
    assert [one.status for one in unpack(packed, other)] == ["kept", "installed"]


def test_only_a_pack_is_replaced_by_a_pack(store: ModelStore, packed: Path, tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("dear colleague")

    with pytest.raises(UsageError, match="E_OUTPUT_EXISTS"):
        write_pack(letter, store, ["heart"])
    assert letter.read_text() == "dear colleague"

    write_pack(packed, store, ["heart"])
    assert "models/liver.onnx" not in members_of(packed)

    # The manifest came first before models were read only once.
    members = members_of(packed)
    write(packed, {MANIFEST: members.pop(MANIFEST), **members})
    write_pack(packed, store, ["liver"])
    assert "models/liver.onnx" in members_of(packed)


def test_each_model_is_read_once(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, opening = list[str](), Path.open

    def watched(path: Path, *rest: Any, **options: Any) -> Any:
        opened.append(path.name)
        return opening(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", watched)
        write_pack(tmp_path / "models.zip", store, store.names())

    assert [name for name in opened if name.endswith(".onnx")] == ["heart.onnx", "liver.onnx"]


def test_a_damaged_or_renamed_model_is_not_packed(store: ModelStore, tmp_path: Path) -> None:
    path = store.find("heart")
    path.rename(path.with_name("renamed.onnx"))
    with pytest.raises(UsageError, match="E_MODEL_INVALID"):
        write_pack(tmp_path / "models.zip", store, ["renamed"])

    damaged = store.find("liver")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(GateError, match="E_MODEL_CORRUPT"):
        write_pack(tmp_path / "models.zip", store, ["liver"])
    assert not (tmp_path / "models.zip").exists()
