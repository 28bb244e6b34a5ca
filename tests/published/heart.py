"""Structures of the heart and its vessels on CT and MR, and of the hippocampus."""

from pathlib import Path

import numpy as np

from tests.published.abdomen import decathlon, numbered
from tests.published.files import Published, Shape, Wanted, blocks, body, labels, scan, shipped_split, volumes, write

SHAPE: Shape = (32, 32, 16)
STRUCTURES = (205, 420, 500, 550, 600, 820, 850)
"""Values of MM-WHS: myocardium, left atrium, left ventricle, right atrium, right ventricle, aorta, pulmonary artery."""


def _mmwhs(root: Path, kind: str, recipe: str) -> Published:
    """CT and MR of one number are of two people; one MR has a value that no name covers."""
    made = Published(root / "MMWHS", recipe, split=shipped_split(recipe))
    for modality in ("ct", "mr"):
        for patient, number in enumerate((1001, 1004, 1005, 1016, 1020) if modality == kind else (1001,), 1):
            stem = f"{modality}_train_{number}"
            person = patient + 20 * (modality == "mr")
            drawn = blocks(SHAPE, STRUCTURES)
            if stem == "mr_train_1001":
                drawn[-1, -1, -5:] = 421
            low = -1000 if modality == "ct" else 0
            scan(made.folder / f"{modality}_train/{stem}_image.nii.gz", person, SHAPE, (0.5, 0.5, 0.6), low)
            path = made.folder / f"{modality}_train/{stem}_label.nii.gz"
            write(path, drawn.astype(np.int16), person, (0.5, 0.5, 0.6))
            values = [value for value in np.unique(drawn).tolist() if value]
            wanted = Wanted(stem, modality.upper(), numbered(values))
            made.images[f"{modality}_train/{stem}_image.nii.gz"] = wanted
    scan(made.folder / f"{kind}_test/{kind}_test_2001_image.nii.gz", 50, SHAPE, (0.5, 0.5, 0.6))
    made.images[f"{kind}_test/{kind}_test_2001_image.nii.gz"] = Wanted("2001", kind.upper())
    made.unlabelled = [f"{kind}_test/{kind}_test_2001_image.nii.gz"]
    return made


def mmwhs_ct(root: Path) -> Published:
    """CT of MM-WHS, beside an MR."""
    return _mmwhs(root, "ct", "mmwhs-ct")


def mmwhs_mr(root: Path) -> Published:
    """MR of MM-WHS, beside a CT."""
    return _mmwhs(root, "mr", "mmwhs-mr")


def mmwhs_ct_slices(root: Path) -> Published:
    """The same for the slices of joint learning, which has a split of its own."""
    return _mmwhs(root, "ct", "mmwhs-ct-slices")


def mmwhs_mr_slices(root: Path) -> Published:
    """The same on MR."""
    return _mmwhs(root, "mr", "mmwhs-mr-slices")


def acdc(root: Path) -> Published:
    """Two labelled frames of each patient beside the whole time series; end-diastole need not be the first."""
    made = Published(root / "ACDC", "acdc", ["--modality", "MR"], split=shipped_split("acdc"), scored="test")
    shape, spacing = (32, 36, 8), (1.5, 1.5, 10.0)
    for number, frames in {1: (1, 12), 5: (12, 1), 20: (1, 9), 90: (11, 4), 101: (1, 14)}.items():
        folder = f"{'training' if number < 101 else 'testing'}/patient{number:03d}"
        images = {frame: body(number, shape, 0, channel=frame).astype(np.int16) for frame in frames}
        for frame, voxels in images.items():
            stem = f"{folder}/patient{number:03d}_frame{frame:02d}"
            write(made.folder / f"{stem}.nii.gz", voxels, number, spacing)
            labels(made.folder / f"{stem}_gt.nii.gz", number, shape, spacing, (1, 2, 3))
            made.images[f"{stem}.nii.gz"] = Wanted(str(number), "MR", numbered((1, 2, 3)))
        series = [images.get(frame, images[frames[0]]) for frame in range(1, 15)]
        volumes(made.folder / f"{folder}/patient{number:03d}_4d.nii.gz", series, number, spacing)
        made.codes[f"{folder}/patient{number:03d}_4d.nii.gz"] = "S_TIME_SERIES"
        text = f"ED: {frames[0]}\nES: {frames[1]}\nGroup: DCM\nHeight: 184.0\nNbFrame: 14\nWeight: 95.0\n"
        (made.folder / folder / "Info.cfg").write_text(text)
        made.codes[f"{folder}/Info.cfg"] = "S_NOT_AN_IMAGE"
    made.unlabelled = ["testing/patient101/patient101_frame01.nii.gz"]
    return made


def msd_heart(root: Path) -> Published:
    """Left atria of the Decathlon: one MR of each patient."""
    made = Published(root / "Task02_Heart", "msd-heart", split=shipped_split("msd-heart"))
    stems = [f"la_{number:03d}" for number in (3, 4, 7, 9, 10)]
    for patient, stem in enumerate(stems, 1):
        scan(made.folder / f"imagesTr/{stem}.nii.gz", patient, SHAPE, (1.25, 1.25, 1.37), 0, np.float32)
        labels(made.folder / f"labelsTr/{stem}.nii.gz", patient, SHAPE, (1.25, 1.25, 1.37), (1,))
        made.images[f"imagesTr/{stem}.nii.gz"] = Wanted(stem, "MR", frozenset(("left atrium",)))
    scan(made.folder / "imagesTs/la_001.nii.gz", 6, SHAPE, (1.25, 1.25, 1.37), 0, np.float32)
    made.images["imagesTs/la_001.nii.gz"] = Wanted("la_001", "MR")
    decathlon(made.folder, {1: "left atrium"}, stems, "la_001", {"0": "MRI"})
    made.unlabelled = ["imagesTs/la_001.nii.gz"]
    return made


def hippocampus(root: Path) -> Published:
    """Small crops of MR in three stored types, with intensities of very different size."""
    made = Published(root / "Task04_Hippocampus", "msd-hippocampus")
    stems = [f"hippocampus_{number:03d}" for number in (1, 3, 4, 6, 7)]
    for patient, stem in enumerate(stems, 1):
        low, high, dtype = [(0, 9e5, np.float32), (0, 255, np.uint8), (0, 1704, np.int16)][patient % 3]
        voxels = body(patient, (36, 50, 34), low, high).astype(dtype)
        write(made.folder / f"imagesTr/{stem}.nii.gz", voxels, 2, (1.0, 1.0, 1.0))
        labels(made.folder / f"labelsTr/{stem}.nii.gz", 2, (36, 50, 34), (1.0, 1.0, 1.0), (1, 2))
        made.images[f"imagesTr/{stem}.nii.gz"] = Wanted(stem, "MR", frozenset(("Anterior", "Posterior")))
    write(made.folder / "imagesTs/hippocampus_002.nii.gz", body(9, (36, 50, 34), 0).astype(np.int16), 2, (1.0,) * 3)
    made.images["imagesTs/hippocampus_002.nii.gz"] = Wanted("hippocampus_002", "MR")
    decathlon(made.folder, {1: "Anterior", 2: "Posterior"}, stems, "hippocampus_002", {"0": "MRI"})
    made.split = ["--split-file", f"val={made.listed('val', stems[-1:])}"]
    made.unlabelled = ["imagesTs/hippocampus_002.nii.gz"]
    return made
