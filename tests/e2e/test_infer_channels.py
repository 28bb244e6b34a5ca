"""Inference on cases of several images, by a model whose regions overlap: what goes together, and what comes out."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray

from medssl_cli.base.errors import Exit, UsageError
from medssl_cli.cli.preview import draw_preview
from medssl_cli.deploy.infer import InferReport, infer
from medssl_cli.deploy.results import ScanResult
from medssl_cli.formats.dicom import write_ct_series
from medssl_cli.formats.nifti import read_nifti, write_nifti
from medssl_cli.formats.seg_frames import read_masks
from medssl_cli.imaging.geometry import reorient_to_ras
from medssl_cli.imaging.placement import brought_to
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Channel, Preprocessing
from tests.brain_set import AFFINE, bids, brain, brats21, brats23, decathlon, nnunet_raw
from tests.command import medssl
from tests.toy_model import write_region_model, write_toy_model
from tests.unit.test_dicom_seg import faults_by_dciodvfy

CHANNELS = ("t1ce", "flair", "t2")  # another order than that of any layout, and one channel less
REGIONS = ("of t1ce", "of flair", "of t2")
WORDS = ("of_t1ce", "of_flair", "of_t2")
LAYOUTS: tuple[Callable[[Path, Iterable[int]], Path], ...] = (nnunet_raw, decathlon, brats21, brats23, bids)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Region k is where channel k is above 500."""
    return write_region_model(tmp_path_factory.mktemp("model") / "model.onnx", CHANNELS, REGIONS)


def run(scans: Path | list[Path], model: Path, out: Path, **options: Any) -> InferReport:
    return infer(scans if isinstance(scans, list) else [scans], model, out=out, device="cpu", **options)


def done(report: InferReport) -> list[ScanResult]:
    return [one for one in report.results if one.status == "done"]


def refused(report: InferReport) -> dict[str, str]:
    return {one.code: one.message for one in report.results if one.status == "refused"}


def masks_of(out: Path, result: ScanResult) -> NDArray[np.bool_]:
    """The NIfTI masks of a case in the order of the regions."""
    names = [name for name in result.outputs if name.endswith(".nii.gz")]
    return np.stack([read_nifti(out / name).image.volume.voxels[0] == 1 for name in names])


def expected(seed: int) -> NDArray[np.bool_]:
    channels, _ = brain(seed)
    return np.stack([channels[name] > 500 for name in CHANNELS])


def write_case(folder: Path, seed: int, names: dict[str, str]) -> None:
    channels, _ = brain(seed)
    for channel, name in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(folder / name, channels[channel], AFFINE)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_that_ingest_knows_gives_the_same_cases(
    tmp_path: Path, model: Path, layout: Callable[..., Path]
) -> None:
    folder = layout(tmp_path, (1, 2))

    report = run(folder, model, tmp_path / "out")

    found = [masks_of(tmp_path / "out", result) for result in done(report)]
    assert report.exit_code == Exit.OK
    assert len(found) == 2
    for seed in (1, 2):
        assert any(np.array_equal(masks, expected(seed)) for masks in found)
    skipped = [one.code for one in report.results if one.status == "skipped"]
    assert skipped.count("S_OTHER_CHANNEL") == 2  # T1, which the model does not take
    assert all(list(result.channels) == list(CHANNELS) for result in done(report))


def test_each_region_is_a_file_a_volume_and_a_column(tmp_path: Path, model: Path) -> None:
    folder, out = nnunet_raw(tmp_path, (1,)), tmp_path / "out"

    report = run([folder / "dataset.json", folder / "imagesTr"], model, out, preview=draw_preview)

    (result,) = done(report)
    assert result.name == "Brain_001"
    assert result.outputs == (*(f"Brain_001_toy-regions_{word}.nii.gz" for word in WORDS), "Brain_001_toy-regions.png")
    voxel_ml = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    millilitres = [mask.sum() * voxel_ml for mask in expected(1)]
    assert result.volumes_ml == {name: pytest.approx(ml) for name, ml in zip(REGIONS, millilitres, strict=True)}
    (row,) = csv.DictReader(io.StringIO((out / "volumes.csv").read_text()))
    assert [float(row[f"{name} mL"]) for name in REGIONS] == pytest.approx(millilitres)
    assert [row[f"{name} cut_off"].split() for name in REGIONS] == [list(result.cut_off(name)) for name in REGIONS]
    (entry,) = [each for each in json.loads(report.path.read_text())["results"] if each["status"] == "done"]
    assert entry["channels"] == {"t1ce": "Brain_001_0001.nii.gz", "flair": "Brain_001_0003.nii.gz",
                                 "t2": "Brain_001_0002.nii.gz"}  # fmt: skip
    assert entry["head"] == "regions"


