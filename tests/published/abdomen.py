"""Organs and tumours on CT (and MR) of the abdomen and the whole body."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.published.files import (
    Published,
    Shape,
    Wanted,
    blocks,
    document,
    labels,
    scan,
    shipped_split,
    table,
    write,
)

SHAPE: Shape = (32, 32, 16)
BTCV = (
    "spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "portal_and_splenic_veins", "pancreas", "right_adrenal_gland", "left_adrenal_gland",
)  # fmt: skip
FLARE = (
    "Liver", "Right kidney", "Spleen", "Pancreas", "Aorta", "Inferior vena cava", "Right adrenal gland",
    "Left adrenal gland", "Gallbladder", "Esophagus", "Stomach", "Duodenum", "Left Kidney",
)  # fmt: skip
AMOS = (
    "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota", "postcava",
    "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip
WORD = (
    "liver", "spleen", "left_kidney", "right_kidney", "stomach", "gallbladder", "esophagus", "pancreas", "duodenum",
    "colon", "intestine", "adrenal", "rectum", "bladder", "Head_of_femur_L", "Head_of_femur_R",
)  # fmt: skip
CT = ["--modality", "CT"]


def numbered(values: Sequence[int]) -> frozenset[str]:
    """What label maps call their values where nothing names them."""
    return frozenset(f"class_{value}" for value in values)


def listed(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Entries of a list in a description."""
    return [{"image": image, "label": label} for image, label in pairs]


def decathlon(
    folder: Path, names: Mapping[int, str], numbers: Sequence[str], test: str, modality: Mapping[str, str]
) -> None:
    """`dataset.json` of the Medical Segmentation Decathlon, with the misspelt key of one of its releases."""
    pairs = [(f"./imagesTr/{name}.nii.gz", f"./labelsTr/{name}.nii.gz") for name in numbers]
    document(
        folder / "dataset.json",
        {
            "name": folder.name, "description": "", "reference": "", "licence": "CC-BY-SA 4.0", "relase": "1.0",
            "tensorImageSize": "3D", "modality": modality,
            "labels": {"0": "background", **{str(value): name for value, name in names.items()}},
            "numTraining": len(pairs), "numTest": 1, "training": listed(pairs),
            "test": [f"./imagesTs/{test}.nii.gz"],
        },
    )  # fmt: skip


def btcv(root: Path) -> Published:
    """The folders of Synapse: `img` beside `label`, which have no names for their values; no number from 11 to 20."""
    made = Published(root / "RawData", "btcv", CT, split=shipped_split("btcv"))
    for patient, number in enumerate(("0001", "0002", "0010", "0021", "0035"), 1):
        values = [value for value in range(1, 14) if (patient, value) != (2, 4)]  # gallbladders are taken out
        scan(made.folder / f"Training/img/img{number}.nii.gz", patient, SHAPE, (0.8, 0.8, 3.0))
        labels(made.folder / f"Training/label/label{number}.nii.gz", patient, SHAPE, (0.8, 0.8, 3.0), values)
        made.images[f"Training/img/img{number}.nii.gz"] = Wanted(number, labels=numbered(values))
    scan(made.folder / "Testing/img/img0061.nii.gz", 6, SHAPE, (0.8, 0.8, 3.0))
    made.images["Testing/img/img0061.nii.gz"] = Wanted("0061")
    made.unlabelled = ["Testing/img/img0061.nii.gz"]
    return made


