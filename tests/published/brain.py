"""Brain tumours on four channels of MR: the same tumours in four layouts, each with an order and values of its own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.published.abdomen import decathlon, numbered
from tests.published.files import Published, Shape, Wanted, blocks, body, document, shipped_split, table, volumes, write

SHAPE: Shape = (32, 32, 16)
SPACING = (1.0, 1.0, 1.0)
CHANNELS = ("flair", "t1", "t1ce", "t2")
EDEMA, NECROSIS, ENHANCING = 1, 2, 3
"""Parts of a tumour, by the values of Task01."""


def head(patient: int) -> dict[str, NDArray[np.int16]]:
    """The four channels of a patient, 0 outside of the head."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    size = np.array(SHAPE)[:, None, None, None]
    is_inside = np.linalg.norm((grid - size / 2 + 0.5) / size, axis=0) < 0.49
    channels = {name: body(patient, SHAPE, 100, 900, channel=index) for index, name in enumerate(CHANNELS)}
    return {name: np.where(is_inside, voxels, 0).astype(np.int16) for name, voxels in channels.items()}


def tumour(patient: int) -> NDArray[np.int64]:
    """Its parts by the values of Task01; that of patient 2 does not enhance."""
    return blocks(SHAPE, (EDEMA, NECROSIS) if patient == 2 else (EDEMA, NECROSIS, ENHANCING))


def _parts(patient: int, edema: str, necrosis: str, enhancing: str) -> frozenset[str]:
    return frozenset((edema, necrosis) if patient == 2 else (edema, necrosis, enhancing))


def msd_brain(root: Path) -> Published:
    """Task01: one file of four images for each patient, whose names and order its description gives."""
    made = Published(root / "Task01_BrainTumour", "msd-brain")
    stems = [f"BRATS_{number:03d}" for number in (1, 2, 3, 4, 5)]
    for patient, stem in enumerate(stems, 1):
        images = [voxels.astype(np.float32) for voxels in head(patient).values()]
        volumes(made.folder / f"imagesTr/{stem}.nii.gz", images, patient, SPACING)
        write(made.folder / f"labelsTr/{stem}.nii.gz", tumour(patient).astype(np.uint8), patient, SPACING)
        names = _parts(patient, "edema", "non-enhancing tumor", "enhancing tumour")
        made.images[f"imagesTr/{stem}.nii.gz"] = Wanted(stem, "MR", names, "flair t1 t1ce t2")
    volumes(made.folder / "imagesTs/BRATS_485.nii.gz", [*head(6).values()], 6, SPACING)
    made.images["imagesTs/BRATS_485.nii.gz"] = Wanted("485", "MR", channel="flair t1 t1ce t2")
    classes = {EDEMA: "edema", NECROSIS: "non-enhancing tumor", ENHANCING: "enhancing tumour"}
    channels = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    decathlon(made.folder, classes, stems, "BRATS_485", channels)
    made.split = ["--split-file", f"val={made.listed('val', stems[-1:])}"]
    made.unlabelled = ["imagesTs/BRATS_485.nii.gz", "dataset.json"]
    return made


