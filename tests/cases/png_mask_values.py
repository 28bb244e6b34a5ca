"""Masks of X-rays as they are distributed: 0 and 255, one bit, a palette. One structure of 10*20 = 200 pixels in all.

Public: AIM-Harvard/pyradiomics#368, ESA-PhiLab/iris#51 (JSRT, Montgomery and VOC store masks so).
Right: one class with 200 pixels whose value a recipe can use (1), or a refusal by name that says what to do.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.cases._case import variant
from tests.cases._dicom import noise, total


def build(folder: Path) -> dict:
    mask = np.zeros((48, 64), np.uint8)
    mask[5:15, 10:30] = 1
    palette = Image.fromarray(mask)
    palette = palette.convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
    variants = {}
    for kind, picture in (
        ("0_255", Image.fromarray(mask * 255)),
        ("one_bit", Image.fromarray(mask * 255).convert("1")),
        ("palette", palette),
    ):
        root, images = folder / kind, {}
        (root / "images").mkdir(parents=True)
        (root / "masks").mkdir()
        for i in (1, 2):
            image = noise(i, (48, 64), 255, np.uint8)
            Image.fromarray(image).save(root / f"images/x{i:03d}.png")
            picture.save(root / f"masks/x{i:03d}.png")
            images[f"x{i:03d}"] = {"sum": total(image), "labels": {"class_1": 200}}
        variants[kind] = variant(
            root, {"number": 2, "images": images, "or_refused": True}, "--burned-in", "accept", "--modality", "DX"
        )
    return {"variants": variants}
