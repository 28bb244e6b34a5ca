"""Every file of a run and of a cache, damaged in every way: commands refuse with a code, and never wait for ever.

The commands run in this process, one after another on copies; a pipe that somebody waits for ends the test by an alarm.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from typer.testing import CliRunner

from medssl_cli.base.codes import CODES
from medssl_cli.cli.app import app
from medssl_cli.deploy import export
from medssl_cli.deploy.export import onnx_graph
from tests.toy_cache import toy_cache
from tests.toy_recipes import TINY_UNET, balls_yaml

pytestmark = pytest.mark.slow
PATIENCE_S = 60
NAMES = ("task.yaml", "method.yaml", "./cache", "./task", "./method", "./new", "out", "out.onnx", "out.pt")
EXITS = {0, 2, 3, 4, 5, 74}
CODE = re.compile(r"\b[EW]_[A-Z0-9_]+\b")
TASK = balls_yaml(
    backbone={**TINY_UNET, "channels": [4, 4]},
    optimizer={"learning_rate": 1e-2},
    steps=2,
    validate_every=2,
    checkpoint_every=1,
    log_every=1,
)
METHOD = """\
schema: 1
backbone: {name: plainconv, channels: [4, 4], strides: [1, 2], num_convs: [1, 1]}
method: {name: voco, base_grid: [2, 2, 1], num_random_crops: 4, projector_dim: 8}
data: {modality: CT, window_hu: [-200, 300], crop_size: [8, 8, 8], batch_size: 2}
optimizer: {learning_rate: 1.0e-3}
steps: 2
checkpoint_every: 1
log_every: 1
"""
WAYS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "list": lambda path: path.write_text("[]"),
    "another type": lambda path: path.write_text('{"a": [1, {"b": null}], "sha256": 7, "splits": 3}'),
    "deep": lambda path: path.write_text('{"a":' + "[" * 10_000 + "]" * 10_000 + "}"),
    "huge": lambda path: path.write_text('{"format_version": ' + "9" * 6000 + "}"),
    "no number": lambda path: path.write_text('{"format_version": NaN, "step": Infinity, "loss": -Infinity}'),
    "gone": lambda path: None,
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
}
KEEPS = ("empty", "cut", "garbage", "list", "another type", "deep", "huge", "no number")


@dataclass(frozen=True)
class World:
    """A cache with two runs on it, whole."""

    root: Path

    def copy(self, folder: Path) -> Path:
        """Of everything, to be damaged."""
        shutil.copytree(self.root, folder, symlinks=True)
        return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world") / "whole"
    toy_cache(root / "cache", num_patients=7, size=16)
    (root / "task.yaml").write_text(TASK)
    (root / "method.yaml").write_text(METHOD)
    for command in (
        "finetune --task task.yaml --cache ./cache --run ./task --device cpu",
        "pretrain --recipe method.yaml --cache ./cache --run ./method --device cpu",
    ):
        code, _, said = call(command, root)
        assert code == 0, said
    return World(root)


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """Every run that exports here is a copy of one, and tracing takes most of the time: equal weights, equal graph."""
    graphs: dict[bytes, bytes] = {}

    def once(network: Any, *ports: Any) -> bytes:
        weights = safetensors.torch.save({name: value.clone() for name, value in network.state_dict().items()})
        if weights not in graphs:
            graphs[weights] = onnx_graph(network, *ports)
        return graphs[weights]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "onnx_graph", once)
        yield


def call(command: str, root: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command whose words that name files of the root are paths to them."""
    words = [str(root / word) if word in NAMES else word for word in command.split()]
    with alarmed():
        done = CliRunner().invoke(app, words)
    return done.exit_code, done.stdout, done.stderr


