"""Wrong label: of two masks of one image (brain and lesion) the first by name is stored.

Public: cpp-lln-lab/bidspm#710, nilearn/nilearn#6260.
Right: brain 12*12*3 = 432 and lesion 3*3*3 = 27 voxels: both under their names, or a choice by name, or both refused.
"""

from pathlib import Path

from tests.cases._case import variant
from tests.cases._dicom import total
from tests.cases._nifti import blocks, scan, write


def build(folder: Path) -> dict:
    root, images = folder / "bids", {}
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "syn", "BIDSVersion": "1.9.0"}')
    for i, subject in enumerate(("01", "02")):
        volume = scan(root / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz", i)
        for name, size in (("desc-brain_mask", 12), ("label-lesion_mask", 3)):
            write(
                root / f"derivatives/pipe/sub-{subject}/anat/sub-{subject}_{name}.nii.gz",
                blocks({1: (2, 2 + size, 2, 2 + size, 2, 5)}),
            )
        images[subject] = {"sum": total(volume), "labels": {"brain": 432, "lesion": 27}}
    return {"variants": {"bids": variant(root, {"number": 2, "images": images, "or_refused": True})}}
