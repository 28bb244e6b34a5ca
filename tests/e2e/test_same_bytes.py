"""The same recipe, seed and images give the same bytes, and nothing of the machine gets into a run."""

import os
import platform
import socket
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medssl_cli.engine.metrics_log import MetricsLog, read_metrics
from medssl_cli.engine.tensor_files import read_tensors, tensor_bytes
from tests.faults.test_artefacts import METHOD, TASK, call
from tests.toy_cache import toy_cache

pytestmark = pytest.mark.slow
COMMANDS = (
    "finetune --task task.yaml --cache ./cache --run ./task --device cpu",
    "pretrain --recipe method.yaml --cache ./cache --run ./method --device cpu",
    "export ./task out.onnx --cache ./cache --cases 1",
    "weights export ./method out.pt --as nnunet",
)
HOST = "name-of-the-machine"
TIMES = ("tensorboard", "page.html", "profile.json", "cost.json")  # they tell how long something took, or when


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders in which the same was done."""
    folders = []
    cache = toy_cache(tmp_path_factory.mktemp("one") / "cache", num_patients=7, size=16)
    for number in range(2):
        root = tmp_path_factory.mktemp(f"same{number}")
        (root / "cache").symlink_to(cache.root)
        (root / "task.yaml").write_text(TASK.replace("STEPS", "2"))
        (root / "method.yaml").write_text(METHOD)
        for command in COMMANDS:
            with pytest.MonkeyPatch.context() as renamed:
                for place, name in ((socket, "gethostname"), (socket, "getfqdn"), (platform, "node")):
                    renamed.setattr(place, name, lambda *_: HOST)
                code, _, said = call(command, root)
            assert code == 0, said
        folders.append(root)
    return folders[0], folders[1]


def files(root: Path) -> dict[str, Path]:
    """All but those of the cache, by name; of a checkpoint the digest in its name is left out."""
    found = [path for path in root.rglob("*") if path.is_file() and "cache" not in path.relative_to(root).parts]
    return {str(path.relative_to(root)): path for path in found}


def test_every_artefact_has_the_same_bytes(twice: tuple[Path, Path]) -> None:
    first, second = map(files, twice)
    compared = {name for name in first if not any(word in name for word in TIMES) and "/step-" not in name}

    assert {"method/encoder.safetensors", "task/manifest.json", "task/run.json", "out.onnx", "out.pt"} <= compared
    assert any(name.startswith("task/checkpoints/best-") for name in compared)
    assert [name for name in sorted(compared) if name not in second] == []
    assert [name for name in sorted(compared) if first[name].read_bytes() != second[name].read_bytes()] == []


def test_no_file_of_a_run_knows_the_machine_or_the_process(twice: tuple[Path, Path]) -> None:
    process = str(os.getpid())
    found = files(twice[0])

    assert len(found) > 15
    assert [name for name in found if HOST in name or f".{process}." in name or f"-{process}-" in name] == []
    assert [name for name, path in found.items() if HOST.encode() in path.read_bytes()] == []


def test_metadata_is_written_in_one_order_and_read_back() -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.tensor(1, dtype=torch.int64)}
    words = {name: name * 2 for name in "qwertyuiop"}

    data = {tensor_bytes(tensors, dict(sorted(words.items(), reverse=is_reversed))) for is_reversed in (False, True)}

    assert len(data) == 1
    assert data.pop()[8:].startswith(b'{"__metadata__":{"e":"ee","i":"ii"')


def test_tensors_of_any_name_survive_their_file(tmp_path: Path) -> None:
    tensors = {'quote"': torch.ones(2), "ä": torch.zeros(3, dtype=torch.bfloat16), "": torch.tensor([True])}
    (tmp_path / "file").write_bytes(tensor_bytes(tensors, {"k": 'ä"\\'}))

    found, words = read_tensors(tmp_path / "file")

    assert words == {"k": 'ä"\\'}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_tensorboard_reads_what_was_logged_before_and_after_a_stop(tmp_path: Path) -> None:
    for resume_step, losses in ((0, {1: 4.0, 2: 3.0, 3: 9.0}), (2, {3: 2.0, 4: 1.0}), (2, {3: 2.5, 4: 1.5})):
        log = MetricsLog(tmp_path, resume_step=resume_step)
        for step, loss in losses.items():
            log.write(step, {"loss": loss})
        log.close()

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 4), (2, 3), (3, 2.5), (4, 1.5)]
    assert [entry["loss"] for entry in read_metrics(tmp_path)] == [4, 3, 2.5, 1.5]
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == [
        "events.out.tfevents.0000000000",
        "events.out.tfevents.0000000002",
    ]
