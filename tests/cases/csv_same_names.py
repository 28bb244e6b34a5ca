"""Findings on the wrong images: a table labels pictures of another folder that have the same file names.

Public: open-edge-platform/datumaro#853.
Right: a table speaks of the pictures beside or below it. train/ has Pneumonia 1; test/ has its own table (0) or none.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.cases._case import variant
from tests.cases._dicom import noise, total


def build(folder: Path) -> dict:
    variants = {}
    for key in ("train_table_only", "both_tables"):
        root, images = folder / key, {}
        for split, value in (("train", 1), ("test", 0)):
            (root / split).mkdir(parents=True)
            names = [f"{i:04d}.png" for i in range(1, 5)]
            for i, name in enumerate(names):
                picture = noise(10 * value + i, (48, 64), 255, np.uint8)
                Image.fromarray(picture).save(root / split / name)
                has_table = split == "train" or key == "both_tables"
                images[f"{split}/{name}"] = {
                    "sum": total(picture),
                    "findings": {"Pneumonia": float(value)} if has_table else None,
                }
            if split == "train" or key == "both_tables":
                (root / split / "labels.csv").write_text(
                    "filename,Pneumonia\n" + "".join(f"{n},{value}\n" for n in names)
                )
        variants[key] = variant(
            root, {"number": 8, "images": images, "or_refused": True}, "--burned-in", "accept", "--modality", "DX"
        )
    return {"variants": variants}
