"""Shortened volume: the last slice of a CT is damaged and refused; the other 11 are stored as if they were all.

Public: none; found by damaging files.
Right: a damaged slice quarantines its series, as it does in the middle; or the stored image carries a note that slices
are missing.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import noise, series


def build(folder: Path) -> dict:
    variants = {}
    for damage in ("cut_pixels", "cut_header", "decimal_comma"):
        root = folder / damage
        files = series(root, noise(6, (24, 20, 12)), spacing=(0.9, 0.8, 2.5))
        path = Path(files[-1].filename)
        data = path.read_bytes()
        if damage == "cut_pixels":
            data = data[:-200]
        elif damage == "cut_header":
            data = data[:600]
        else:
            assert b"0.8\\0.9 " in data
            data = data.replace(b"0.8\\0.9 ", b"0,8\\0.9 ")
        path.write_bytes(data)
        variants[damage] = variant(root, {"exit": [3, 4], "whole_or_marked": 12})
    return {"variants": variants}
