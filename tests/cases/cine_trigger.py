"""Unfair refusal: a cardiac cine whose trigger times differ a little between slices (another RR interval each).

Public: erling6232/imagedata#126, rordenlab/dcm2niix#395.
Right: 6 slices * 5 phases, numbered slice by slice: the n-th trigger time of each slice is phase n; five volumes.
"""

from pathlib import Path

import numpy as np

from tests.cases._case import variant
from tests.cases._dicom import base, noise, pixels, save, total, uid


def build(folder: Path) -> dict:
    root = folder / "cine"
    volumes = [noise(8 + p, (14, 12, 6), 100) + np.uint16(100 * p) for p in range(5)]
    for number, (k, p) in enumerate([(k, p) for k in range(6) for p in range(5)], start=1):
        ds = base(
            "MR",
            "MR",
            study=uid("cine study"),
            series=uid("cine series"),
            sop=uid("cine", number),
            frame=uid("cine frame"),
        )
        ds.ImageType, ds.InstanceNumber, ds.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "M"], number, 1
        ds.AcquisitionTime, ds.CardiacNumberOfImages = f"0805{k:02d}", "5"
        ds.TriggerTime = f"{p * (40 + 1.5 * k):.1f}"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = ["0", "0", str(8 * k)], ["1", "0", "0", "0", "1", "0"]
        ds.PixelSpacing, ds.SliceThickness = ["1.5", "1.5"], "8"
        pixels(ds, volumes[p][:, :, k].T)
        save(ds, root / f"i{number:03d}.dcm")
    images = {f"phase {p + 1}": {"sum": total(v)} for p, v in enumerate(volumes)}
    return {"variants": {"cine": variant(root, {"exit": [0], "number": 5, "images": images})}}