def _beside(made: Published, cases: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """Channels by their words beside a label map of the values 1, 2 and 4, where 3 does not occur."""
    values = {EDEMA: 2, NECROSIS: 1, ENHANCING: 4}
    for patient, (case, person) in enumerate(cases.items(), 1):
        name = case.rpartition("/")[2]
        for word, voxels in head(patient).items():
            write(made.folder / case / f"{name}_{word}.nii.gz", voxels, patient, SPACING)
            wanted = Wanted(person, "MR", numbered((1, 2) if patient == 2 else (1, 2, 4)), word)
            made.images[f"{case}/{name}_{word}.nii.gz"] = wanted
        drawn = np.choose(tumour(patient), (0, *(values[part] for part in (EDEMA, NECROSIS, ENHANCING))))
        write(made.folder / case / f"{name}_seg.nii.gz", drawn.astype(np.uint8), patient, SPACING)
        yield patient, case, name


def brats21(root: Path) -> Published:
    """Folders of cases, the list of folds that others publish beside them, and one case that has lost its T2."""
    made = Published(root / "BraTS2021_Training_Data", "brats21", split=shipped_split("brats21"))
    numbers = ("00000", "00002", "00005", "00006", "00008")
    cases = {f"BraTS2021_{number}": number for number in numbers}
    entries = [
        {
            "fold": patient % 5,
            "image": [f"{case}/{name}_{word}.nii.gz" for word in ("flair", "t1ce", "t1", "t2")],
            "label": f"{case}/{name}_seg.nii.gz",
        }
        for patient, case, name in _beside(made, cases)
    ]
    document(made.folder / "brats21_folds.json", {"training": entries})
    made.codes["brats21_folds.json"] = "S_SIDECAR"
    for word, voxels in head(6).items():
        if word != "t2":
            write(made.folder / f"BraTS2021_00009/BraTS2021_00009_{word}.nii.gz", voxels, 6, SPACING)
            made.images[f"BraTS2021_00009/BraTS2021_00009_{word}.nii.gz"] = Wanted("00009", "MR", channel=word)
    made.unlabelled = ["BraTS2021_00000"]
    return made


def brats18(root: Path) -> Published:
    """Tumours of high and low grade in folders of their own; two scans of one patient; a table of survival."""
    made = Published(root / "MICCAI_BraTS_2018_Data_Training", "brats18", scored="test")
    cases = {
        "HGG/Brats18_CBICA_AAB_1": "aab", "HGG/Brats18_TCIA01_131_1": "131", "HGG/Brats18_TCIA01_131_2": "131",
        "HGG/Brats18_CBICA_AAG_1": "aag", "LGG/Brats18_2013_0_1": "2013_0", "LGG/Brats18_TCIA09_141_1": "141",
    }  # fmt: skip
    assert len(list(_beside(made, cases))) == len(cases)
    table(
        made.folder / "survival_data.csv",
        [
            ("Brats18ID", "Age", "Survival", "ResectionStatus"), ("Brats18_CBICA_AAB_1", 60.46, 289, "GTR"),
            ("Brats18_TCIA01_131_1", 63.2, 88, "NA"),
        ],
    )  # fmt: skip
    made.codes["survival_data.csv"] = "S_SIDECAR"
    made.unlabelled = ["HGG/Brats18_CBICA_AAB_1/Brats18_CBICA_AAB_1_flair.nii.gz"]
    return made


def nnunet_brats(root: Path) -> Published:
    """nnU-Net's raw layout of BraTS 2021: numbered channels in an order of its own, regions as lists of values."""
    made = Published(root / "Dataset137_BraTS2021", "brats21")
    order = ("t1", "t1ce", "t2", "flair")
    for patient, number in enumerate(("00000", "00002", "00005", "00006", "00008"), 1):
        stem = f"BraTS2021_{number}"
        channels = head(patient)
        for index, word in enumerate(order):
            write(made.folder / f"imagesTr/{stem}_{index:04d}.nii.gz", channels[word], patient, SPACING)
            names = _parts(patient, "class_1", "class_2", "enhancing tumor")
            made.images[f"imagesTr/{stem}_{index:04d}.nii.gz"] = Wanted(number, "MR", names, word)
        write(made.folder / f"labelsTr/{stem}.nii.gz", tumour(patient).astype(np.uint8), patient, SPACING)
    document(
        made.folder / "dataset.json",
        {
            "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}, "file_ending": ".nii.gz",
            "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
            "regions_class_order": [1, 2, 3], "numTraining": 5,
        },
    )  # fmt: skip
    made.settings = [
        "task.classes={whole_tumour: [class_1, class_2, enhancing tumor], "
        "tumour_core: [class_2, enhancing tumor], enhancing_tumour: [enhancing tumor]}"
    ]
    return made
