"""`infer --formats`: what a PACS gets says the same as the NIfTI mask beside it."""

import csv
import gzip
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.color import CIELabColor
from PIL import Image
from pydicom.sr.codedict import codes

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.infer_options import outputs_of
from medssl_cli.cli.preview import draw_preview
from medssl_cli.deploy.infer import InferReport, infer
from medssl_cli.formats.dicom_rtstruct import read_contour_masks
from medssl_cli.formats.dicom_sr import read_groups
from medssl_cli.formats.nifti import encode_nifti, read_nifti
from medssl_cli.formats.sr_statements import CUT_OFF, NO, YES
from medssl_cli.recipe_sections import Algorithm, ClassCode, ClassDetails
from tests.batch import AFFINE, SHAPE, phantom, write_series
from tests.command import medssl
from tests.toy_model import write_region_model, write_toy_model

OBJECTS = outputs_of("seg,rtstruct,sr")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("model") / "model.onnx", modality="CT")


def run(scans: Path, model: Path, out: Path, **options: Any) -> InferReport:
    return infer([scans], model, out=out, device="cpu", **options)


def test_a_series_gets_all_objects_and_they_say_the_same(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "ct", 1)

    report = run(tmp_path / "ct", model, tmp_path / "out", outputs=OBJECTS)

    (result,) = report.results
    stem = f"{result.name}_toy-seg"
    assert result.outputs == tuple(f"{stem}{end}" for end in (".nii.gz", ".dcm", ".rtstruct.dcm", ".sr.dcm"))
    mask = read_nifti(tmp_path / "out" / result.outputs[0]).image
    files = [(tmp_path / "out" / name).read_bytes() for name in result.outputs[1:]]
    contours = read_contour_masks(files[1], mask.volume.affine, mask.volume.shape)
    np.testing.assert_array_equal(contours[1], mask.volume.voxels[0] == 1)
    (group,) = read_groups(files[2])
    ((name, volume),) = result.volumes_ml.items()
    assert (group.name, group.amounts["118565006", "SCT"]) == (name, (pytest.approx(volume), "mL"))
    found = result.measurements[name]
    attenuation = "112031", "DCM"
    centre = [group.amounts[f"centre-{axis}", "99MEDSSL"][0] for axis in "xyz"]
    assert group.amounts[(*attenuation, "373098007")] == (pytest.approx(found.mean), "[hnsf'U]")
    assert group.amounts[(*attenuation, "386136009")] == (pytest.approx(found.sd), "[hnsf'U]")
    assert group.amounts["103339001", "SCT"] == (pytest.approx(found.long_axis_mm), "mm")
    assert [-centre[0], -centre[1], centre[2]] == pytest.approx(found.centre_mm)
    assert group.evaluations == {CUT_OFF[0]: (YES if found.cut_off else NO)[0]}
    (measured,) = hd.sr.srread(io.BytesIO(files[2])).content.get_volumetric_roi_measurement_groups()
    assert measured.get_measurements(name=codes.SCT.Volume)[0].value == pytest.approx(volume)
    segment = pydicom.dcmread(io.BytesIO(files[0]))
    (named,) = measured.referenced_segment[0].ReferencedSOPSequence
    assert (named.ReferencedSOPInstanceUID, named.ReferencedSegmentNumber) == (segment.SOPInstanceUID, 1)
    assert len({pydicom.dcmread(io.BytesIO(data)).SeriesInstanceUID for data in files}) == 3


def test_objects_that_are_wanted_later_are_made_then_and_only_then(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "ct", 2)
    first = run(tmp_path / "ct", model, tmp_path / "out").results[0]

    second = run(tmp_path / "ct", model, tmp_path / "out", outputs=OBJECTS).results[0]
    third = run(tmp_path / "ct", model, tmp_path / "out", outputs=OBJECTS).results[0]

    assert set(first.outputs) < set(second.outputs)
    assert (second.resumed, third.resumed) == (False, True)
    assert third.outputs_sha256 == second.outputs_sha256


