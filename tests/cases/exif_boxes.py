"""Boxes on the wrong place: a JPEG with EXIF orientation 3 is turned, its boxes (of the stored picture) are not.

Public: open-edge-platform/datumaro#1756, facebookresearch/detectron2#5366.
Right: the box x 5..15, y 5..13 of the stored picture covers the bright block (220); refused, noted, or turned with the
picture.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.cases._case import variant


def build(folder: Path) -> dict:
    root = folder / "exif"
    root.mkdir(parents=True)
    array = np.full((48, 64), 30, np.uint8)
    array[5:13, 5:15] = 220
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(array).save(root / "x001.jpg", exif=exif, quality=95)
    (root / "boxes.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "x001.jpg", "width": 64, "height": 48}],
                "categories": [{"id": 1, "name": "n"}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 10, 8], "iscrowd": 0}],
            }
        )
    )
    expect = {"number": 1, "images": {"dx": {"bright_box": True}}, "or_refused": True, "or_note": True}
    return {"variants": {"exif": variant(root, expect, "--burned-in", "accept", "--modality", "DX")}}
