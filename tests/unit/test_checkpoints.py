"""Checkpoints: exact, digested, a few kept, and a damaged one costs a few steps instead of the run."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medssl_cli.base.errors import GateError
from medssl_cli.base.files import sha256_file
from medssl_cli.engine.checkpoints import (
    KEEP,
    Checkpoint,
    CheckpointFolder,
    optimizer_tensors,
    prefixed,
    restore_optimizer,
    unprefixed,
)
from medssl_cli.engine.optimisation import build_optimizer
from medssl_cli.engine.runs import Manifest, start_run
from medssl_cli.recipe import Optimizer, find_recipe, load_recipe
from tests.listener import Listener


def checkpoint(step: int, value: float | None = None) -> Checkpoint:
    tensors = {"weight": torch.full((2, 3), float(step if value is None else value)), "count": torch.tensor(step)}
    return Checkpoint(step, tensors, {"best": {"dice": 0.5}, "step": step})


def files(root: Path) -> list[str]:
    """Kind and step of every file."""
    return sorted(path.name.rpartition("-")[0] for path in root.iterdir())


def file(root: Path, start: str) -> Path:
    (found,) = root.glob(f"{start}-*.safetensors")
    return found


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_tensors_and_values_come_back_bit_for_bit(root: Path, dtype: torch.dtype) -> None:
    tensor = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    values = {"none": None, "list": [1, 2.5, "x"], "tiny": 1e-300, "third": 1 / 3}

    CheckpointFolder(root).save(Checkpoint(5, {"a": tensor, "scalar": torch.tensor(2.0)}, values))
    back = CheckpointFolder(root).load_last(pytest.fail)

    assert back is not None
    assert (back.step, back.values) == (5, values)
    assert back.tensors["a"].dtype == dtype
    assert torch.equal(back.tensors["a"], tensor)
    assert back.tensors["scalar"].shape == ()


def test_tensors_of_any_memory_layout_keep_their_values(root: Path) -> None:
    tensor = torch.arange(2 * 3 * 4 * 5 * 6.0).view(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)

    CheckpointFolder(root).save(Checkpoint(1, {"a": tensor, "t": tensor[0, 0, 0].T, "g": nn.Parameter(tensor[1])}, {}))
    back = CheckpointFolder(root).load_last(pytest.fail)

    assert back is not None
    assert torch.equal(back.tensors["a"], tensor)
    assert torch.equal(back.tensors["t"], tensor[0, 0, 0].T)
    assert torch.equal(back.tensors["g"], tensor[1])


def test_a_new_folder_has_none(root: Path) -> None:
    assert CheckpointFolder(root).load_last(pytest.fail) is None
    assert CheckpointFolder(root).load_best() is None
    assert root.stat().st_mode & 0o777 == 0o700


def test_the_last_few_are_kept_and_their_names_carry_their_digests(root: Path) -> None:
    folder = CheckpointFolder(root)
    for step in range(1, 6):
        folder.save(checkpoint(step))

    assert KEEP == 3
    assert files(root) == [f"step-0000000{step}" for step in (3, 4, 5)]
    for path in root.iterdir():
        assert path.name.endswith(f"-{sha256_file(path)}.safetensors")


def test_the_best_is_kept_beside_the_last_and_replaced_by_a_better_one(root: Path) -> None:
    folder = CheckpointFolder(root)
    folder.save(checkpoint(1), is_best=True)
    for step in range(1, 6):
        folder.save(checkpoint(step))
    best = folder.load_best()
    assert best is not None
    assert best.step == 1

    folder.save(checkpoint(5, value=-1), is_best=True)

    best, last = folder.load_best(), folder.load_last(pytest.fail)
    assert best is not None
    assert last is not None
    assert (best.step, best.tensors["weight"][0, 0], last.tensors["weight"][0, 0]) == (5, -1, 5)
    assert files(root) == ["best-00000005", *(f"step-0000000{step}" for step in (3, 4, 5))]


def test_a_damaged_last_one_falls_back_to_the_one_before_and_says_so(root: Path) -> None:
    folder = CheckpointFolder(root)
    for step in (10, 20, 30):
        folder.save(checkpoint(step))
    damage(file(root, "step-00000030"))
    file(root, "step-00000020").unlink()
    listener = Listener()

    back = folder.load_last(listener.note)

    assert back is not None
    assert back.step == 10
    assert len(listener.notes) == 1
    assert listener.notes[0].startswith("W_CHECKPOINT_FALLBACK")
    assert "step 10" in listener.notes[0]


def test_work_that_is_done_again_replaces_what_was_damaged(root: Path) -> None:
    folder = CheckpointFolder(root)
    for step in (10, 20, 30):
        folder.save(checkpoint(step))
    damage(file(root, "step-00000030"))

    folder.save(checkpoint(20, value=7))  # resumed from 10, and 30 now lies in the future
    back = folder.load_last(pytest.fail)

    assert back is not None
    assert (back.step, back.tensors["weight"][0, 0]) == (20, 7)
    assert files(root) == ["step-00000010", "step-00000020"]


def test_when_all_are_damaged_training_does_not_start_from_nothing(root: Path) -> None:
    folder = CheckpointFolder(root)
    for step in (10, 20):
        folder.save(checkpoint(step))
        damage(file(root, f"step-000000{step}"))

    with pytest.raises(GateError, match="all 2 checkpoints") as caught:
        folder.load_last(pytest.fail)

    assert caught.value.code == "E_CHECKPOINT_CORRUPT"


def test_a_damaged_best_is_an_error(root: Path) -> None:
    folder = CheckpointFolder(root)
    folder.save(checkpoint(1), is_best=True)
    damage(file(root, "best-00000001"))

    with pytest.raises(GateError, match="E_CHECKPOINT_CORRUPT"):
        folder.load_best()


def test_a_name_that_says_nothing_is_no_reason_to_start_from_nothing(root: Path) -> None:
    folder = CheckpointFolder(root)
    folder.save(checkpoint(1))
    file(root, "step-00000001").rename(root / "step-00000001.safetensors")

    with pytest.raises(GateError, match="E_CHECKPOINT_CORRUPT"):
        folder.load_last(pytest.fail)


def test_a_checkpoint_under_the_name_of_another_step_does_not_count(root: Path) -> None:
    folder = CheckpointFolder(root)
    folder.save(checkpoint(1))
    path = file(root, "step-00000001")
    path.rename(root / path.name.replace("step-00000001", "step-00000009"))

    with pytest.raises(GateError, match="E_CHECKPOINT_CORRUPT"):
        folder.load_last(pytest.fail)


def test_every_flip_of_one_bit_in_any_file_is_noticed(root: Path) -> None:
    """300 flips over all files of the folder; what is loaded is always exactly what was saved."""
    folder = CheckpointFolder(root)
    for step in (10, 20, 30):
        folder.save(checkpoint(step))
    paths = sorted(root.iterdir())
    sizes = np.array([path.stat().st_size for path in paths])
    rng = np.random.default_rng(0)
    for number in range(300):
        bit = int(rng.integers(8 * sizes.sum()))
        which = int(np.searchsorted(sizes.cumsum(), bit // 8, side="right"))
        data = paths[which].read_bytes()
        place = bit // 8 - int(sizes[:which].sum())
        paths[which].write_bytes(data[:place] + bytes([data[place] ^ (1 << bit % 8)]) + data[place + 1 :])
        told: list[str] = []

        back = folder.load_last(told.append)

        assert back is not None
        is_last = paths[which].name.startswith("step-00000030")
        expected = checkpoint(20 if is_last else 30)
        assert len(told) == is_last, number
        assert (back.step, back.values) == (expected.step, expected.values), number
        assert all(torch.equal(back.tensors[name], value) for name, value in expected.tensors.items()), number
        paths[which].write_bytes(data)
    assert len(paths) == KEEP


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> Tensor:
    for step in steps:
        batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(batch).square().mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize(
    "options",
    [
        Optimizer(learning_rate=0.01),
        Optimizer(name="sgd", learning_rate=0.01, momentum=0.9),
        Optimizer(name="sgd", learning_rate=0.01, momentum=0),
        Optimizer(learning_rate=0.01, amsgrad=True),
    ],
    ids=["adamw", "sgd", "sgd without momentum", "amsgrad"],
)
def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(root: Path, options: Optimizer) -> None:
    straight = network(0)
    expected = train(straight, build_optimizer(straight, options), range(8))
    first = network(0)
    optimizer = build_optimizer(first, options)
    train(first, optimizer, range(5))
    tensors = prefixed("task", first.state_dict()) | optimizer_tensors(optimizer)
    CheckpointFolder(root).save(Checkpoint(5, tensors, {}))

    loaded = CheckpointFolder(root).load_last(pytest.fail)
    assert loaded is not None
    second = network(1)
    second.load_state_dict(unprefixed("task", loaded.tensors))
    optimizer = build_optimizer(second, options)
    restore_optimizer(optimizer, loaded.tensors)

    assert torch.equal(train(second, optimizer, range(5, 8)), expected)
    assert optimizer.param_groups[0]["lr"] == options.learning_rate


def test_without_the_optimizer_state_it_would_go_on_differently(root: Path) -> None:
    options = Optimizer(learning_rate=0.01)
    straight = network(0)
    expected = train(straight, build_optimizer(straight, options), range(8))
    second = network(0)
    train(second, build_optimizer(second, options), range(5))

    assert not torch.equal(train(second, build_optimizer(second, options), range(5, 8)), expected)


def test_prefixes_undo_each_other_and_do_not_mix() -> None:
    tensors = {"a.b": torch.zeros(1), "c": torch.ones(1)}

    both = prefixed("task", tensors) | prefixed("task2", {"a.b": torch.full((1,), 2.0)})

    assert unprefixed("task", both) == tensors
    assert unprefixed("average", both) == {}


def test_what_a_killed_process_left_in_a_run_is_removed_when_it_goes_on(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("voco-tiny"))
    run = start_run(tmp_path / "run", "pretrain", recipe, Manifest({"train": []}, {}))
    (run.root / "plots").mkdir()
    mine = run.root / "plots" / f".tmp-{os.getpid()}-0123456789ab"
    left = [run.root / ".tmp-999999999-0123456789ab", run.root / "plots" / ".tmp-999999999-0123456789ab"]
    for path in (mine, *left):
        path.write_bytes(b"half")

    start_run(tmp_path / "run", "pretrain", recipe, Manifest({"train": []}, {}))

    assert mine.exists()
    assert not any(path.exists() for path in left)
