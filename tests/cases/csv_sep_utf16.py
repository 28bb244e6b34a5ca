"""Findings lost: a table as Excel saves it (first line `sep=;`, or UTF-16) is skipped although it lies beside its
images.

Public: near radiant-rstats/radiant#202, langgenius/dify#42354.
Right: Edema 0, 1, 0 are stored, or the table is refused with an error code.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import radiograph, total, uid


def build(folder: Path) -> dict:
    variants = {}
    for key, separator, head, encoding in (("sep_line", ";", "sep=;\r\n", "utf-8"), ("utf16", ",", "", "utf-16")):
        root, images, rows = folder / key, {}, ""
        for i, n in enumerate("abc"):
            ds = radiograph(root / f"{n}.dcm", study=uid(key, n), patient=f"SYN-{n}", seed=ord(n))
            images[n] = {"sum": total(ds.pixel_array), "findings": {"Edema": float(i % 2)}}
            rows += f"{uid(key, n)}{separator}{i % 2}\r\n"
        (root / "labels.csv").write_bytes(f"{head}StudyInstanceUID{separator}Edema\r\n{rows}".encode(encoding))
        variants[key] = variant(root, {"number": 3, "images": images, "or_refused": True})
    return {"variants": variants}
