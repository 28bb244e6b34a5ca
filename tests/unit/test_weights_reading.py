"""Weights files of any origin: tensors come out, or a reason; no file runs code, and none ends the program."""

import argparse
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medssl_cli.base.errors import UsageError
from medssl_cli.engine.weights.reading import Contents, Order, extract, read_untrusted

MARK = "MEDSSL_TEST_WAS_RUN"


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def weights() -> dict[str, torch.Tensor]:
    return {"encoder.weight": torch.arange(6.0).reshape(2, 3), "encoder.bias": torch.tensor([1.0, -2.0])}


def saved(document: Any, path: Path, **options: Any) -> Path:
    torch.save(document, path, **options)
    return path


def verdict(path: Path) -> Contents:
    return extract(Order(path, path.with_name("copy.safetensors")))


def assert_weights(path: Path) -> None:
    assert not verdict(path).refusal
    copy = load_file(path.with_name("copy.safetensors"))
    assert copy.keys() == weights().keys()
    assert all(torch.equal(copy[name], tensor) for name, tensor in weights().items())


def test_tensors_come_out_of_files_of_torch_new_and_old_and_of_safetensors(tmp_path: Path) -> None:
    assert_weights(saved(weights(), tmp_path / "new.pt"))
    assert_weights(saved(weights(), tmp_path / "old.pth", _use_new_zipfile_serialization=False))
    save_file(weights(), tmp_path / "file.safetensors")
    assert_weights(tmp_path / "file.safetensors")


def test_what_trainers_store_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    state = {
        "state_dict": weights(),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]},
        "args": argparse.Namespace(data="/data", folder=Path("/x")),
        "best": np.float64(0.9),
        "log": {"losses": np.zeros(3), "kind": np.dtype("float32")},
    }

    contents = verdict(saved(state, tmp_path / "trainer.pt"))

    assert contents == Contents(wrappers=("state_dict",))
    assert_weights(tmp_path / "trainer.pt")


def test_entries_that_are_no_tensors_are_counted(tmp_path: Path) -> None:
    path = saved({**weights(), "epoch": 3, "name": "x"}, tmp_path / "file.pt")

    assert verdict(path).num_others == 2
    assert_weights(path)


def test_shared_values_are_written_once(tmp_path: Path) -> None:
    tensor = torch.ones(1000)
    contents = verdict(saved({"a": tensor, "b": tensor, "c": tensor[:10]}, tmp_path / "file.pt"))

    copy = load_file(tmp_path / "copy.safetensors")
    assert len(copy) == 2
    assert {*copy, *contents.aliases} == {"a", "b", "c"}
    assert {*contents.aliases, *contents.aliases.values()} == {"a", "b"}
    assert torch.equal(copy["c"], torch.ones(10))


