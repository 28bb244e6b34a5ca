"""SUV by body weight: exactly when every element that it needs is there, and never by a default."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from medssl_cli.formats.dicom.suv import suv_factor
from tests.dicom_factory import ct_series, edit, fake_header, load

WEIGHT_KG, DOSE_BQ, HALF_LIFE_S = 70.0, 3.7e8, 6586.2
HOUR = 3600.0

PET = {
    "Modality": "PT",
    "Units": "BQML",
    "CorrectedImage": ("DECY", "ATTN", "SCAT"),
    "DecayCorrection": "START",
    "SeriesDate": "20200102",
    "SeriesTime": "110000",
    "AcquisitionDate": "20200102",
    "AcquisitionTime": "110010.500",
    "PatientWeight": WEIGHT_KG,
    "RadionuclideTotalDose": DOSE_BQ,
    "RadionuclideHalfLife": HALF_LIFE_S,
    "RadiopharmaceuticalStartTime": "100000",
}


def pet(**values):
    return [fake_header(number, **{**PET, **values}) for number in range(4)]


def factor_after(seconds):
    """g/ml per Bq/ml: body weight in g over the dose that is left."""
    return WEIGHT_KG * 1000 / (DOSE_BQ * 0.5 ** (seconds / HALF_LIFE_S))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, factor_after(HOUR)),
        (
            {"RadiopharmaceuticalStartTime": "", "RadiopharmaceuticalStartDateTime": "20200102100000.00"},
            factor_after(HOUR),
        ),
        ({"DecayCorrection": "ADMIN"}, factor_after(0)),
        ({"Units": "GML", "PatientWeight": None}, 1.0),
        ({"Units": "CNTS", "philips_suv_factor": 0.000551}, 0.000551),
        # Midnight between injection and scan, with and without dates.
        (
            {"RadiopharmaceuticalStartTime": "233000", "SeriesTime": "003000", "AcquisitionTime": "003010"},
            factor_after(HOUR),
        ),
        (
            {
                "RadiopharmaceuticalStartTime": "233000",
                "RadiopharmaceuticalStartDateTime": "20200101233000",
                "SeriesTime": "003000",
                "AcquisitionTime": "003010",
            },
            factor_after(HOUR),
        ),
        # Siemens: the series was made again at 16:00; its first acquisition tells when the scan began.
        ({"SeriesTime": "160000", "AcquisitionTime": "110000"}, factor_after(HOUR)),
        ({"SeriesDate": "20200105", "AcquisitionTime": "110000"}, factor_after(HOUR)),
        # No dates at all, as after de-identification.
        ({"SeriesDate": "", "AcquisitionDate": ""}, factor_after(HOUR)),
    ],
    ids=[
        "start",
        "date-time",
        "admin",
        "gml",
        "philips",
        "midnight",
        "midnight-dated",
        "altered",
        "altered-date",
        "undated",
    ],
)
def test_the_factor_by_hand(values, expected):
    found = suv_factor(pet(**values))

    assert found.factor == pytest.approx(expected, rel=1e-9)
    assert found.missing == ()


def test_the_earliest_acquisition_counts_where_the_series_claims_to_be_later():
    headers = pet(SeriesTime="160000")
    times = ["111500", "110500", "110000", "111000"]
    headers = [replace(header, AcquisitionTime=time) for header, time in zip(headers, times, strict=True)]

    found = suv_factor(headers)

    assert found.factor == pytest.approx(factor_after(HOUR))
    assert found.uses_acquisition_time


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({"PatientWeight": None}, "PatientWeight"),
        ({"PatientWeight": 0.0}, "PatientWeight"),
        ({"RadionuclideTotalDose": None}, "RadionuclideTotalDose"),
        ({"RadionuclideHalfLife": None}, "RadionuclideHalfLife"),
        ({"RadiopharmaceuticalStartTime": ""}, "RadiopharmaceuticalStartTime"),
        ({"SeriesTime": ""}, "SeriesTime"),
        ({"AcquisitionTime": ""}, "SeriesTime"),
        ({"AcquisitionTime": "25:00"}, "SeriesTime"),
        ({"CorrectedImage": ("DECY",)}, "CorrectedImage"),
        ({"CorrectedImage": ("ATTN",)}, "CorrectedImage"),
        ({"DecayCorrection": "NONE"}, "DecayCorrection"),
        ({"DecayCorrection": ""}, "DecayCorrection"),
        ({"Units": ""}, "Units"),
        ({"Units": "PROPCPS"}, "Units"),
        ({"Units": "CNTS"}, "(7053,1000)"),
        ({"Units": "GML", "SUVType": "LBM"}, "SUVType"),
        ({"Units": "GML", "SUVType": "LBMJANMA"}, "SUVType"),
        ({"Units": "GML", "SUVType": "BSA"}, "SUVType"),
        ({"Units": "GML", "SUVType": "IBW"}, "SUVType"),
        ({"Units": "CM2ML", "SUVType": "BSA"}, "Units"),
        ({"Units": "CNTS", "SUVType": "LBM", "philips_suv_factor": 2.0}, "SUVType"),
        # Grams, megabecquerels, minutes, hours.
        ({"PatientWeight": 70000.0}, "PatientWeight"),
        ({"RadionuclideTotalDose": 370.0}, "RadionuclideTotalDose"),
        ({"RadionuclideHalfLife": 109.77}, "RadionuclideHalfLife"),
        ({"RadionuclideHalfLife": 1.83}, "RadionuclideHalfLife"),
        ({"RadionuclideHalfLife": 1e-3}, "RadionuclideHalfLife"),
        ({"RadiopharmaceuticalStartDateTime": "20200102080000"}, "RadiopharmaceuticalStartTime"),
        ({"RadiopharmaceuticalStartTime": "110000"}, "RadiopharmaceuticalStartTime"),
        ({"RadiopharmaceuticalStartTime": "120000"}, "RadiopharmaceuticalStartTime"),
        (
            {"RadiopharmaceuticalStartTime": "", "RadiopharmaceuticalStartDateTime": "20191230100000"},
            "RadiopharmaceuticalStartTime",
        ),
        (
            {"RadiopharmaceuticalStartTime": "", "RadiopharmaceuticalStartDateTime": "20200102100000+0100"},
            "RadiopharmaceuticalStartTime",
        ),
    ],
)
def test_without_one_element_there_is_no_factor(values, missing):
    found = suv_factor(pet(**values))

    assert found.factor is None
    assert missing in found.missing


def test_slices_that_disagree_give_no_factor():
    headers = pet()
    headers[2] = replace(headers[2], PatientWeight=80.0)

    assert suv_factor(headers).missing == ("PatientWeight",)


@pytest.mark.parametrize(
    ("attributes", "units", "mean"),
    [
        ({}, "SUVbw", 1.0),
        ({"DecayCorrection": "ADMIN"}, "SUVbw", factor_after(0) / factor_after(HOUR)),
        ({"PatientWeight": None}, "Bq/ml", 1 / factor_after(HOUR)),
        ({"Units": "GML"}, "SUVbw", 1 / factor_after(HOUR)),
        ({"Units": "GML", "SUVType": "BW"}, "SUVbw", 1 / factor_after(HOUR)),
        ({"Units": "GML", "SUVType": "LBM"}, "a.u.", 1 / factor_after(HOUR)),
    ],
    ids=["start", "admin", "unavailable", "gml", "by-body-weight", "by-lean-body-mass"],
)
def test_a_uniform_cylinder_has_its_uptake(tmp_path, attributes, units, mean):
    series = ct_series(tmp_path, size=(16, 14))
    for path in series:
        _make_pet(path)
        edit(path, **attributes)

    image = load(series)

    filled = image.volume.voxels[0, 4:12, 4:10]
    assert image.volume.units == units
    assert float(filled.mean()) == pytest.approx(mean, rel=0.005)
    assert ("W_SUV_UNAVAILABLE" in image.warnings) == (units != "SUVbw")
    element = "SUVType" if "SUVType" in attributes else "PatientWeight"
    why = f"W_SUV_UNAVAILABLE: missing, unusable or contradictory: {element}"
    assert image.details == (() if units == "SUVbw" else (why,))


def _make_pet(path):
    """A cylinder that holds the activity of SUV 1, stored in steps of a hundredth of it."""
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
    dataset.Modality, dataset.Units, dataset.DecayCorrection = "PT", "BQML", "START"
    dataset.CorrectedImage = ["ATTN", "DECY"]
    dataset.SeriesDate = dataset.AcquisitionDate = "20200102"
    dataset.SeriesTime, dataset.AcquisitionTime = "110000", "110010"
    dataset.PatientWeight = WEIGHT_KG
    tracer = pydicom.Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = DOSE_BQ, HALF_LIFE_S
    tracer.RadiopharmaceuticalStartTime = "100000"
    dataset.RadiopharmaceuticalInformationSequence = [tracer]
    y, x = np.indices((dataset.Rows, dataset.Columns))
    words = np.where((x - 7.5) ** 2 + (y - 6.5) ** 2 <= 36, 100, 0).astype("<u2")
    dataset.PixelData = words.tobytes()
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{0.01 / factor_after(HOUR):.10g}", "0"
    dataset.save_as(path)
