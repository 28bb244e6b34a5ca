"""Scrambled pixels: RLE Lossless frames that hold more than the header says are cut instead of refused.

Public: none; found by fuzzing.
Right: PS3.5 annex G: a frame decodes to what the header declares; 24 columns are stored and 19 (or 12) declared.
Refused by name (E_CODESTREAM_MISMATCH or E_PIXEL_LENGTH), as JPEG-LS and JPEG 2000 are.
"""

from pathlib import Path

import pydicom
from pydicom.uid import RLELossless

from tests.cases._case import variant
from tests.cases._dicom import noise, series


def build(folder: Path) -> dict:
    variants = {}
    for columns in (19, 12):
        root = folder / f"columns_{columns}"
        for f in series(root, noise(2, (24, 20, 6))):
            ds = pydicom.dcmread(f.filename)
            ds.compress(RLELossless, generate_instance_uid=False)
            ds.Columns = columns
            ds.save_as(f.filename)
        variants[str(columns)] = variant(
            root, {"exit": [3, 4], "number": 0, "codes": ["E_CODESTREAM_MISMATCH", "E_PIXEL_LENGTH"]}
        )
    return {"variants": variants}
