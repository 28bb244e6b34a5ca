"""Unfair refusal: a number that neither places nor scales anything breaks its value representation.

Public: pydicom/pydicom#1661, pydicom/pydicom#1266.
Right: the MR volume is read with its values; the odd element is left out, at most with a note. So it is today for KVP,
FlipAngle, RepetitionTime, SliceThickness and PatientAge.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import noise, raw, series, total

ELEMENTS = {
    "instance_number": (0x00200013, "IS", lambda k: f"{k + 1}.0"),
    "two_echo_times": (0x00180081, "DS", lambda k: "2.4\\4.8"),
    "trigger_time": (0x00181060, "DS", lambda k: "--"),
    "magnification": (0x00181114, "DS", lambda k: "1,3"),
}


def build(folder: Path) -> dict:
    variants = {}
    for key, (tag, vr, text) in ELEMENTS.items():
        volume = noise(1, (16, 12, 6))
        for k, ds in enumerate(series(folder / key, volume, modality="MR")):
            raw(Path(ds.filename), tag, vr, text(k))
        variants[key] = variant(folder / key, {"exit": [0], "number": 1, "images": {"mr": {"sum": total(volume)}}})
    return {"variants": variants}
