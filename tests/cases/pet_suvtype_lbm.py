"""Wrong unit: PET in g/ml by lean body mass or body surface area is called SUVbw.

Public: medical-physics-usz/z-rad#140, cornerstonejs/calculate-suv#15.
Right: PS3.3 C.8.9.1: SUV Type (0054,1006) says what the values are divided by; BW is meant only where it is absent. The
unit is not SUVbw, or a note or refusal says so. SUVlbm is about 0.7 of SUVbw.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import noise, series


def build(folder: Path) -> dict:
    variants = {}
    for kind in ("absent", "BW", "LBM", "LBMJANMA", "BSA"):

        def each(ds, _, kind=kind):
            ds.Units, ds.CorrectedImage, ds.DecayCorrection, ds.PatientWeight = "GML", ["ATTN", "DECY"], "START", "80"
            ds.AcquisitionDate, ds.AcquisitionTime, ds.RescaleSlope = "20250101", "080500", "0.01"
            if kind != "absent":
                ds.SUVType = kind

        volume = noise(4, (16, 12, 6), 2000)
        series(folder / kind, volume, modality="PT", each=each)
        expect = (
            {"number": 1, "images": {"pet": {"units": "SUVbw"}}} if kind in ("absent", "BW") else {"not_units": "SUVbw"}
        )
        variants[kind] = variant(folder / kind, expect)
    return {"variants": variants}
