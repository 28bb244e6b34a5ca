"""Unfair refusal: a POINT beside the closed contours of a structure costs all structures of the file.

Public: near OHIF/Viewers#3476.
Right: a point has no area. A has 8*6*2 = 96 voxels and B 3*3*2 = 18.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import box, noise, series, structures, total


def build(folder: Path) -> dict:
    root = folder / "point"
    volume = noise(1, (24, 20, 6), 100)
    files = series(root, volume)
    a = [box(1.5, 9.5, 1.5, 7.5, 3.0 * k) for k in (1, 2)] + [("POINT", [(3, 3, 6.0)])]
    structures(root / "rs.dcm", files, [(1, "A", a), (2, "B", [box(14.5, 17.5, 10.5, 13.5, 3.0 * k) for k in (3, 4)])])
    return {
        "variants": {"point": variant(root, {"images": {"ct": {"sum": total(volume), "labels": {"A": 96, "B": 18}}}})}
    }
