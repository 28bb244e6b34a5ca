"""ONNX Runtime loads a model no sooner than a scan fits; what a proof noted of its memory is believed until then."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.errors import InputError, UsageError
from medssl_cli.deploy import running_model
from medssl_cli.deploy.bundle import attach
from medssl_cli.deploy.infer import infer
from medssl_cli.deploy.memory_plan import PROGRAM_BYTES
from medssl_cli.deploy.model_process import ModelProcess
from medssl_cli.deploy.running_model import UnusableModelError
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.formats.nifti import write_nifti
from tests.toy_model import TILE, toy_bundle, toy_graph, write_toy_model

GIB = 2**30
NIFTI = {"device": "cpu", "outputs": ["nifti"], "max_ram_bytes": GIB}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A ramp, half of which is bright."""
    path = tmp_path / "a.nii.gz"
    write_nifti(path, np.arange(16 * 16 * 8).reshape(16, 16, 8).astype(np.int16) // 16, np.eye(4))
    return path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows whenever ONNX Runtime is told to load a model."""
    seen: list[str] = []
    begin = ModelProcess.begin_load
    monkeypatch.setattr(ModelProcess, "begin_load", lambda self, **how: (seen.append("load"), begin(self, **how))[1])
    return seen


@pytest.mark.usefixtures("cold_children")
def test_a_scan_that_cannot_fit_is_refused_without_the_model(tmp_path: Path, scan: Path, loads: list[str]) -> None:
    model = write_toy_model(tmp_path / "model.onnx", memory_bytes=GIB)

    refused = infer([scan], model, out=tmp_path / "out", **NIFTI)

    assert [result.code for result in refused.results] == ["E_TOO_BIG"]
    assert loads == []


@pytest.mark.usefixtures("cold_children")
def test_the_model_is_loaded_once_and_not_at_all_for_what_is_done(tmp_path: Path, scan: Path, loads: list[str]) -> None:
    model = write_toy_model(tmp_path / "model.onnx", memory_bytes=2**24)

    first = infer([scan], model, out=tmp_path / "out", **NIFTI)
    second = infer([scan], model, out=tmp_path / "out", **NIFTI)

    assert [result.status for result in (*first.results, *second.results)] == ["done", "done"]
    assert second.results[0].resumed
    assert loads == ["load"]


@pytest.mark.usefixtures("cold_children")
def test_a_model_that_is_opened_late_answers_as_the_same_opened_at_once(tmp_path: Path) -> None:
    path = write_toy_model(tmp_path / "model.onnx")
    tiles = np.random.default_rng(0).random((2, 1, *TILE), dtype=np.float32)

    with closing(OnnxModel(path, "cpu")) as early, closing(OnnxModel(path, "cpu", opens_late=True)) as late:
        assert early.predict(tiles).tobytes() == late.predict(tiles).tobytes()
        late.close()
        assert early.predict(tiles).tobytes() == late.predict(tiles).tobytes()


@pytest.mark.usefixtures("cold_children")
def test_a_graph_that_cannot_be_loaded_ends_the_call_and_costs_no_scan(tmp_path: Path, scan: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(attach(toy_graph(TILE[::-1]), toy_bundle()))

    with pytest.raises(UnusableModelError, match=r"E_MODEL_INVALID.*does not match its bundle"):
        infer([scan], path, out=tmp_path / "out", **NIFTI)

    assert not list(tmp_path.glob("out/*.nii.gz"))


@pytest.mark.usefixtures("cold_children")
def test_a_process_that_dies_while_it_loads_is_told_by_whoever_waits(tmp_path: Path) -> None:
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx"), "cpu", opens_late=True)
    model._process._process.kill()
    model._process._process.wait()

    model.begin_opening()

    with pytest.raises(UnusableModelError, match=r"E_MODEL_INVALID.*died"):
        model.open()


@pytest.mark.usefixtures("cold_children")
def test_what_a_proof_noted_counts_until_something_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = 300 * 2**20
    path = write_toy_model(tmp_path / "model.onnx", memory_bytes=noted)
    with closing(OnnxModel(path, "cpu", max_ram_bytes=GIB, opens_late=True)) as model:
        before = model.require_memory((16, 16, 8), np.eye(4))
        assert not model.measured_bytes  # memory is close, and the network was not called to learn what it takes
        model.predict(np.zeros((1, 1, *TILE), np.float32))
        after = model.require_memory((16, 16, 8), np.eye(4))

    assert before.model_bytes == noted
    assert 0 < after.model_bytes < noted
    with closing(OnnxModel(path, "cpu", max_ram_bytes=PROGRAM_BYTES + noted, opens_late=True)) as model:
        monkeypatch.setattr(model, "open", lambda: pytest.fail("it was loaded"))
        with pytest.raises(InputError, match="E_TOO_BIG"):
            model.require_memory((16, 16, 8), np.eye(4))


@pytest.mark.usefixtures("cold_children")
def test_weights_that_are_larger_than_what_is_allowed_are_never_loaded(tmp_path: Path, loads: list[str]) -> None:
    path = write_toy_model(tmp_path / "model.onnx")

    with pytest.raises(UsageError, match=r"E_MODEL_LIMIT: loading model.onnx takes more than .* GiB"):
        OnnxModel(path, "cpu", max_ram_bytes=path.stat().st_size - 1)

    assert loads == []


@pytest.mark.usefixtures("cold_children")
def test_other_devices_have_memory_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toy_model(tmp_path / "model.onnx", memory_bytes=2**50)
    monkeypatch.setattr(running_model, "device_of", lambda *_: "cuda:0")

    with closing(OnnxModel(path, "auto", opens_late=True)) as model:  # falls back to the CPU
        assert model.memory_plan((16, 16, 8), np.eye(4)).model_bytes < GIB