@contextmanager
def alarmed() -> Iterator[None]:
    """Nothing may wait: who waits for a pipe waits for ever."""

    def ring(*_: object) -> None:
        raise AssertionError(f"waited for more than {PATIENCE_S} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damage(path: Path, way: str) -> None:
    if way not in KEEPS:
        path.unlink()
    WAYS[way](path)


def is_told(code: int, said: str) -> bool:
    """Whether a command ended as it may: well, or with a registered code."""
    words = set(CODE.findall(said))
    return code in EXITS and "bug" not in said and "Traceback" not in said and (code == 0 or bool(words & set(CODES)))


RUN_FILES = ("run.json", "recipe.lock.yaml", "manifest.json", "environment.json metrics.jsonl summary.json")
TASK_COMMANDS = (
    "evaluate ./task --cache ./cache -o out --pictures 0",
    "export ./task out.onnx --cache ./cache",
    "finetune --task task.yaml --cache ./cache --run ./task --device cpu",
)
METHOD_COMMANDS = (
    "pretrain --recipe method.yaml --cache ./cache --run ./method --device cpu",
    "weights export ./method out.pt --as nnunet",
    "finetune --task task.yaml --cache ./cache --run ./new --device cpu --init ./method",
)
CACHE_COMMANDS = (
    "cache ls --cache ./cache",
    "cache labels --cache ./cache",
    "cache verify --cache ./cache",
    "cache audit --cache ./cache",
    "cache rebuild --cache ./cache",
    "cache export out --cache ./cache",
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names", RUN_FILES)
def test_a_file_of_a_run(world: World, tmp_path: Path, names: str, way: str) -> None:
    """Those that no answer depends on all at once."""
    root = world.copy(tmp_path / "w")
    for run in ("task", "method"):
        for name in names.split():
            damage(root / run / name, way)

    for command in (*TASK_COMMANDS, *METHOD_COMMANDS[:1]):
        code, _, said = call(command, root)
        assert is_told(code, said), (command, code, said[-600:])
        if names == "recipe.lock.yaml" or (names == "manifest.json" and "evaluate" in command):
            assert code != 0, command


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint(world: World, tmp_path: Path, way: str) -> None:
    """Under its right digest, where there are bytes: anybody can compute one."""
    root = world.copy(tmp_path / "w")
    for run in ("task", "method"):
        (root / run / "summary.json").unlink()
        for path in sorted((root / run / "checkpoints").iterdir()):
            damage(path, way)
            if way in KEEPS:
                path.rename(path.with_name(f"{path.name.rpartition('-')[0]}-{sha256(path)}.safetensors"))

    for command in (*TASK_COMMANDS, METHOD_COMMANDS[0]):
        code, _, said = call(command, root)
        assert is_told(code, said), (command, code, said[-600:])
        is_first = command != METHOD_COMMANDS[0]
        assert way == "gone" or not is_first or code != 0, (command, code, said[-600:])


def sha256(path: Path) -> str:
    from medssl_cli.base.files import sha256_file

    return sha256_file(path)


@pytest.mark.parametrize("way", WAYS)
def test_an_encoder(world: World, tmp_path: Path, way: str) -> None:
    root = world.copy(tmp_path / "w")
    damage(root / "method" / "encoder.safetensors", way)

    for command in METHOD_COMMANDS[1:]:
        code, _, said = call(command, root)
        assert is_told(code, said), (command, code, said[-600:])
        assert code != 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["cache.json", "catalog.sqlite", "site.key", "item.json", "image.b2nd", "label"])
def test_a_file_of_a_cache(world: World, tmp_path: Path, name: str, way: str) -> None:
    root = world.copy(tmp_path / "w")
    found = sorted((root / "cache").rglob("label-seg*.json" if name == "label" else name))
    damage(found[0], way)

    for command in CACHE_COMMANDS:
        code, out, said = call(command, root)
        assert is_told(code, said + out), (command, code, said[-600:])
        if name == "item.json" and command.startswith("cache rebuild"):
            assert found[0].parent.name in said
            assert code == (74 if way == "loop" else 3)  # a link that leads nowhere may be the fault of a disk


@pytest.mark.parametrize("way", WAYS)
def test_a_recipe(tmp_path: Path, way: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(METHOD)
    damage(path, way)

    code, _, said = call(f"recipes check {path}", tmp_path)

    assert code == 2, said[-600:]
    assert CODE.search(said)


@pytest.mark.parametrize(
    "text",
    [
        f"steps: 0x{'f' * 6000}",
        f"steps: {'9' * 5000}",
        "steps: .inf",
        "steps: 1.0e+400",
        "seed: 99999999999999999999",
        "a: &a [x]\nb: *a",
        "a: " + "[" * 3000,
        "backbone: {name: unet, channels: [1000000000, 4], strides: [1, 2]}",
        "backbone: {name: unet, in_channels: 4}",
        "backbone: {name: resnet, width: 8000}",
        "backbone: {name: unet, channels: {a: 1}}",
        "backbone: {name: unet, spatial_dims: 9}",
        "data: {modality: CT, crop_size: [1, 2]}",
        "? [a]\n: b",
        "2001-01-01: 3",
    ],
    ids=lambda text: text[:24],
)
def test_a_hostile_recipe(tmp_path: Path, text: str) -> None:
    key = text.partition(":")[0]
    lines = [line for line in METHOD.splitlines() if not line.startswith(f"{key}:")]
    (tmp_path / "recipe.yaml").write_text("\n".join([*lines, text]))

    code, _, said = call(f"recipes check {tmp_path / 'recipe.yaml'}", tmp_path)

    assert (code, "E_" in said, "bug" in said) == (2, True, False), said[-600:]


def test_a_recipe_that_was_edited_after_the_training_is_refused_and_a_comment_is_not(
    world: World, tmp_path: Path
) -> None:
    root = world.copy(tmp_path / "w")
    lock = root / "task" / "recipe.lock.yaml"
    text = lock.read_text()
    lock.write_text("# read by nobody\n" + text.replace("# medssl finetune\n", ""))
    assert call(TASK_COMMANDS[0], root)[0] == 0

    for old, new in (("-200.0", "-190.0"), ("ball_1", "ball_3"), ("overlap: 0.5", "overlap: 0.25")):
        assert old in text
        lock.write_text(text.replace(old, new))
        for command in TASK_COMMANDS:
            code, _, said = call(command, root)
            assert (code, "E_RUN_CORRUPT" in said) == (5, True), (command, said)


def test_a_run_of_a_medssl_before_run_json_still_opens(world: World, tmp_path: Path) -> None:
    root = world.copy(tmp_path / "w")
    for run in ("task", "method"):
        (root / run / "run.json").unlink()
        lock = root / run / "recipe.lock.yaml"
        lock.write_text(lock.read_text().partition("\n")[2])  # nothing hangs on the comment

    for command in (TASK_COMMANDS[0], TASK_COMMANDS[2], METHOD_COMMANDS[0]):
        assert call(command, root)[0] == 0, command
    assert "E_USAGE" in call("export ./method out.onnx --cache ./cache", root)[2]


def test_the_manifest_of_a_run_cannot_be_rewritten_unnoticed(world: World, tmp_path: Path) -> None:
    root = world.copy(tmp_path / "w")
    path = root / "task" / "manifest.json"
    document = json.loads(path.read_text())
    document["splits"]["test"] = document["splits"]["train"]
    path.write_text(json.dumps(document))

    code, _, said = call(TASK_COMMANDS[0], root)

    assert (code, "E_RUN_CORRUPT" in said) == (5, True)
