"""A measurement report says what was measured and found, and highdicom reads the same from it."""

import io
import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from pydicom.sr.codedict import codes

from medssl_cli.base.errors import GateError
from medssl_cli.formats import dicom_sr, sr_statements
from medssl_cli.formats.anatomy_codes import Code, structure_code
from medssl_cli.formats.dicom import Header, read_headers
from medssl_cli.formats.dicom_sr import read_groups, write_report
from medssl_cli.formats.predictions import is_prediction
from medssl_cli.formats.sr_statements import CUT_OFF, STANDARD_DEVIATION, Amount, Statement
from tests.unit.test_dicom_seg import blocks, oblique_affine, series
from tests.unit.test_dicom_seg import write as write_seg


def statement(name: str, *amounts: Amount, **given: object) -> Statement:
    return Statement(name, structure_code(name), amounts, **given)  # type: ignore[arg-type]


def millilitres(value: float) -> Amount:
    return Amount(sr_statements.VOLUME, value, sr_statements.MILLILITRE)


def probability(value: float) -> Amount:
    return Amount(sr_statements.PROBABILITY, value, sr_statements.NO_UNITS)


def hounsfield(value: float, derivation: Code) -> Amount:
    what = ("112031", "DCM", "Attenuation Coefficient")
    return Amount(what, value, ("[hnsf'U]", "UCUM", "Hounsfield unit"), derivation)


SAID = [
    statement("LV", millilitres(12.345678), hounsfield(41.5, sr_statements.MEAN), hounsfield(9.25, STANDARD_DEVIATION),
              Amount(sr_statements.LONG_AXIS, 71.5, sr_statements.MILLIMETRE), is_cut_off=True, segment=1),
    statement("something else", millilitres(0.0), segment=2),
    statement("left kidney", millilitres(1 / 3), is_present=False),
    statement("liver tumor", probability(0.25), is_present=True),
    statement("nodule", probability(1e-6), Amount(sr_statements.DIAMETER, 7.5, sr_statements.MILLIMETRE),
              box_mm=(-10.0, -20.0, 5.0, -4.0, -8.0, 12.5)),
    statement("fracture", probability(0.9), box_pixels=(1.5, 2.0, 9.0, 12.25)),
]  # fmt: skip


@pytest.fixture
def headers(tmp_path: Path) -> list[Header]:
    paths, _ = series(tmp_path / "ct", oblique_affine())
    return [header for path in paths for header in read_headers(path)]


def made(headers: list[Header], tmp_path: Path) -> bytes:
    paths, volume = series(tmp_path / "again", oblique_affine())
    seg = write_seg(blocks(), paths, volume)
    return write_report(SAID, headers, model_sha256="a" * 64, algorithm_name="medssl test", segmentation=seg)


def test_highdicom_reads_every_number_with_its_unit_and_its_place(tmp_path: Path, headers: list[Header]) -> None:
    report = hd.sr.srread(io.BytesIO(made(headers, tmp_path)))

    segments = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in segments] == ["LV", "something else", "nodule"]
    (volume,) = segments[0].get_measurements(name=codes.SCT.Volume)
    assert (volume.value, volume.unit.value) == (pytest.approx(12.345678), "mL")
    values = {
        each.derivation.value: each for each in segments[0].get_measurements(name=codes.DCM.AttenuationCoefficient)
    }
    assert {code: (each.value, each.unit) for code, each in values.items()} == {
        codes.SCT.Mean.value: (41.5, codes.UCUM.HounsfieldUnit),
        codes.SCT.StandardDeviation.value: (9.25, codes.UCUM.HounsfieldUnit),
    }
    assert segments[0].get_measurements(name=codes.SCT.LongAxis)[0].value == 71.5
    (cut_off,) = segments[0].get_qualitative_evaluations(name=hd.sr.CodedConcept(*CUT_OFF))
    assert cut_off.value == codes.SCT.Yes
    ends = segments[2].roi.graphic_data
    assert ends.min(axis=0).tolist() == [4, 8, 5]  # LPS of RAS -10..-4, -20..-8, 5..12.5
    assert ends.max(axis=0).tolist() == [10, 20, 12.5]
    (region,) = report.content.get_planar_roi_measurement_groups()
    assert region.roi.value.tolist() == [[1.5, 2], [9, 2], [9, 12.25], [1.5, 12.25], [1.5, 2]]
    whole = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in whole] == ["left kidney", "liver tumor"]
    assert whole[0].finding_type == codes.SCT.Kidney
    assert whole[0].finding_sites[0].laterality == codes.SCT.Left
    assert whole[1].finding_sites[0].value == codes.SCT.Liver


def test_it_lies_in_the_study_of_the_series_and_names_its_images(tmp_path: Path, headers: list[Header]) -> None:
    data = made(headers, tmp_path)

    found = pydicom.dcmread(io.BytesIO(data))

    assert (found.PatientID, found.StudyInstanceUID, found.Modality) == ("P1", "1.2.3", "SR")
    named = {
        item.ReferencedSOPInstanceUID
        for each in found.CurrentRequestedProcedureEvidenceSequence
        for one in each.ReferencedSeriesSequence
        for item in one.ReferencedSOPSequence
    }
    assert {header.SOPInstanceUID for header in headers} < named
    assert is_prediction(data[:4096])


def test_the_same_statements_give_the_same_bytes(tmp_path: Path, headers: list[Header]) -> None:
    assert made(headers, tmp_path / "1") == made(headers, tmp_path / "2")


def test_two_images_of_one_series_have_reports_of_different_names_though_these_say_the_same(
    headers: list[Header],
) -> None:
    """Two radiographs without a fracture, or two phases without the structure."""
    halves = headers[: len(headers) // 2], headers[len(headers) // 2 :]
    said = [statement("fracture", is_present=False)]

    found = [
        pydicom.dcmread(io.BytesIO(write_report(said, half, model_sha256="a" * 64, algorithm_name="medssl test")))
        for half in halves
    ]

    assert found[0].SOPInstanceUID != found[1].SOPInstanceUID
    assert found[0].SeriesInstanceUID == found[1].SeriesInstanceUID


def test_classes_without_a_known_code_differ_by_private_ones() -> None:
    first, second = statement("some finding").finding, statement("another finding").finding

    assert first[1] == second[1] == "99MEDSSL"
    assert first[0] != second[0]
    assert first[2] == "some finding"


def test_a_report_that_says_something_else_is_not_written(
    tmp_path: Path, headers: list[Header], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_sr, "read_groups", lambda data: read_groups(data)[::-1])

    with pytest.raises(GateError, match="E_OUTPUT_CHECK"):
        made(headers, tmp_path)


def test_a_validator_that_is_not_ours_finds_no_fault(tmp_path: Path, headers: list[Header]) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    (tmp_path / "made.dcm").write_bytes(made(headers, tmp_path))

    done = subprocess.run(["dciodvfy", str(tmp_path / "made.dcm")], capture_output=True, text=True, errors="replace")

    said = (done.stdout + done.stderr).splitlines()
    assert any("Comprehensive3DSR" in line for line in said)
    assert [line for line in said if line.startswith("Error")] == []