def test_a_case_without_a_channel_is_refused_by_name_and_costs_no_other(tmp_path: Path, model: Path) -> None:
    folder = nnunet_raw(tmp_path, (1, 2))
    (folder / "imagesTr/Brain_002_0003.nii.gz").unlink()

    report = run(folder, model, tmp_path / "out")

    assert (len(done(report)), report.exit_code) == (1, Exit.PARTIAL)
    assert refused(report) == {"E_CHANNEL_MISSING": "the case has no image of flair"}


def test_of_two_candidates_none_is_chosen(tmp_path: Path, model: Path) -> None:
    names = {"t1ce": "P1_t1ce.nii.gz", "flair": "P1_flair.nii.gz", "t2": "P1_t2.nii.gz"}
    write_case(tmp_path / "in", 1, names)
    write_case(tmp_path / "in", 2, {"t1ce": "P1_t1gd.nii.gz"})

    report = run(tmp_path / "in", model, tmp_path / "out")

    assert not done(report)
    assert "2 images of the case are t1ce" in refused(report)["E_CHANNEL_AMBIGUOUS"]


def test_files_and_folders_are_what_the_user_says(tmp_path: Path, model: Path) -> None:
    write_case(tmp_path / "one", 1, {"t1ce": "a.nii.gz", "flair": "b.nii.gz", "t2": "c.nii.gz"})
    for seed in (1, 2):
        write_case(tmp_path / "many", seed, {name: f"{name}s/P{seed}.nii.gz" for name in CHANNELS})

    files = run([], model, tmp_path / "files", channels=[f"{name}={tmp_path}/one/{file}.nii.gz" for name, file in
                                                         zip(("t1gd", "FLAIR", "t2"), "abc", strict=True)])  # fmt: skip
    folders = run([], model, tmp_path / "folders", channels=[f"{name}={tmp_path}/many/{name}s" for name in CHANNELS])

    (result,) = done(files)
    np.testing.assert_array_equal(masks_of(tmp_path / "files", result), expected(1))
    assert [result.name for result in done(folders)] == ["P1", "P2"]
    for seed, result in enumerate(done(folders), start=1):
        np.testing.assert_array_equal(masks_of(tmp_path / "folders", result), expected(seed))


def test_one_file_in_each_folder_is_no_case_if_their_names_differ(tmp_path: Path, model: Path) -> None:
    for seed, name in enumerate(CHANNELS, start=1):
        write_case(tmp_path, seed, {name: f"{name}s/P{seed}.nii.gz"})

    report = run([], model, tmp_path / "out", channels=[f"{name}={tmp_path}/{name}s" for name in CHANNELS])

    assert (done(report), list(refused(report))) == ([], ["E_CHANNEL_MISSING"])


@pytest.mark.parametrize(
    ("channel", "told"),
    [
        ("dwi=x.nii.gz", "the model has no channel dwi"),
        ("no channel=x", "a channel is one word"),
        ("flair=", "a channel is one word"),
        ("flair=x --channel t2=./x", "one file or folder is given two channels, flair and t2"),
    ],
)
def test_a_channel_that_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, model: Path, channel: str, told: str
) -> None:
    words = channel.split(" --channel ")
    options = [text for word in words for text in ("--channel", word)]
    found = medssl("infer", "--task", model, "-o", tmp_path, *options)

    assert (found.exit_code, told in found.stderr) == (Exit.USAGE, True)
    with pytest.raises(UsageError, match="no scan is named"):
        run([], model, tmp_path / "out")


def test_a_scan_of_which_nothing_says_its_channel_is_refused_with_the_way_to_say_it(
    tmp_path: Path, model: Path
) -> None:
    write_case(tmp_path, 1, {"flair": "scan.nii.gz"})

    report = run(tmp_path / "scan.nii.gz", model, tmp_path / "out")

    (result,) = report.results
    assert (result.code, "--channel" in result.hint) == ("E_CHANNEL_MISSING", True)


def test_images_on_other_grids_need_one_frame_of_reference(tmp_path: Path, model: Path) -> None:
    write_case(tmp_path / "in", 1, {"t1ce": "P1_t1ce.nii.gz", "flair": "P1_flair.nii.gz", "t2": "P1_t2.nii.gz"})
    moved = AFFINE.copy()
    moved[0, 3] += 5
    write_nifti(tmp_path / "in/P1_t2.nii.gz", brain(1)[0]["t2"], moved)

    report = run(tmp_path / "in", model, tmp_path / "out")

    assert not done(report)
    assert "t2 lies on another grid than that of t1ce" in refused(report)["E_CHANNEL_GRID"]


