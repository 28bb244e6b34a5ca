"""Part of a label lost: two CLOSED_PLANAR contours of one structure that overlap in part lose their overlap.

Public: medical-physics-usz/z-rad#181, SlicerRt/SlicerRT#171.
Right: PS3.3 C.8.8.6 defines exclusive-or for CLOSEDPLANAR_XOR alone. Boxes x 2..9 and x 6..13, y 2..9: the union is
12*8 = 96 voxels (or a refusal); with CLOSEDPLANAR_XOR 64. Nested contours as holes are a documented reading.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import box, noise, series, structures, total


def build(folder: Path) -> dict:
    variants = {}
    for kind, voxels in (("CLOSED_PLANAR", 96), ("CLOSEDPLANAR_XOR", 64)):
        root = folder / kind.lower()
        volume = noise(1, (24, 20, 6), 100)
        files = series(root, volume)
        structures(
            root / "rs.dcm",
            files,
            [(1, "GTV", [box(1.5, 9.5, 1.5, 9.5, 6.0, kind), box(5.5, 13.5, 1.5, 9.5, 6.0, kind)])],
        )
        variants[kind] = variant(
            root, {"images": {"ct": {"sum": total(volume), "labels": {"GTV": voxels}}}, "or_refused": True}
        )
    return {"variants": variants}