def btcv_list(root: Path) -> Published:
    """The same in MONAI's folders with its list: short names, a count and a file that are not there."""
    made = Published(root / "btcv", "btcv", CT)
    short = ("spleen", "rkid", "lkid", "gall", "eso", "liver", "sto", "aorta", "IVC", "veins", "pancreas", "rad", "lad")
    numbers = ("0001", "0002", "0010", "0021", "0035")
    for patient, number in enumerate(numbers, 1):
        scan(made.folder / f"imagesTr/img{number}.nii.gz", patient, SHAPE, (0.8, 0.8, 3.0))
        labels(made.folder / f"labelsTr/label{number}.nii.gz", patient, SHAPE, (0.8, 0.8, 3.0), range(1, 14))
        made.images[f"imagesTr/img{number}.nii.gz"] = Wanted(number, labels=frozenset(short))
    scan(made.folder / "imagesTs/img0061.nii.gz", 6, SHAPE, (0.8, 0.8, 3.0))
    made.images["imagesTs/img0061.nii.gz"] = Wanted("0061")
    pairs = [(f"imagesTr/img{number}.nii.gz", f"labelsTr/label{number}.nii.gz") for number in (*numbers, "0036")]
    content: dict[str, Any] = {
        "description": "btcv", "labels": {str(value): name for value, name in enumerate(("background", *short))},
        "licence": "yt", "modality": {"": "CT"}, "name": "btcv", "numTest": 20, "numTraining": 80,
        "reference": "Vanderbilt University", "release": "1.0 06/08/2015", "tensorImageSize": "3D",
        "training": listed(pairs[:4]), "validation": listed(pairs[4:]), "test": ["imagesTs/img0061.nii.gz"],
    }  # fmt: skip
    document(made.folder / "dataset_0.json", content)
    made.codes["dataset_0.json"] = "S_SIDECAR"
    made.unlabelled = ["imagesTs/img0061.nii.gz"]
    return made


def lits(root: Path) -> Published:
    """LiTS of CodaLab: numbers without zeros, so that 2 is no beginning of 20; one liver without a tumour."""
    made = Published(root / "LiTS17", "lits", CT, split=shipped_split("lits17"))
    for patient, number in enumerate((2, 20, 3, 28, 5), 1):
        folder = f"Training Batch {1 if number < 28 else 2}"
        values = [1] if number == 3 else [1, 2]
        scan(made.folder / f"{folder}/volume-{number}.nii", patient, SHAPE, (0.7, 0.7, 1.0))
        labels(made.folder / f"{folder}/segmentation-{number}.nii", patient, SHAPE, (0.7, 0.7, 1.0), values)
        made.images[f"{folder}/volume-{number}.nii"] = Wanted(str(number), labels=numbered(values))
    scan(made.folder / "test-volume-0.nii", 6, SHAPE, (0.7, 0.7, 1.0))
    made.images["test-volume-0.nii"] = Wanted("0")
    made.unlabelled = ["test-volume-0.nii"]
    return made


def msd_liver(root: Path) -> Published:
    """The same livers in the Decathlon's folder, as the authors take them."""
    made = Published(root / "Task03_Liver", "lits")
    stems = [f"liver_{number}" for number in (2, 20, 3, 28, 5)]
    for patient, stem in enumerate(stems, 1):
        scan(made.folder / f"imagesTr/{stem}.nii.gz", patient, SHAPE, (0.7, 0.7, 1.0))
        labels(made.folder / f"labelsTr/{stem}.nii.gz", patient, SHAPE, (0.7, 0.7, 1.0), (1, 2))
        made.images[f"imagesTr/{stem}.nii.gz"] = Wanted(stem, labels=frozenset(("liver", "cancer")))
    scan(made.folder / "imagesTs/liver_132.nii.gz", 6, SHAPE, (0.7, 0.7, 1.0))
    made.images["imagesTs/liver_132.nii.gz"] = Wanted("132")
    decathlon(made.folder, {1: "liver", 2: "cancer"}, stems, "liver_132", {"0": "CT"})
    made.unlabelled = ["imagesTs/liver_132.nii.gz"]
    return made


