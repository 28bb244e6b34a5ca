"""Meaning lost without a word: a data set of several MR channels is stored as unrelated images.

Public: the nnU-Net raw format of BraTS; MIC-DKFZ/nnUNet#1264.
Right: one channel per image is a documented limit; then a note says that 2 cases of 4 channels became 8 images, and the
name of the channel (FLAIR, T1w ...) is kept with each.
"""

import json
from pathlib import Path

from tests.cases._case import variant
from tests.cases._nifti import blocks, scan, write


def build(folder: Path) -> dict:
    root = folder / "channels"
    for case in (1, 2):
        for channel in range(4):
            scan(root / f"imagesTr/BRATS_{case:03d}_{channel:04d}.nii.gz", 10 * case + channel)
        write(root / f"labelsTr/BRATS_{case:03d}.nii.gz", blocks({1: (2, 6, 2, 6, 2, 5), 2: (8, 12, 2, 6, 2, 5)}))
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "FLAIR", "1": "T1w", "2": "T1gd", "3": "T2w"},
                "labels": {"background": 0, "edema": 1, "core": 2},
                "numTraining": 2,
                "file_ending": ".nii.gz",
            }
        )
    )
    return {"variants": {"channels": variant(root, {"note": True})}}
