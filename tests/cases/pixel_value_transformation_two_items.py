"""Wrong values: enhanced MR whose Pixel Value Transformation Sequence holds two equal items loses its rescale.

Public: none; found by fuzzing. PS3.3 C.7.6.16.2.9 allows one item.
Right: the stored value 2 * PV - 1024, or a refusal by name.
"""

import copy
from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import enhanced, noise, total


def build(folder: Path) -> dict:
    root = folder / "two_items"
    volume = noise(5, (16, 12, 5), 4000)

    def twice(ds, _):
        for group in ds.PerFrameFunctionalGroupsSequence:
            values = group.PixelValueTransformationSequence[0]
            values.RescaleSlope, values.RescaleIntercept = "2", "-1024"
            group.PixelValueTransformationSequence.append(copy.deepcopy(values))

    enhanced(root / "mf.dcm", [volume], edit=twice)
    expect = {"images": {"mr": {"sum": float(2 * total(volume) - 1024 * volume.size)}}, "or_refused": "all"}
    return {"variants": {"two_items": variant(root, expect)}}
