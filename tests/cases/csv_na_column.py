"""Findings lost: a column disappears because one of its fields says that the value is missing.

Public: near mlmed/torchxrayvision#22. R writes NA, numpy writes nan.
Right: Edema is 1 for a and 0 for c, not stated for b; Mass is 1, 0, 0. A column that is not taken is named.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import radiograph, total, uid


def build(folder: Path) -> dict:
    variants = {}
    for missing in ("NA", "nan"):
        root = folder / f"missing_{missing}"
        sums = {
            n: total(radiograph(root / f"{n}.dcm", study=uid(missing, n), patient=f"SYN-{n}", seed=ord(n)).pixel_array)
            for n in "abc"
        }
        rows = [("a", "1", "1"), ("b", missing, "0"), ("c", "0", "0")]
        (root / "labels.csv").write_text(
            "StudyInstanceUID,Edema,Mass\n" + "".join(f"{uid(missing, n)},{e},{m}\n" for n, e, m in rows)
        )
        found = {"a": {"Edema": 1.0, "Mass": 1.0}, "b": {"Mass": 0.0}, "c": {"Edema": 0.0, "Mass": 0.0}}
        variants[missing] = variant(
            root,
            {"number": 3, "or_note": True, "images": {n: {"sum": sums[n], "findings": f} for n, f in found.items()}},
        )
    return {"variants": variants}
