"""`infer --probabilities`: a number for every class and voxel, on the grid of the mask beside it."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medssl_cli.cli.infer_options import outputs_of
from medssl_cli.deploy import scan_task
from medssl_cli.deploy.infer import InferReport, infer
from medssl_cli.deploy.memory_plan import MemoryPlan
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.formats.nifti import read_nifti, write_nifti
from tests.batch import AFFINE, phantom, write_series
from tests.toy_model import write_region_model, write_toy_model

WANTED = outputs_of("none", probabilities=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("model") / "model.onnx", modality=None)


def run(scans: Path, model: Path, out: Path, **options: Any) -> InferReport:
    return infer([scans], model, out=out, device="cpu", outputs=WANTED, **options)


def test_where_the_class_is_probable_the_mask_marks_it(tmp_path: Path, model: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", phantom(), AFFINE)

    (result,) = run(tmp_path / "a.nii.gz", model, tmp_path / "out").results

    assert result.outputs == ("a_toy-seg.nii.gz", "a_toy-seg.probabilities.nii.gz")
    mask = read_nifti(tmp_path / "out" / result.outputs[0]).image.volume.voxels[0]
    found = nib.load(tmp_path / "out" / result.outputs[1])
    values = found.get_fdata()
    assert values.shape == mask.shape
    np.testing.assert_array_equal(found.affine, nib.load(tmp_path / "a.nii.gz").affine)
    np.testing.assert_array_equal(values > 0.5, mask == 1)
    # The toy network's logits are 0 and x - 1/2, and x is 0 or 1 on its window.
    high, low = 1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(0.5))
    assert np.abs(np.where(mask == 1, high, low) - values).max() <= 0.51 / 255


def test_a_series_has_them_too_and_what_is_there_is_not_done_again(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "ct", 1)
    first = infer([tmp_path / "ct"], model, out=tmp_path / "out", device="cpu", outputs=("nifti",)).results[0]

    second = run(tmp_path / "ct", model, tmp_path / "out").results[0]
    third = run(tmp_path / "ct", model, tmp_path / "out").results[0]

    assert set(second.outputs) - set(first.outputs) == {f"{first.name}_toy-seg.probabilities.nii.gz"}
    assert (first.resumed, second.resumed, third.resumed) == (False, False, True)
    (tmp_path / "out" / second.outputs[1]).unlink()
    again = run(tmp_path / "ct", model, tmp_path / "out").results[0]
    assert (again.resumed, again.outputs_sha256) == (False, second.outputs_sha256)


def test_scans_that_overlap_are_planned_with_their_probabilities_and_their_headers_are_read_once(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_nifti(tmp_path / "in" / f"s{number}.nii.gz", phantom(number), AFFINE)
    planned, looked_at = [], []
    plan, look = OnnxModel.memory_plan, scan_task.announced

    def spied_plan(self: OnnxModel, *sizes: Any, **more: Any) -> MemoryPlan:
        planned.append(more["has_probabilities"])
        return plan(self, *sizes, **more)

    def spied_look(source: Any, *more: Any) -> Any:
        looked_at.append(source)
        return look(source, *more)

    monkeypatch.setattr(OnnxModel, "memory_plan", spied_plan)
    monkeypatch.setattr(scan_task, "announced", spied_look)
    run(tmp_path / "in", model, tmp_path / "out")

    assert len(planned) > 3
    assert all(planned)
    assert sorted(path.name for path in looked_at) == ["s0.nii.gz", "s1.nii.gz", "s2.nii.gz"]


def test_regions_have_an_image_each(tmp_path: Path) -> None:
    model = write_region_model(tmp_path / "regions.onnx", ["a", "b"], ["whole", "core"])
    for name, voxels in (("a", phantom(0) + 1000), ("b", phantom(1) + 1000)):
        write_nifti(tmp_path / f"{name}.nii.gz", voxels, AFFINE)

    report = infer(
        [], model, out=tmp_path / "out", device="cpu", outputs=WANTED,
        channels=[f"{name}={tmp_path / name}.nii.gz" for name in "ab"],
    )  # fmt: skip

    (result,) = report.results
    masks = [nib.load(tmp_path / "out" / name).get_fdata() for name in result.outputs[:2]]
    found = nib.load(tmp_path / "out" / result.outputs[2]).get_fdata()
    np.testing.assert_array_equal(found > 0.5, np.stack(masks, axis=-1) == 1)


def test_a_plan_counts_them_and_their_file_is_no_scan(tmp_path: Path, model: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", phantom(), AFFINE)
    (plain,) = infer([tmp_path / "a.nii.gz"], model, out=tmp_path / "out", device="cpu", plan=True).results

    (planned,) = run(tmp_path / "a.nii.gz", model, tmp_path / "out", plan=True).results

    assert planned.memory["probabilities"] == planned.memory["needed"] - plain.memory["needed"] > 0
    run(tmp_path / "a.nii.gz", model, tmp_path / "out")
    assert not [one for one in run(tmp_path / "out", model, tmp_path / "again").results if one.status == "done"]
