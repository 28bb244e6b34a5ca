"""Wrong classes: a mask that was saved as JPEG becomes a label map with as many classes as its grey values.

Public: JCruan519/EGE-UNet#13, aurooj/Hand-Segmentation-in-the-Wild#4, romi/plant-3d-vision#140.
Right: a lossy picture is no label map; refused by name (a note beside stored labels is not enough).
"""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.cases._case import variant
from tests.cases._dicom import noise, total


def build(folder: Path) -> dict:
    root, images = folder / "jpeg", {}
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    mask = np.zeros((48, 64), np.uint8)
    mask[5:15, 10:30] = 255
    for i in (1, 2):
        picture = noise(i, (48, 64), 255, np.uint8)
        Image.fromarray(picture).save(root / f"images/x{i:03d}.png")
        Image.fromarray(mask).save(root / f"masks/x{i:03d}.jpg")
        images[f"x{i:03d}"] = {"sum": total(picture), "labels": None}
    expect = {"exit": [3, 4], "number": 2, "images": images}
    return {"variants": {"jpeg": variant(root, expect, "--burned-in", "accept", "--modality", "DX")}}