def test_views_of_the_same_values_keep_their_shapes(tmp_path: Path) -> None:
    tensor = torch.arange(6.0)
    expected = {"a": tensor, "b": tensor.view(2, 3), "c": tensor.view(2, 3).T, "d": tensor[2:4]}

    assert not verdict(saved(expected, tmp_path / "file.pt")).refusal

    copy = load_file(tmp_path / "copy.safetensors")
    assert copy.keys() == expected.keys()
    assert all(torch.equal(copy[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("is_new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize(
    "call",
    [
        Call(os.system, f"touch {MARK}"),
        Call(eval, f"open('{MARK}', 'w')"),
        Call(os.putenv, MARK, "1"),
        Call(__import__, "antigravity"),
        Call(torch.load, MARK),
    ],
    ids=["system", "eval", "putenv", "import", "load"],
)
def test_no_file_runs_code(call: Call, is_new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = {"state_dict": weights(), "extra": call}
    path = saved(document, tmp_path / "file.pt", _use_new_zipfile_serialization=is_new)

    refusal = verdict(path).refusal  # in this process: what ran would be seen

    assert refusal.startswith("it asks for code to be run" if is_new else "it is damaged, or no weights file")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file.pt"]
    assert MARK not in os.environ


def test_a_plain_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pt").write_bytes(pickle.dumps({"a": Call(os.system, f"touch {MARK}")}))

    assert verdict(tmp_path / "file.pt").refusal
    assert not (tmp_path / MARK).exists()


def test_a_pickled_network_is_refused_with_the_name_of_what_it_asks_for(tmp_path: Path) -> None:
    path = saved(torch.nn.Linear(2, 2), tmp_path / "network.pt")

    assert "torch.nn.modules.linear.Linear" in verdict(path).refusal


def test_a_request_for_endless_memory_costs_the_child_only(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(2), "b": Call(bytearray, 2**45)}, tmp_path / "file.pt")

    with pytest.raises(UsageError, match="E_WEIGHTS_FILE: it asks for more memory than it may have"):
        read_untrusted(path, tmp_path / "copy.safetensors")


def test_a_wrapper_that_holds_itself_has_an_end(tmp_path: Path) -> None:
    document: dict[str, Any] = {"weight": torch.zeros(2)}
    document["state_dict"] = document

    assert verdict(saved(document, tmp_path / "file.pt")) == Contents(wrappers=("state_dict",) * 4, num_others=1)


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    # Lists in lists, far deeper than Python may recurse.
    deep = b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", deep)
        archive.writestr("archive/version", "3\n")

    with pytest.raises(UsageError, match="E_WEIGHTS_FILE"):
        read_untrusted(path, tmp_path / "copy.safetensors")


def test_tensors_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "file.pt")

    assert verdict(path).refusal == "its tensors are larger than the file"


def test_archives_that_torch_did_not_write_are_refused(tmp_path: Path) -> None:
    path = saved(weights(), tmp_path / "file.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        target.writestr("archive/data/9", b"\0" * 10**8)

    assert bomb.stat().st_size < 10**6
    assert verdict(bomb).refusal == "it is an archive, but none that torch wrote"


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(1000)}, tmp_path / "file.pt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    assert verdict(path).refusal == "its checksums do not match: it was damaged on the way"


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file_is_refused_at_every_length(suffix: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole.{suffix}"
    saved(weights(), whole) if suffix == "pt" else save_file(weights(), whole)
    data = whole.read_bytes()
    path = tmp_path / "file"

    for length in {0, 1, 2, 3, 8, 9, 16, len(data) // 2, len(data) - 100, len(data) - 1}:
        path.write_bytes(data[:length])
        assert verdict(path).code == "E_WEIGHTS_FILE"
        assert verdict(path).refusal


@pytest.mark.parametrize("is_new", [True, False], ids=["zip", "old"])
def test_whatever_is_changed_in_a_file_there_is_a_verdict(is_new: bool, tmp_path: Path) -> None:
    data = saved(weights(), tmp_path / "whole.pt", _use_new_zipfile_serialization=is_new).read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "file.pt"
    refused = 0
    for _ in range(150):
        changed = bytearray(data)
        for position in random.integers(0, len(data), size=random.integers(1, 6)):
            changed[position] = random.integers(0, 256)
        path.write_bytes(changed)
        refused += bool(verdict(path).refusal)

    assert refused > 50


def test_a_safetensors_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}" + b"\0" * 100)

    assert verdict(path).refusal


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, "no named tensors"),
        ([torch.zeros(2)], "no named tensors"),
        ({"state_dict": {"epoch": 3}}, "no named tensors"),
        ({"\x1b[2J": torch.zeros(2)}, "names"),
        ({"a" * 300: torch.zeros(2)}, "names"),
        ({"a/../b": torch.zeros(2)}, "names"),
        ({"a": torch.tensor([1.0, float("nan")])}, "not finite"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "no plain arrays"),
        ({"a": torch.eye(3).to_sparse()}, "no plain arrays"),
        ({"a": torch.zeros(2, device="meta")}, "no plain arrays"),
    ],
    ids=["empty", "list", "numbers", "escape", "long", "path", "nan", "complex", "sparse", "meta"],
)
def test_only_plain_numbers_under_plain_names_are_taken(document: Any, reason: str, tmp_path: Path) -> None:
    assert reason in verdict(saved(document, tmp_path / "file.pt")).refusal


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", b"\x80\x02.", b"\0" * 100, b"PK\x03\x04" + b"\xff" * 99])
def test_files_that_are_no_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(content)

    assert verdict(tmp_path / "file.pt").refusal


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(UsageError, match="E_NOT_FOUND"):
            read_untrusted(path, tmp_path / "copy.safetensors")


def test_no_warning_or_text_of_a_file_reaches_the_streams(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    torch.save({"a": Call(print, "secret")}, buffer)
    (tmp_path / "file.pt").write_bytes(buffer.getvalue())

    with pytest.raises(UsageError, match=r"builtins\.print"):
        read_untrusted(tmp_path / "file.pt", tmp_path / "copy.safetensors")

    assert capfd.readouterr() == ("", "")


class Bytes:
    """Pickled as a call that allocates, which torch allows in a file."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (self.number,)


@pytest.mark.parametrize("number", [10**9, 2**62])
def test_a_small_file_cannot_take_much_memory(tmp_path: Path, number: int) -> None:
    torch.save({"state_dict": {"a": Bytes(number)}}, tmp_path / "file.pt")

    with pytest.raises(UsageError, match="E_WEIGHTS_FILE: it asks for more memory than it may have"):
        read_untrusted(tmp_path / "file.pt", tmp_path / "copy.safetensors")


@pytest.mark.parametrize("is_zip", [True, False])
def test_an_optimiser_that_a_trainer_stored_as_an_object_is_passed_over(tmp_path: Path, is_zip: bool) -> None:
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    document = {"epoch": 3, "state_dict": network.state_dict(), "optimizer": optimizer}
    torch.save(document, tmp_path / "file.pt", _use_new_zipfile_serialization=is_zip)

    contents = extract(Order(tmp_path / "file.pt", tmp_path / "copy.safetensors"))

    assert (contents.refusal, contents.wrappers) == ("", ("state_dict",))
    assert torch.equal(load_file(tmp_path / "copy.safetensors")["weight"], network.weight)
