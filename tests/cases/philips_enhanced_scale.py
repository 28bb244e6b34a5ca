"""Wrong values: enhanced MR of Philips keeps displayed values, classic files of the same scan get the scanner's own.

Public: nipy/nibabel#1342, rordenlab/dcm2niix#170, rordenlab/dcm2niix#363.
Right: (PV * RS + RI) / (RS * SS) in both, SS = private element (2005,xx0E) of creator "Philips MR Imaging DD 001". In
enhanced files it stands in the item of the private sequence (2005,xx0F), creator DD 005, of each frame.
"""

from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.cases._case import variant
from tests.cases._dicom import enhanced, noise, series

RS, RI, SS = 1.5, 0.0, 0.02


def _scale(ds):
    ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", SS)


def build(folder: Path) -> dict:
    volume = noise(4, (16, 12, 5), 2000)
    value = float(((volume.astype(float) * RS + RI) / (RS * SS)).sum())

    def classic(ds, _):
        ds.Manufacturer = "Philips Medical Systems"
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = str(RS), str(RI), "normalized"
        _scale(ds)

    def frames(ds, _):
        ds.Manufacturer = "Philips Medical Systems"
        for group in ds.PerFrameFunctionalGroupsSequence:
            values = group.PixelValueTransformationSequence[0]
            values.RescaleSlope, values.RescaleIntercept, values.RescaleType = str(RS), str(RI), "normalized"
            inner = Dataset()
            _scale(inner)
            group.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", Sequence([inner]))

    series(folder / "classic", volume, modality="MR", each=classic)
    enhanced(folder / "enhanced" / "mf.dcm", [volume], edit=frames)
    expect = {"number": 1, "images": {"mr": {"sum": value}}}
    return {"variants": {k: variant(folder / k, expect) for k in ("classic", "enhanced")}}