def write_study(folder: Path, seed: int, *, patient: str = "P1") -> dict[str, Volume]:
    """A folder of a case with a DICOM series per channel; that of T2 has other, oblique voxels in the same frame."""
    channels, _ = brain(seed)
    volumes = {name: Volume(channels[name][None], AFFINE, "CT", "HU") for name in CHANNELS}
    turned = AFFINE @ np.diag([1.5, 1.25, 1.0, 1.0])
    smaller = Volume(np.zeros((1, 14, 16, 16), np.int16), turned, "CT", "HU")
    volumes["t2"] = brought_to(smaller, volumes["t2"])
    for number, (name, volume) in enumerate(volumes.items(), start=1):
        write_ct_series(
            folder / name,
            Volume(volume.voxels.round().astype(np.int16), volume.affine, "CT", "HU"),
            patient_id=patient,
            patient_name="Nobody^None",
            study_uid="1.2.3",
            series_uid=f"1.2.3.{number}",
            frame_of_reference_uid="1.2.3.9",
            series_description="no word",
        )
    return volumes


def test_a_dicom_case_has_a_segment_for_each_region_over_its_first_series(tmp_path: Path, model: Path) -> None:
    write_study(tmp_path / "in/case", 1)

    report = run(tmp_path / "in", model, tmp_path / "out")

    (result,) = done(report)
    assert result.series == "1.2.3.1"
    masks = masks_of(tmp_path / "out", result)
    nifti = read_nifti(tmp_path / "out" / result.outputs[0]).image.volume
    in_ras = np.stack([reorient_to_ras(mask[None], nifti.affine)[0][0] for mask in masks])
    drawn = np.stack([reorient_to_ras(mask[None], AFFINE)[0][0] for mask in expected(1)])
    np.testing.assert_array_equal(in_ras[:2], drawn[:2])
    assert 0 < in_ras[2].sum() < 2 * drawn[2].sum()  # resampled from the coarser grid of T2
    assert (masks[0] & masks[1]).any()
    data = (tmp_path / "out" / next(name for name in result.outputs if name.endswith(".dcm"))).read_bytes()
    np.testing.assert_array_equal(read_masks(data, nifti.affine, masks.shape) == 1, masks)
    found = hd.seg.segread(io.BytesIO(data))
    assert (found.SegmentsOverlap, [each.SegmentLabel for each in found.SegmentSequence]) == ("YES", list(REGIONS))
    assert found.get_volume().array.sum(axis=(0, 1, 2)).tolist() == masks.sum(axis=(1, 2, 3)).tolist()
    assert faults_by_dciodvfy(data, tmp_path) == []


def test_images_of_two_patients_are_no_case(tmp_path: Path, model: Path) -> None:
    write_study(tmp_path / "in/case", 1)
    shutil.rmtree(tmp_path / "in/case/flair")
    write_study(tmp_path / "other", 1, patient="P2")
    shutil.move(tmp_path / "other/flair", tmp_path / "in/case/flair")

    report = run(tmp_path / "in", model, tmp_path / "out")

    assert (len(done(report)), list(refused(report))) == (0, ["E_PATIENT_MIX"])


def test_the_same_command_again_computes_nothing_unless_a_channel_changes(tmp_path: Path, model: Path) -> None:
    folder, out = nnunet_raw(tmp_path, (1,)), tmp_path / "out"
    run(folder, model, out)

    again = run(folder, model, out)
    write_nifti(folder / "imagesTr/Brain_001_0002.nii.gz", brain(2)[0]["t2"], AFFINE)
    changed = run(folder, model, out)

    assert [result.resumed for result in done(again)] == [True]
    assert list(refused(changed)) == ["E_OUTPUT_EXISTS"]
    (replaced,) = done(run(folder, model, out, overwrite=True))
    np.testing.assert_array_equal(masks_of(out, replaced)[2], brain(2)[0]["t2"] > 500)


def test_a_model_of_one_named_channel_leaves_the_others(tmp_path: Path) -> None:
    flair = Preprocessing(channels=(Channel(name="flair", window_hu=(0.0, 1000.0)),))
    model = write_toy_model(tmp_path / "model.onnx", preprocessing=flair)
    folder = nnunet_raw(tmp_path, (1,))

    report = run(folder, model, tmp_path / "out")

    assert [result.place for result in report.results if result.status != "skipped"] == [
        "imagesTr/Brain_001_0003.nii.gz"
    ]
    assert sum(one.code == "S_OTHER_CHANNEL" for one in report.results) == 3


def test_one_file_cannot_hold_masks_that_overlap(tmp_path: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="a mask for each region"):
        run(tmp_path, model, tmp_path / "mask.nii.gz")
