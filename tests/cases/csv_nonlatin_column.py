"""Findings lost or renamed: the name of a column is reduced to ASCII letters without a word.

Public: near rordenlab/dcm2niix#878.
Right: the columns 肺炎 and auffällig keep names that can be told apart and read back, or are refused by name.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import radiograph, total, uid


def build(folder: Path) -> dict:
    root, images = folder / "letters", {}
    for n, values in {"a": (1, 0, 1), "b": (0, 1, 0)}.items():
        ds = radiograph(root / f"{n}.dcm", study=uid("letters", n), patient=f"SYN-{n}", seed=ord(n))
        images[n] = {
            "sum": total(ds.pixel_array),
            "findings": dict(zip(("肺炎", "auffällig", "Mass"), map(float, values), strict=True)),
        }
    text = "StudyInstanceUID,肺炎,auffällig,Mass\n"
    for n in images:
        text += uid("letters", n) + "".join(f",{int(v)}" for v in images[n]["findings"].values()) + "\n"
    (root / "labels.csv").write_text(text, encoding="utf-8")
    return {
        "variants": {
            "letters": variant(
                root, {"number": 2, "images": images, "or_refused": True, "or_note": True, "any_names": True}
            )
        }
    }
