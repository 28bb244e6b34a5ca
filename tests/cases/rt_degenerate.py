"""Unfair refusal: one contour of one or two points in an unrelated structure costs all structures.

Public: qurit/rt-utils#87, qurit/rt-utils#134, OHIF/Viewers#3476.
Right: such a contour has no area. Liver has 10*10*4 = 400 voxels; with --structures Liver nothing else matters.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import box, noise, series, structures, total


def build(folder: Path) -> dict:
    variants = {}
    for points in (1, 2):
        root = folder / f"points_{points}"
        volume = noise(1, (24, 20, 6), 100)
        files = series(root, volume)
        stray = ("CLOSED_PLANAR", [(15.0, 15.0, 6.0), (16.0, 15.0, 6.0)][:points])
        structures(
            root / "rs.dcm",
            files,
            [(1, "Liver", [box(1.5, 11.5, 1.5, 11.5, 3.0 * k) for k in range(1, 5)]), (2, "Marker", [stray])],
        )
        expect = {"images": {"ct": {"sum": total(volume), "labels": {"Liver": 400}}}}
        variants[f"{points}_all"] = variant(root, expect)
        variants[f"{points}_liver"] = variant(root, {**expect, "exit": [0]}, "--structures", "Liver")
    return {"variants": variants}