def test_objects_and_preview_say_and_show_what_the_recipe_says(tmp_path: Path) -> None:
    details = ClassDetails(code=ClassCode(scheme="99HOSP", value="B1", meaning="Bright block"), colour="#c05a2e")
    maker = Algorithm(
        name="Bright finder", version="2.1", source="The hospital",
        family=ClassCode(scheme="DCM", value="123110", meaning="Machine Learning"),
    )  # fmt: skip
    model = write_toy_model(tmp_path / "own.onnx", class_details={"bright": details}, algorithm=maker)
    write_series(tmp_path / "ct", 7)

    (result,) = run(tmp_path / "ct", model, tmp_path / "out", outputs=OBJECTS, preview=draw_preview).results

    stem = tmp_path / "out" / f"{result.name}_toy-seg"
    (segment,) = pydicom.dcmread(f"{stem}.dcm").SegmentSequence
    (made,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (segment.SegmentAlgorithmName, made.AlgorithmName, made.AlgorithmVersion) == (
        "Bright finder",
        "Bright finder",
        "2.1",
    )
    assert (made.AlgorithmSource, made.AlgorithmFamilyCodeSequence[0].CodeValue) == ("The hospital", "123110")
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Bright block"
    assert segment.RecommendedDisplayCIELabValue == list(CIELabColor.from_rgb(0xC0, 0x5A, 0x2E).value)
    structures = pydicom.dcmread(f"{stem}.rtstruct.dcm")
    assert structures.ROIContourSequence[0].ROIDisplayColor == [0xC0, 0x5A, 0x2E]
    assert structures.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence[0].CodeValue == "B1"
    (derived,) = structures.StructureSetROISequence[0].ROIDerivationAlgorithmIdentificationSequence
    assert (derived.AlgorithmName, derived.AlgorithmSource) == ("Bright finder", "The hospital")
    (group,) = read_groups(Path(f"{stem}.sr.dcm").read_bytes())
    assert group.finding == ("B1", "99HOSP")
    picture = np.asarray(Image.open(f"{stem}.png").convert("RGB"))
    assert (picture == (0xC0, 0x5A, 0x2E)).all(axis=2).any()
    for end, word in ((".dcm", "Segmentation"), (".rtstruct.dcm", "RTStructureSet"), (".sr.dcm", "SR")):
        assert faults_of(Path(f"{stem}{end}"), word) == []


def faults_of(path: Path, word: str) -> list[str]:
    """What a validator that is not ours finds against the standard."""
    if shutil.which("dciodvfy") is None:
        return []
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace")
    said = (done.stdout + done.stderr).splitlines()
    assert any(word in line for line in said), said
    return [line for line in said if line.startswith("Error")]


def test_a_label_map_is_made_instead_where_it_is_asked_for_and_named_by_the_report(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "ct", 6)
    first = run(tmp_path / "ct", model, tmp_path / "out").results[0]
    wanted = outputs_of("seg-labelmap-rle,sr")

    refused = run(tmp_path / "ct", model, tmp_path / "out", outputs=wanted).results[0]
    second = run(tmp_path / "ct", model, tmp_path / "out", outputs=wanted, overwrite=True).results[0]
    third = run(tmp_path / "ct", model, tmp_path / "out", outputs=wanted).results[0]

    assert (refused.code, second.options, third.resumed) == (
        "E_OUTPUT_EXISTS",
        {"seg_storage": "seg-labelmap-rle"},
        True,
    )
    assert first.outputs_sha256[first.outputs[0]] == second.outputs_sha256[first.outputs[0]]
    segment = pydicom.dcmread(tmp_path / "out" / f"{second.name}_toy-seg.dcm")
    assert (segment.SegmentationType, segment.file_meta.TransferSyntaxUID.name) == ("LABELMAP", "RLE Lossless")
    report = hd.sr.srread(tmp_path / "out" / f"{second.name}_toy-seg.sr.dcm")
    (measured,) = report.content.get_volumetric_roi_measurement_groups()
    (named,) = measured.referenced_segment[0].ReferencedSOPSequence
    assert (named.ReferencedSOPInstanceUID, named.ReferencedSOPClassUID) == (
        segment.SOPInstanceUID,
        segment.SOPClassUID,
    )


def test_a_file_that_is_no_series_knows_nothing_of_storage(tmp_path: Path, model: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(encode_nifti(phantom(), AFFINE)))
    run(tmp_path / "a.nii.gz", model, tmp_path / "out")

    again = run(tmp_path / "a.nii.gz", model, tmp_path / "out", outputs=outputs_of("seg-deflated")).results[0]

    assert (again.resumed, again.options) == (True, {})


def test_classes_that_overlap_are_refused_a_label_map_before_anything_is_read(tmp_path: Path) -> None:
    model = write_region_model(tmp_path / "regions.onnx", ["a", "b"], ["whole", "core"])

    with pytest.raises(UsageError, match="a label map holds one class a voxel"):
        run(tmp_path / "nowhere", model, tmp_path / "out", outputs=outputs_of("seg-labelmap"))


def test_a_report_without_segmentation_measures_the_images(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "ct", 3)

    (result,) = run(tmp_path / "ct", model, tmp_path / "out", outputs=outputs_of("sr")).results

    report = hd.sr.srread(tmp_path / "out" / f"{result.name}_toy-seg.sr.dcm")
    assert not report.content.get_volumetric_roi_measurement_groups()
    assert len(report.content.get_image_measurement_groups()) == 1


def test_objects_are_no_scans(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "ct", 4)
    run(tmp_path / "ct", model, tmp_path / "out", outputs=OBJECTS)

    again = run(tmp_path / "out", model, tmp_path / "again")

    assert not [one for one in again.results if one.status == "done"]


def test_an_unknown_format_is_refused_by_name(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "ct", 5)

    done = medssl("infer", tmp_path / "ct", "-t", model, "--formats", "seg,stl")

    assert done.exit_code == 2
    assert "--formats knows no 'stl'" in done.stderr
    assert outputs_of("none") == ("nifti", "preview")


def test_what_is_cut_off_is_told_to_people_and_in_the_table(tmp_path: Path, model: Path) -> None:
    """A block of 4 x 4 x 4 voxels of 80 HU; the first axis of the scan runs to the left, the third to the head."""
    voxels = np.zeros(SHAPE, dtype=np.int16)
    voxels[:4, 2:6, -4:] = 80
    write_series(tmp_path / "ct", 6, voxels)

    done = medssl("infer", tmp_path / "ct", "-t", model, "-o", tmp_path / "out", "--device", "cpu", "--page")

    volume = 64 * abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    told = f"{volume:.1f} mL or more (cut off: right superior)"
    assert f"bright {told}" in done.stdout
    page = (tmp_path / "out" / "page.html").read_text()
    assert f"<td>{told}</td>" in page
    assert f"bright: {told}" in page
    (row,) = csv.DictReader((tmp_path / "out" / "measurements.csv").read_text().splitlines())
    assert (row["class"], row["value_units"], row["mean"], row["sd"], row["parts"]) == ("bright", "HU", "80", "0", "1")
    assert (float(row["volume_mL"]), row["cut_off"]) == (pytest.approx(volume, abs=1e-6), "right superior")
