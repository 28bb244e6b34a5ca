"""Installed models: under their task's name, checked when they come in, listed even when damaged."""

from pathlib import Path

import pytest

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.deploy.model_store import ModelStore, resolve_model
from tests.toy_model import write_toy_model


def test_a_model_is_installed_under_its_tasks_name(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")

    installed = store.add(write_toy_model(tmp_path / "any-name.onnx"))

    assert installed.name == "toy-seg"
    assert store.names() == ["toy-seg"]
    assert store.find("toy-seg").read_bytes() == (tmp_path / "any-name.onnx").read_bytes()
    assert store.show("toy-seg").bundle == installed.bundle
    assert store.show(str(installed.path)).bundle == installed.bundle


def test_installing_again_changes_nothing_and_a_newer_model_replaces(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    first = write_toy_model(tmp_path / "first.onnx")
    path = store.add(first).path
    inode = path.stat().st_ino

    store.add(first)
    assert path.stat().st_ino == inode

    second = write_toy_model(tmp_path / "second.onnx", fold=1)
    store.add(second)
    assert path.read_bytes() == second.read_bytes()


def test_a_damaged_model_does_not_come_in_but_is_listed_if_it_is(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    path = store.add(write_toy_model(tmp_path / "model.onnx")).path
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(path.read_bytes()[:-1] + b"x")

    with pytest.raises(GateError, match="E_MODEL_CORRUPT"):
        store.add(damaged)

    path.write_bytes(b"nothing")
    (listed,) = store.models()
    assert listed.bundle is None
    assert "E_MODEL_INVALID" in listed.problem


def test_a_removed_model_is_gone(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    store.add(write_toy_model(tmp_path / "model.onnx"))

    store.remove("toy-seg")

    assert store.models() == []
    with pytest.raises(UsageError, match="E_NO_MODEL"):
        store.remove("toy-seg")


def test_without_a_model_the_error_says_how_to_get_one(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")

    with pytest.raises(UsageError, match="E_NO_MODEL") as nothing:
        resolve_model("heart-seg", store)
    assert "medssl export RUN --install" in nothing.value.hint

    store.add(write_toy_model(tmp_path / "model.onnx"))
    with pytest.raises(UsageError) as misspelt:
        resolve_model("toy-sge", store)
    assert "did you mean 'toy-seg'?" in misspelt.value.hint


def test_a_task_is_an_installed_name_or_a_path(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    path = write_toy_model(tmp_path / "model.onnx")
    store.add(path)

    assert resolve_model("toy-seg", store) == store.find("toy-seg")
    assert resolve_model(str(path), store) == path
    with pytest.raises(UsageError, match="E_NOT_FOUND"):
        resolve_model(str(tmp_path / "other.onnx"), store)
