"""Wrong brightness: a radiograph with MONOCHROME2 and Presentation LUT Shape INVERSE is not inverted, without a note.

Public: pydicom/pydicom#1265, Project-MONAI/monai-deploy-app-sdk#290.
Right: PS3.3 C.11.6.1: INVERSE shows the lowest value white. 4095 - x is stored (as it is for MONOCHROME1), or a note
says that it is not. Padding (no X-ray at all) of a MONOCHROME1 picture is not its brightest tissue.
"""

from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import noise, radiograph, total


def build(folder: Path) -> dict:
    array = noise(1, (40, 50), 3900) + np.uint16(100)
    array[:, :10] = 0
    inverse = total(4095 - array.astype(int))

    def monochrome2(ds):
        ds.PresentationLUTShape, ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "INVERSE", "1", "0", "US"

    def padded(ds):
        monochrome2(ds)
        ds.PhotometricInterpretation, ds.PixelPaddingValue = "MONOCHROME1", 0

    radiograph(folder / "inverse" / "a.dcm", seed=1, patient="SYN-1", array=array, edit=monochrome2)
    radiograph(folder / "padding" / "a.dcm", seed=1, patient="SYN-1", array=array, edit=padded)
    return {
        "variants": {
            "inverse": variant(folder / "inverse", {"images": {"dx": {"sum": inverse}}, "or_note": True}),
            "padding": variant(folder / "padding", {"not_sum": inverse}),
        }
    }
