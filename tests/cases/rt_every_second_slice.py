"""Striped mask: contours that were drawn on every second slice of the image are stored slice by slice.

Public: near e0404/matRad#910, pyplati/platipy#165, brianmanderson/Dicom_RT_and_Images_to_Mask#44.
Right: a note or a refusal, or filled gaps: 10*10 voxels on slices 1 to 9, 900 in all (the structure is solid).
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import box, noise, series, structures, total


def build(folder: Path) -> dict:
    root = folder / "stripes"
    volume = noise(1, (24, 20, 12), 100)
    files = series(root, volume)
    structures(root / "rs.dcm", files, [(1, "Lung", [box(1.5, 11.5, 1.5, 11.5, 3.0 * k) for k in range(1, 11, 2)])])
    expect = {"images": {"ct": {"sum": total(volume), "labels": {"Lung": 900}}}, "or_refused": True, "or_note": True}
    return {"variants": {"stripes": variant(root, expect)}}
