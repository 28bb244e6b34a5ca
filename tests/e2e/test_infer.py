"""From scans to masks: on the scan's own grid, a bad scan stops no other, nothing is overwritten silently."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import RLELossless

from medssl_cli.base.errors import Exit, GateError, NothingUsableError, UsageError
from medssl_cli.deploy.infer import InferReport, infer
from medssl_cli.deploy.naming import series_name
from medssl_cli.formats.dicom import write_ct_series
from medssl_cli.formats.nifti import encode_nifti, read_nifti, write_nifti
from medssl_cli.formats.seg_frames import read_segmentation
from medssl_cli.imaging.geometry import reorient_to_ras
from medssl_cli.imaging.volume import Volume
from tests.environment import ENVIRONMENT
from tests.toy_model import write_toy_model

AFFINE = np.array([[-0.9, 0, 0, 12], [0, 0.7, 0, -30], [0, 0, 2.5, 5], [0, 0, 0, 1]], dtype=np.float64)
VOXEL_ML = 0.9 * 0.7 * 2.5 / 1000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_toy_model(tmp_path / "model.onnx", modality="CT")


def phantom(shape: tuple[int, int, int] = (20, 18, 10)) -> NDArray[np.int16]:
    """Air with a warm block off the centre; the toy model marks what is above 50 HU."""
    voxels = np.full(shape, -1000, np.int16)
    voxels[2:7, 3:11, 1:4] = 200
    return voxels


def write_series(folder: Path, number: int = 1, voxels: NDArray[np.int16] | None = None) -> list[Path]:
    return write_ct_series(
        folder,
        Volume((phantom() if voxels is None else voxels)[None], AFFINE, "CT", "HU"),
        patient_id="P",
        patient_name="N",
        study_uid="1.2.3",
        series_uid=f"1.2.3.{number}",
        frame_of_reference_uid="1.2.9",
        series_description="phantom",
        file_names=[f"{number}-{k}.dcm" for k in range(10)],
    )


def run(scans: list[Path], model: Path, out: Path, **options: Any) -> InferReport:
    return infer(scans, model, out=out, device="cpu", **options)


def test_a_nifti_scan_gets_a_mask_with_its_own_geometry_bit_for_bit(tmp_path: Path, model: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", phantom(), AFFINE)

    report = run([tmp_path / "scan.nii.gz"], model, tmp_path / "out")

    mask = read_nifti(tmp_path / "out" / "scan_toy-seg.nii.gz")
    np.testing.assert_array_equal(mask.image.volume.voxels[0], phantom() > 50)
    scan = gzip.decompress((tmp_path / "scan.nii.gz").read_bytes())
    copy = gzip.decompress((tmp_path / "out" / "scan_toy-seg.nii.gz").read_bytes())
    # NIfTI-1: pixdim at 76..108, units at 123, codes, quaternion and both affines at 252..328.
    assert [scan[76:108], scan[123], scan[252:328]] == [copy[76:108], copy[123], copy[252:328]]
    (result,) = report.results
    assert result.volumes_ml == {"bright": pytest.approx(5 * 8 * 3 * VOXEL_ML)}
    assert report.exit_code == Exit.OK
    assert json.loads(report.path.read_text())["results"][0]["outputs"] == ["scan_toy-seg.nii.gz"]


def test_a_dicom_series_gets_nifti_and_seg_that_agree_in_the_patient(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "ct")

    report = run([tmp_path / "ct"], model, tmp_path / "out")

    (result,) = report.results
    name = series_name("CT", "1.2.3", "1.2.3.1")
    assert result.outputs == (f"{name}_toy-seg.nii.gz", f"{name}_toy-seg.dcm")
    nifti = read_nifti(tmp_path / "out" / result.outputs[0]).image.volume
    seg = read_segmentation((tmp_path / "out" / result.outputs[1]).read_bytes(), nifti.affine, nifti.shape)
    np.testing.assert_array_equal(seg, nifti.voxels[0])
    ours, _ = reorient_to_ras(nifti.voxels, nifti.affine)
    truth, _ = reorient_to_ras((phantom() > 50)[None], AFFINE)
    np.testing.assert_array_equal(ours, truth)


def test_a_folder_of_many_gives_one_mask_each_and_survives_a_bad_one(tmp_path: Path, model: Path) -> None:
    scans = tmp_path / "scans"
    write_series(scans / "p1" / "ct")
    write_series(scans / "p2" / "both", 2)
    write_series(scans / "p2" / "both", 3)
    for missing in write_series(scans / "gap", 4)[4:5]:
        missing.unlink()
    write_nifti(scans / "a.nii.gz", phantom(), AFFINE)
    whole = gzip.compress(encode_nifti(phantom(), AFFINE))
    (scans / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    (scans / "notes.txt").write_text("not a scan")

    report = run([scans], model, tmp_path / "out")

    series = {number: series_name("CT", "1.2.3", f"1.2.3.{number}") for number in (1, 2, 3, 4)}
    found = {result.name: (result.status, result.code) for result in report.results}
    assert found == {
        "a": ("done", ""),
        "b": ("refused", "E_GZ_TRUNCATED"),
        series[1]: ("done", ""),
        series[2]: ("done", ""),
        series[3]: ("done", ""),
        series[4]: ("refused", "E_MISSING_SLICES"),
        "notes.txt": ("skipped", "S_NOT_AN_IMAGE"),
    }
    assert report.exit_code == Exit.PARTIAL
    masks = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert masks == {f"{name}_toy-seg.nii.gz" for name in ("a", series[1], series[2], series[3])}


def test_equal_names_in_different_folders_are_told_apart(tmp_path: Path, model: Path) -> None:
    for patient in ("p1", "p2"):
        (tmp_path / "scans" / patient).mkdir(parents=True)
        write_nifti(tmp_path / "scans" / patient / "scan.nii.gz", phantom(), AFFINE)

    report = run([tmp_path / "scans"], model, tmp_path / "out")

    names = [result.name for result in report.results]
    assert [name[:-13] for name in names] == ["p1_scan", "p2_scan"]
    assert len({name[-12:] for name in names}) == 2


def test_nothing_usable_exits_with_4(tmp_path: Path, model: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    assert run([tmp_path / "bad.nii.gz"], model, tmp_path / "out").exit_code == Exit.NOTHING

    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingUsableError, match="E_NOTHING_USABLE"):
        run([tmp_path / "empty"], model, tmp_path / "out")
    with pytest.raises(UsageError, match="E_NOT_FOUND"):
        run([tmp_path / "nowhere"], model, tmp_path / "out")


def test_running_again_writes_nothing_and_another_model_does_not_overwrite(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "ct")
    run([tmp_path / "ct"], model, tmp_path / "out")

    def masks() -> dict[str, tuple[int, int]]:
        files = [path for path in (tmp_path / "out").iterdir() if not path.name.startswith("report")]
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}

    before = masks()
    assert run([tmp_path / "ct"], model, tmp_path / "out").exit_code == Exit.OK
    assert len(before) == 3  # mask, segmentation, measurements
    assert before == masks()

    other = write_toy_model(tmp_path / "other.onnx", modality="CT", classes={1: "renamed"})
    refused = run([tmp_path / "ct"], other, tmp_path / "out")
    assert [result.code for result in refused.results] == ["E_OUTPUT_EXISTS"]
    assert refused.exit_code == Exit.NOTHING
    assert run([tmp_path / "ct"], other, tmp_path / "out", overwrite=True).exit_code == Exit.OK


def test_a_file_can_be_named_for_a_single_scan_only(tmp_path: Path, model: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", phantom(), AFFINE)

    for name in ("mask.nii.gz", "mask.nii"):
        report = run([tmp_path / "scan.nii.gz"], model, tmp_path / "out" / name)
        np.testing.assert_array_equal(read_nifti(tmp_path / "out" / name).image.volume.voxels[0], phantom() > 50)
        assert report.path == tmp_path / "out" / "mask.report.json"

    write_nifti(tmp_path / "second.nii.gz", phantom(), AFFINE)
    with pytest.raises(UsageError, match="E_USAGE"):
        run([tmp_path / "scan.nii.gz", tmp_path / "second.nii.gz"], model, tmp_path / "mask.nii.gz")


def test_masks_of_an_earlier_call_are_not_scans(tmp_path: Path, model: Path) -> None:
    (tmp_path / "scans").mkdir()
    write_nifti(tmp_path / "scans" / "a.nii.gz", phantom(), AFFINE)

    for _ in range(2):
        report = run([tmp_path / "scans"], model, tmp_path / "scans" / "out")
        assert [result.name for result in report.results] == ["a"]


def test_an_empty_mask_and_impossible_hounsfield_units_are_noted(tmp_path: Path, model: Path) -> None:
    write_nifti(tmp_path / "air.nii.gz", np.full((20, 18, 10), -1000, np.int16), AFFINE)

    (result,) = run([tmp_path / "air.nii.gz"], model, tmp_path / "out").results

    assert result.status == "done"
    assert set(result.warnings) == {"W_EMPTY_SEGMENTATION", "W_HU_IMPLAUSIBLE", "W_CONSTANT_IMAGE"}


def test_a_series_of_another_modality_is_skipped(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    model = write_toy_model(tmp_path / "model.onnx", modality="MR")

    report = run([tmp_path / "ct"], model, tmp_path / "out")

    assert [(result.status, result.code) for result in report.results] == [("refused", "E_MODALITY_MISMATCH")]
    assert report.exit_code == Exit.NOTHING


def test_a_damaged_model_stops_before_any_scan(tmp_path: Path, model: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", phantom(), AFFINE)
    model.write_bytes(model.read_bytes()[:-1])

    with pytest.raises(GateError, match="E_MODEL_CORRUPT"):
        run([tmp_path / "scan.nii.gz"], model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_previews_are_drawn_by_who_can(tmp_path: Path, model: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", phantom(), AFFINE)

    report = run([tmp_path / "scan.nii.gz"], model, tmp_path / "out", preview=lambda *_: b"picture")

    assert (tmp_path / "out" / "scan_toy-seg.png").read_bytes() == b"picture"
    assert report.results[0].outputs[-1] == "scan_toy-seg.png"


def test_a_compressed_series_is_decoded_in_a_child_and_gives_the_same_mask(tmp_path: Path, model: Path) -> None:
    plain, packed = write_series(tmp_path / "plain"), write_series(tmp_path / "packed")
    for path in packed:
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)

    masks = []
    for name in ("plain", "packed"):
        report = run([tmp_path / name], model, tmp_path / f"out-{name}")
        assert report.exit_code == Exit.OK
        (mask,) = (tmp_path / f"out-{name}").glob("*.nii.gz")
        masks.append(read_nifti(mask).image.volume.voxels)

    assert len(plain) == 10
    assert np.array_equal(masks[0], masks[1])


def die(series: object) -> None:
    os.abort()


def test_a_decoder_that_dies_costs_its_own_scan_only(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in write_series(tmp_path / "scans" / "packed"):
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    write_series(tmp_path / "scans" / "plain", number=2)
    monkeypatch.setattr("medssl_cli.deploy.scan_reader.decode_in_child", die)

    report = run([tmp_path / "scans"], model, tmp_path / "out")

    assert sorted((result.status, result.code) for result in report.results) == [
        ("done", ""),
        ("refused", "E_DECODER_CRASH"),
    ]
    assert report.exit_code == Exit.PARTIAL


def test_inference_imports_no_torch(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "ct")
    code = (
        "import sys; from pathlib import Path; from medssl_cli.deploy.infer import infer;"
        f"infer([Path({str(tmp_path / 'ct')!r})], Path({str(model)!r}), out=Path({str(tmp_path / 'out')!r}));"
        "assert not {'torch', 'monai', 'onnx', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)

    assert len(list((tmp_path / "out").glob("CT-*_toy-seg.dcm"))) == 1
