"""What a scan takes in memory is known before it is read, and what does not fit is refused then."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medssl_cli.base.errors import InputError
from medssl_cli.deploy import limits
from medssl_cli.deploy.infer import infer
from medssl_cli.deploy.limits import free_memory_bytes
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.scan_reader import ScanReader
from medssl_cli.deploy.scans import find_scans
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.formats.open import announced
from medssl_cli.formats.policy import STRICT
from medssl_cli.imaging.memory import volume_memory
from medssl_cli.imaging.segment import rolling_axis, segment_volume
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing
from tests.dicom_factory import ct_series
from tests.toy_model import write_toy_model

WINDOW = Preprocessing(window_hu=(0.0, 100.0))
GIB = 2**30


def forty(tiles: np.ndarray) -> np.ndarray:
    return np.concatenate([tiles * np.float32(number) for number in range(40)], axis=1)


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0)], ids=["native", "resampled"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_plan_of_what_is_computed_is_kept_and_not_by_far(
    spacing: tuple[float, float, float] | None, activation: str
) -> None:
    rule = WINDOW.model_copy(update={"spacing_mm": spacing})
    shape, tile = (64, 48, 40), (16, 16, 16)
    image = Volume(np.random.default_rng(0).integers(0, 100, (1, *shape)).astype(np.int16), np.diag([0.8, 0.9, 1, 1]))
    num_masks = 40 if activation == "sigmoid" else 1
    planned = volume_memory(
        shape, image.affine, preprocessing=rule, tile=tile, overlap=0.5, num_outputs=40, num_masks=num_masks,
        bytes_per_voxel=2,
    )  # fmt: skip

    tracemalloc.start()
    segment_volume(forty, image, preprocessing=rule, tile=tile, overlap=0.5, activation=activation, num_outputs=40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    seen = planned.input + planned.logits + planned.exchange + planned.answer + planned.places
    assert peak < planned.total - planned.scan
    assert peak > 0.4 * (seen - planned.exchange)


@pytest.mark.parametrize("num_outputs", [0, 2], ids=["findings", "masks"])
def test_the_plan_of_an_absurd_grid_is_absurd_and_takes_no_time(num_outputs: int) -> None:
    def planned(**geometry: object) -> float:
        rule = Preprocessing.model_validate({"window_hu": (0.0, 1.0), **geometry})
        memory = volume_memory(
            (512, 512, 300), np.eye(4), preprocessing=rule, tile=(64, 64, 64), overlap=0.5,
            num_outputs=num_outputs, num_masks=min(num_outputs, 1),
        )  # fmt: skip
        return memory.total

    assert planned(spacing_mm=(1e-4,) * 3) > 1e18
    assert planned(spacing_mm=(1e-300,) * 3) == np.inf
    assert planned(fit=(10**9, 10**9)) > 1e18


def test_findings_and_boxes_take_what_masks_do_but_for_the_map() -> None:
    sizes = {"preprocessing": WINDOW, "tile": (16, 16, 16), "overlap": 0.5}
    masks = volume_memory((64, 48, 40), np.eye(4), num_outputs=2, **sizes)  # type: ignore[arg-type]
    findings = volume_memory((64, 48, 40), np.eye(4), num_outputs=0, num_masks=0, **sizes)  # type: ignore[arg-type]

    same = ("scan", "reading", "input", "preprocessing", "tiles", "places")
    assert [getattr(findings, name) for name in same] == [getattr(masks, name) for name in same]
    assert (findings.logits, findings.answer, findings.writing) == (0, 0, 0)


def test_many_outputs_of_a_long_scan_are_computed_along_its_length() -> None:
    # 97 planes of 240 x 667 voxels and 105 logits are 6.6 GB, of 240 x 240 voxels 2.4 GB; of 8 it is not worth it.
    assert rolling_axis((240, 240, 667), (96, 96, 96), 105) == 2
    assert rolling_axis((240, 240, 667), (96, 96, 96), 8) == 0
    assert rolling_axis((667, 240, 240), (96, 96, 96), 105) == 0


def test_a_ct_of_800_slices_fits_where_it_is_said_to() -> None:
    def planned(num_outputs: int) -> float:
        rule = Preprocessing(window_hu=(-175.0, 250.0), spacing_mm=(1.5, 1.5, 1.5))
        memory = volume_memory(
            (512, 512, 800), np.diag([0.7, 0.7, 1.25, 1]), preprocessing=rule, tile=(96, 96, 96), overlap=0.5,
            num_outputs=num_outputs, bytes_per_voxel=2,
        )  # fmt: skip
        return memory.total

    assert planned(14) < 2.5 * GIB
    assert planned(105) < 4 * GIB


@pytest.mark.usefixtures("cold_children")
def test_what_cannot_fit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = Preprocessing(window_hu=(0.0, 100.0), spacing_mm=(0.01, 0.01, 0.01))
    model = write_toy_model(tmp_path / "model.onnx", preprocessing=fine)
    write_nifti(tmp_path / "a.nii.gz", np.zeros((40, 40, 40), np.int16), np.eye(4))
    monkeypatch.setattr("medssl_cli.deploy.scan_reader.ScanReader.read_all", lambda *_: pytest.fail("it was read"))

    report = infer([tmp_path / "a.nii.gz"], model, out=tmp_path / "out", device="cpu", outputs=["nifti"])

    assert [result.code for result in report.results] == ["E_TOO_BIG"]


@pytest.mark.usefixtures("cold_children")
def test_a_plan_is_told_and_nothing_else_happens(tmp_path: Path) -> None:
    model = write_toy_model(tmp_path / "model.onnx")
    write_nifti(tmp_path / "a.nii.gz", np.zeros((40, 40, 40), np.int16), np.eye(4))

    report = infer([tmp_path / "a.nii.gz"], model, out=tmp_path / "out", device="cpu", max_ram_bytes=GIB, plan=True)

    (result,) = report.results
    # 40 voxels need four tiles of 16 with half a tile shared, and nine of 8.
    assert result.status == "pending"
    assert "about 144 tiles" in result.message
    assert result.memory["answer"] == 40**3
    assert result.memory["program"] + result.memory["model"] < result.memory["needed"] < result.memory["allowed"] == GIB
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cold_children")
def test_where_memory_is_close_the_network_is_called_once_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx"), "cpu", max_ram_bytes=GIB)
    calls: list[tuple[int, ...]] = []
    outputs = model._outputs
    monkeypatch.setattr(model, "_outputs", lambda tiles: (calls.append(tiles.shape), outputs(tiles))[1])

    first = model.require_memory((40, 40, 40), np.eye(4))
    second = model.require_memory((40, 40, 40), np.eye(4))

    assert calls == [(1, 1, 16, 16, 8)]
    assert first.model_bytes >= second.model_bytes > 0
    model.close()


def test_headers_announce_what_will_be_read(tmp_path: Path) -> None:
    ct_series(tmp_path / "ct", positions_mm=[0, 2, 4, 6, 8])
    for name in ("a.nii.gz", "c.nrrd", "d.mha", "e.nii.gz"):
        image = sitk.GetImageFromArray(np.zeros((7, 6, 5), np.int16))
        image.SetSpacing((1.0, 2.0, 3.0))
        sitk.WriteImage(image, str(tmp_path / name))
    (tmp_path / "b.nii").write_bytes(b"\x5c\x01\x00\x00" + bytes(400))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "f.png")
    reader = ScanReader(STRICT, None)

    told: dict[str, bool] = {}
    for scan in find_scans([tmp_path], STRICT, takes_flat=True).scans:
        known = announced(scan.original, scan.kind, STRICT)
        told[Path(scan.place.below).name] = known is not None
        if known is not None:
            volume = reader.read(scan).volume
            assert known.shape == volume.shape
            assert np.array_equal(known.affine, volume.affine)
            assert known.bytes_per_voxel == 2

    are_told = {"ct", "a.nii.gz", "c.nrrd", "d.mha", "e.nii.gz"}
    assert told == {**dict.fromkeys(are_told, True), "b.nii": False, "f.png": False}


def test_the_grid_that_a_repair_makes_is_announced(tmp_path: Path) -> None:
    """Of six slices 2 mm apart the fourth is missing."""
    ct_series(tmp_path, positions_mm=[0, 2, 4, 8, 10])
    policy = replace(STRICT, gaps="interpolate")

    (scan,) = find_scans([tmp_path], policy).scans
    known = announced(scan.original, scan.kind, policy)

    assert known is not None
    assert known.shape == ScanReader(policy, None).read(scan).volume.shape
    assert known.shape[2] == 6


def test_limits_of_the_process_itself_count(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**50
    monkeypatch.setattr(limits.resource, "getrlimit", lambda kind: (size, size))
    assert free_memory_bytes() < size

    monkeypatch.setattr(limits.resource, "getrlimit", lambda kind: (1, 1))
    assert free_memory_bytes() == 0


def test_a_refusal_says_how_much_is_needed_and_allowed(tmp_path: Path) -> None:
    plan = OnnxModel(write_toy_model(tmp_path / "m.onnx"), "cpu", max_ram_bytes=GIB).memory_plan(
        (512, 512, 4000), np.eye(4)
    )

    with pytest.raises(InputError, match=r"E_TOO_BIG.*needs about [\d.]+ GiB, 1 GiB are allowed"):
        plan.require_fit()