def msd_spleen(root: Path) -> Published:
    """The Decathlon's archive as macOS packed it: its own files lie among the images."""
    made = Published(root / "Task09_Spleen", "msd-spleen", split=shipped_split("msd-spleen"))
    stems = [f"spleen_{number}" for number in (2, 10, 12, 13, 3)]
    for patient, stem in enumerate(stems, 1):
        scan(made.folder / f"imagesTr/{stem}.nii.gz", patient, SHAPE, (0.8, 0.8, 5.0))
        labels(made.folder / f"labelsTr/{stem}.nii.gz", patient, SHAPE, (0.8, 0.8, 5.0), (1,))
        made.images[f"imagesTr/{stem}.nii.gz"] = Wanted(stem, labels=frozenset(("spleen",)))
    scan(made.folder / "imagesTs/spleen_1.nii.gz", 6, SHAPE, (0.8, 0.8, 5.0))
    made.images["imagesTs/spleen_1.nii.gz"] = Wanted("1")
    for place in ("imagesTr/._spleen_2.nii.gz", "labelsTr/._spleen_2.nii.gz", "._dataset.json"):
        (made.folder / place).write_bytes(bytes.fromhex("00051607") + bytes(60))
        made.codes[place] = "S_NOT_AN_IMAGE"
    decathlon(made.folder, {1: "spleen"}, stems, "spleen_1", {"0": "CT"})
    made.unlabelled = ["imagesTs/spleen_1.nii.gz"]
    return made


def amos22(root: Path) -> Published:
    """CT up to number 500 and MR above it in one folder, which its description calls CT; `Va`, not `Val`."""
    made = Published(root / "amos22", "amos22")
    made.split = ["--split-file", str(made.folder / "dataset.json")]
    for patient, (subset, number) in enumerate(
        (("Tr", "0001"), ("Tr", "0004"), ("Tr", "0005"), ("Tr", "0507"), ("Va", "0008"), ("Va", "0013")), 1
    ):
        is_mr = number > "0500"
        values, low = range(1, 15 if is_mr else 16), 0 if is_mr else -1000
        scan(made.folder / f"images{subset}/amos_{number}.nii.gz", patient, SHAPE, (1.0, 1.0, 5.0), low)
        labels(made.folder / f"labels{subset}/amos_{number}.nii.gz", patient, SHAPE, (1.0, 1.0, 5.0), values)
        names = frozenset(AMOS[: len(values)])
        made.images[f"images{subset}/amos_{number}.nii.gz"] = Wanted(number, "MR" if is_mr else "CT", names)
    scan(made.folder / "imagesTs/amos_0002.nii.gz", 7, SHAPE, (1.0, 1.0, 5.0))
    made.images["imagesTs/amos_0002.nii.gz"] = Wanted("0002")
    pairs = {
        subset: [(f"./images{subset}/amos_{n}.nii.gz", f"./labels{subset}/amos_{n}.nii.gz") for n in numbers]
        for subset, numbers in (("Tr", ("0001", "0004", "0005", "0507")), ("Va", ("0008", "0013")))
    }
    document(
        made.folder / "dataset.json",
        {
            "name": "AMOS", "licence": "CC-BY-SA 4.0", "release": "1.0", "tensorImageSize": "3D",
            "modality": {"0": "CT"}, "labels": {str(v): n for v, n in enumerate(("background", *AMOS))},
            "numTraining": 240, "numValidation": 120, "numTest": 240, "training": listed(pairs["Tr"]),
            "validation": listed(pairs["Va"]), "test": [{"image": "./imagesTs/amos_0002.nii.gz"}],
        },
    )  # fmt: skip
    made.unlabelled = ["imagesTs/amos_0002.nii.gz"]
    return made


def flare22(root: Path) -> Published:
    """`_0000` behind the names of images and not of labels, in folders of small letters."""
    made = Published(root / "FLARE22", "flare22", CT, split=shipped_split("flare22"))
    for patient, number in enumerate(("0001", "0002", "0011", "0012", "0050"), 1):
        stem = f"FLARE22_Tr_{number}"
        scan(made.folder / f"FLARE22Train/images/{stem}_0000.nii.gz", patient, SHAPE, (0.8, 0.8, 2.5))
        labels(made.folder / f"FLARE22Train/labels/{stem}.nii.gz", patient, SHAPE, (0.8, 0.8, 2.5), range(1, 14))
        wanted = Wanted(number, labels=numbered(range(1, 14)))
        made.images[f"FLARE22Train/images/{stem}_0000.nii.gz"] = wanted
    scan(made.folder / "Unlabeled/Case_00001_0000.nii.gz", 6, SHAPE, (0.8, 0.8, 2.5))
    made.images["Unlabeled/Case_00001_0000.nii.gz"] = Wanted("00001")
    made.unlabelled = ["Unlabeled/Case_00001_0000.nii.gz"]
    return made


