"""Label maps become training images: masks lie in a folder whose name is not one of the known ones.

Public: near MIC-DKFZ/nnUNet#188.
Right: two images; the label maps (same file names and grid, two values) are labels, or are refused or noted.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import total
from tests.cases._nifti import blocks, scan, write


def build(folder: Path) -> dict:
    variants = {}
    for images_in, labels_in in (("data", "gt"), ("scans", "annotations"), ("Bilder", "Masken")):
        root, images = folder / images_in, {}
        for i in (1, 2):
            images[f"p{i}"] = {"sum": total(scan(root / images_in / f"p{i:02d}.nii.gz", i)), "voxels": 20 * (2 + i)}
            write(root / labels_in / f"p{i:02d}.nii.gz", blocks({1: (3, 8, 4, 8, 2, 4 + i)}))
        variants[f"{images_in}/{labels_in}"] = variant(
            root, {"number": 2, "images": images, "or_refused": True}, "--modality", "MR"
        )
    return {"variants": variants}
