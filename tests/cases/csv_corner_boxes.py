"""Boxes lost and negatives invented: a table of boxes by corners (x_min, y_min, x_max, y_max) is taken for findings.

Public: the layout of VinDr-CXR and of object detection data sets; found with that layout.
Right: a.png, b.png and d.png have one box each, c.png (no row) has none; or the table is refused. Absence of a row is
no finding.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.cases._case import variant
from tests.cases._dicom import noise, total


def build(folder: Path) -> dict:
    root, images = folder / "corners", {}
    root.mkdir(parents=True)
    boxes = {
        "a.png": [("Cardiomegaly", 10, 12, 30, 28)],
        "b.png": [("Nodule", 5, 6, 15, 18)],
        "c.png": [],
        "d.png": [("Nodule", 1, 2, 9, 9)],
    }
    for i, (name, rows) in enumerate(boxes.items()):
        picture = noise(i, (48, 64), 255, np.uint8)
        Image.fromarray(picture).save(root / name)
        images[name] = {"sum": total(picture), "boxes": len(rows), "findings": None}
    (root / "labels.csv").write_text(
        "image_id,class,x_min,y_min,x_max,y_max\n"
        + "".join(",".join(map(str, (name[:-4], *row))) + "\n" for name, rows in boxes.items() for row in rows)
    )
    return {
        "variants": {
            "corners": variant(
                root, {"number": 4, "images": images, "or_refused": True}, "--burned-in", "accept", "--modality", "DX"
            )
        }
    }