def word(root: Path) -> Published:
    """Folders for training, validation and test; the lists in its description are names of folders."""
    made = Published(root / "WORD-V0.1.0", "word")
    cases = (("Tr", "0002"), ("Tr", "0003"), ("Tr", "0004"), ("Val", "0001"), ("Val", "0018"), ("Ts", "0014"))
    for patient, (subset, number) in enumerate(cases, 1):
        scan(made.folder / f"images{subset}/word_{number}.nii.gz", patient, SHAPE, (0.98, 0.98, 3.0))
        names = frozenset[str]()
        if subset != "Ts":
            place = made.folder / f"labels{subset}/word_{number}.nii.gz"
            labels(place, patient, SHAPE, (0.98, 0.98, 3.0), range(1, 17))
            names = frozenset(WORD)
        made.images[f"images{subset}/word_{number}.nii.gz"] = Wanted(number, labels=names)
    pairs = [(f"imagesTr/word_{number}.nii.gz", f"labelsTr/word_{number}.nii.gz") for _, number in cases[:3]]
    document(
        made.folder / "dataset.json",
        {
            "name": "WORD", "modality": {"0": "CT"}, "labels": {str(v): n for v, n in enumerate(("background", *WORD))},
            "numTraining": 100, "training": listed(pairs), "validation": ["imagesVal", "labelsVal"],
            "testing": ["imagesTs", "unseen"],
        },
    )  # fmt: skip
    made.split = ["--split-file", f"val={made.listed('val', ['word_0001', 'word_0018'])}"]
    made.unlabelled = ["imagesTs/word_0014.nii.gz"]
    return made


def totalsegmentator(root: Path) -> Published:
    """A folder for each subject with a file for each structure; one file is empty, two overlap a little."""
    made = Published(root / "Totalsegmentator_dataset", "totalsegmentator")
    names = ("liver", "rib_left_1", "spleen", "vertebrae_L1")
    for patient, subject in enumerate(("s0000", "s0001", "s0013", "s0287", "s1423"), 1):
        scan(made.folder / subject / "ct.nii.gz", patient, SHAPE, (1.5, 1.5, 1.5))
        drawn = blocks(SHAPE, (1, 2, 3, 4))
        for value, name in enumerate(names, 1):
            mask = (drawn == value) & (name != "rib_left_1" or subject != "s0000")
            if name == "spleen" and subject == "s0001":
                mask |= (drawn == 1) & (np.cumsum(drawn == 1).reshape(SHAPE) <= 3)  # three voxels of the liver
            write(made.folder / subject / f"segmentations/{name}.nii.gz", mask.astype(np.uint8), patient, (1.5,) * 3)
        present = frozenset(names) - ({"rib_left_1"} if subject == "s0000" else set())
        made.images[f"{subject}/ct.nii.gz"] = Wanted(subject, labels=present)
    columns = ("image_id", "age", "gender", "institute", "study_type", "split")
    rows = [(f"s{number:04d}", 60, "m", "A", "ct abdomen", "train") for number in (0, 1, 287, 1423)]
    table(made.folder / "meta.csv", [columns, *rows, ("s0013", 50, "f", "B", "ct thorax", "test")], delimiter=";",
          encoding="utf-8-sig")  # fmt: skip
    made.codes["meta.csv"] = "S_SIDECAR"
    made.split, made.scored = ["--split-file", str(made.folder / "meta.csv")], "test"
    made.settings = ["task.classes={liver: [liver], rib_left_1: [rib_left_1], spleen: [spleen]}"]
    made.unlabelled = ["s0000/ct.nii.gz"]
    return made
