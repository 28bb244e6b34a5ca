"""Codes that no other test meets, each given once by the part of the program that gives it."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medssl_cli.base.errors import Exit, GateError, InputError, InterruptedCleanlyError, UsageError
from medssl_cli.base.signals import stop_on_signals
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.cli.scoring import load_subject
from medssl_cli.demo.road import Step
from medssl_cli.demo.run import StepFailedError, _run
from medssl_cli.deploy.bundle import patient_digest
from medssl_cli.deploy.infer import infer
from medssl_cli.deploy.model_process import ModelFailure, ModelProcess
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.engine.finetune import Choices, finetune
from medssl_cli.engine.optimisation import require_finite
from medssl_cli.engine.weights import Encoder, initialise
from medssl_cli.formats.dicom import write_ct_series
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.imaging.volume import Volume
from medssl_cli.ingest.failures import crash
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.recipe import Named, TaskRecipe, find_recipe, load_recipe
from medssl_cli.work.child import OUT_OF_MEMORY
from tests.command import medssl
from tests.dicom_factory import ct_series, edit
from tests.toy_cache import toy_cache
from tests.toy_model import TILE, write_toy_model

UNET = Named.model_validate({"name": "unet", "channels": [4, 8], "strides": [2], "num_res_units": 1})


class Heard(Exception):  # noqa: N818 - not an error: the test has heard enough
    """The note that a test waits for."""


class WaitFor(Silence):
    """Ends a command as soon as it says something."""

    def __init__(self, word: str) -> None:
        self.word = word

    def note(self, text: str) -> None:
        super().note(text)
        if text.startswith(self.word):
            raise Heard(text)


def test_a_file_of_unknown_modality_in_a_cache_with_its_own_key(tmp_path: Path) -> None:
    voxels = np.arange(8 * 7 * 6, dtype=np.int16).reshape(8, 7, 6)
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in" / "p1.nii.gz", voxels, np.diag([-1.0, 1.0, 2.0, 1.0]))

    done = medssl("ingest", tmp_path / "in", "--cache", tmp_path / "cache", "--workers", "1")

    assert done.exit_code == Exit.OK
    assert "W_UNKNOWN_MODALITY" in done.stdout
    assert "W_EPHEMERAL_KEY" in done.stderr


def test_the_smaller_version_of_a_series_is_superseded(tmp_path: Path) -> None:
    ct_series(tmp_path / "large", positions_mm=(0, 5, 10, 15, 20))
    ct_series(tmp_path / "small", positions_mm=(0, 5, 10, 15))

    first = ingest([tmp_path / "large"], tmp_path / "cache", IngestOptions(workers=1))
    second = ingest([tmp_path / "small"], tmp_path / "cache", IngestOptions(workers=1))

    assert "W_SUPERSEDED" not in first.by_code
    assert second.by_code["W_SUPERSEDED"] >= 1
    assert [record.shape[2] for record in Cache.open(tmp_path / "cache").records()] == [5]


def test_an_exported_model_is_not_tested_on_patients_it_has_seen(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=7, size=16)
    seen = tuple(sorted(patient_digest(record.patient_key) for record in cache.records()))
    model = write_toy_model(tmp_path / "model.onnx", modality="CT", trained_on=seen)

    with pytest.raises(GateError, match="E_SPLIT_LEAK"):
        load_subject(model, cache, split="test", device="cpu")


def test_an_encoder_that_has_seen_images_of_test_patients_is_noted(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=7, size=16)
    patients = frozenset(record.patient_key for record in cache.records())
    recipe = load_recipe(find_recipe("heart-seg"), ["data.modality=CT", "data.window_hu=[-200, 300]"])
    assert isinstance(recipe, TaskRecipe)

    with pytest.raises(Heard, match=r"^W_SPLIT_LEAK: .* of [1-9] test patients$"):
        finetune(
            recipe,
            cache,
            tmp_path / "run",
            Choices(encoder=Encoder(UNET, {}, "0" * 64, patients)),
            device="cpu",
            talk=WaitFor("W_SPLIT_LEAK"),
        )


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training(loss: float) -> None:
    with pytest.raises(GateError, match="E_DIVERGED"):
        require_finite(torch.tensor(loss), 3, ["item"])


def test_weights_of_another_network_are_refused() -> None:
    encoder = Encoder(UNET, {"weight": torch.zeros(2, 3), "extra": torch.zeros(1)}, "0" * 64, frozenset())

    with pytest.raises(UsageError, match="E_WEIGHTS_MISMATCH: 1 tensors missing, 1 unexpected, 1 of another shape"):
        initialise(nn.Linear(2, 2), encoder)


def test_a_failure_inside_onnx_runtime_is_one_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx"), "cpu")

    def fail(*args: object, **kwargs: object) -> None:
        raise ModelFailure("failed")

    monkeypatch.setattr(ModelProcess, "compute", fail)

    with pytest.raises(InputError, match="E_RUNTIME"):
        model.predict(np.zeros((1, 1, *TILE), np.float32))


def flat_series(folder: Path) -> list[Path]:
    volume = Volume(np.zeros((1, 20, 18, 10), np.int16), np.diag([-1.0, 1.0, 2.0, 1.0]), "CT", "HU")
    return write_ct_series(
        folder, volume, patient_id="P", patient_name="N", study_uid="1.2.3", series_uid="1.2.3.4",
        frame_of_reference_uid="1.2.9", series_description="", file_names=[f"{k}.dcm" for k in range(10)],
    )  # fmt: skip


def test_attributes_of_a_series_that_break_the_standard_are_told_and_not_repeated(tmp_path: Path) -> None:
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    for file in flat_series(tmp_path / "ct"):
        edit(file, PatientSex="unknown")  # not one of the words that PS3.3 C.7.1.1 defines

    (result,) = infer([tmp_path / "ct"], model, out=tmp_path / "out", device="cpu").results

    assert "W_SEG_ATTRIBUTES" in result.warnings
    assert "PatientSex" in result.message
    assert len(result.outputs) == 2


def test_a_series_whose_headers_allow_no_dicom_objects_still_gets_its_mask(tmp_path: Path) -> None:
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    for number, file in enumerate(flat_series(tmp_path / "ct")):
        edit(file, SOPInstanceUID=f"x.{number}")

    report = infer([tmp_path / "ct"], model, out=tmp_path / "out", device="cpu",
                   outputs=("nifti", "seg", "rtstruct", "sr"))  # fmt: skip

    (result,) = report.results
    assert {"W_SEG_NOT_WRITTEN", "W_RTSTRUCT_NOT_WRITTEN", "W_SR_NOT_WRITTEN", "E_SEG_SOURCE"} <= set(result.warnings)
    assert "SOPInstanceUID" in result.message
    assert result.outputs == (f"{result.name}_toy-seg.nii.gz",)


def test_a_stop_on_request_is_neither_a_success_nor_a_failure() -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGTERM)

        with pytest.raises(InterruptedCleanlyError, match="E_INTERRUPTED") as stopped:
            stop.raise_interrupted("saved")

    assert stopped.value.exit_code == Exit.INTERRUPTED


def test_a_worker_without_memory_is_told_apart_from_a_decoder_that_died() -> None:
    assert crash(OUT_OF_MEMORY).code == "E_WORKER_OOM"
    assert crash("died of signal 11").code == "E_DECODER_CRASH"
    assert crash("ZeroDivisionError").code == "E_WORKER_CRASH"


def test_a_command_of_the_demo_that_fails_passes_its_exit_code_on(tmp_path: Path) -> None:
    with pytest.raises(StepFailedError, match="E_DEMO_STEP") as failed:
        _run(Step("List", ("cache", "ls", "--cache", "nowhere")), tmp_path)

    assert failed.value.exit_code == Exit.USAGE
