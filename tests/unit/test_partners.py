"""Which files may belong together by their places: label folders of other names, partners, numbers in a row."""

from pathlib import Path

import pytest

from medssl_cli.formats.layouts import arrange
from medssl_cli.formats.name_words import folder_role
from medssl_cli.formats.partners import numbered

ROOT = Path("/home/labels/data")

FOLDERS = {
    "labels": ("*", True), "labelsTr": ("*tr", True), "imagesTr": ("*tr", False), "imagesVa": ("*va", False),
    "img": ("*", False), "gt": ("*", True), "GT": ("*", True), "groundtruth": ("*", True), "ground_truth": ("*", True),
    "Ground-Truth": ("*", True), "annotations": ("*", True), "contours": ("*", True), "truth": ("*", True),
    "train_images": ("train_*", False), "train_masks": ("train_*", True), "images_test": ("*_test", False),
    "averaged-training-labels": ("averaged_training_*", True), "image_masks": ("image_*", True),
    "label_free_images": ("label_free_*", False), "scans": None, "masked": None, "segmented": None, "Bilder": None,
}  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), FOLDERS.items(), ids=list(FOLDERS))
def test_what_the_name_of_a_folder_says(name, expected):
    role = folder_role(name)

    assert (None if role is None else (role.key, role.is_label)) == expected


def test_a_long_name_of_a_project_says_nothing_about_all_that_lies_in_it():
    near = arrange([ROOT / "mask_study/a.nii"], roots=[ROOT])
    far = arrange([ROOT / "mask_study/site/p1/ct/a.nii"], roots=[ROOT])

    assert (len(near.labels), len(far.images)) == (1, 1)


def found(*names: str) -> dict[str, list[str] | str]:
    arrangement = arrange([ROOT / name for name in names], roots=[ROOT])
    return {
        str(label.source.relative_to(ROOT)): label.fault or [str(one.relative_to(ROOT)) for one in label.images]
        for label in arrangement.labels
    }


PAIRS = {
    "other folder of images": (["data/p1.nii", "gt/p1.nii"], {"gt/p1.nii": ["data/p1.nii"]}),
    "images above": (["p1.nii", "annotations/p1.nii"], {"annotations/p1.nii": ["p1.nii"]}),
    "in each patient's folder": (
        ["a/vol/x.nii", "a/seg/x.nii", "b/vol/x.nii", "b/seg/x.nii"],
        {"a/seg/x.nii": ["a/vol/x.nii"], "b/seg/x.nii": ["b/vol/x.nii"]},
    ),
    "BTCV": (["img/img0001.nii", "label/label0001.nii"], {"label/label0001.nii": ["img/img0001.nii"]}),
    "LiTS in folders": (
        ["images/volume-2.nii", "images/volume-20.nii", "labels/segmentation-2.nii"],
        {"labels/segmentation-2.nii": ["images/volume-2.nii"]},
    ),
    "MM-WHS in folders": (
        ["ct_train/images/ct_train_1001_image.nii", "ct_train/labels/ct_train_1001_label.nii"],
        {"ct_train/labels/ct_train_1001_label.nii": ["ct_train/images/ct_train_1001_image.nii"]},
    ),
    "folders of channels": (
        ["t1/p1.nii", "flair/p1.nii", "masks/p1.nii"], {"masks/p1.nii": ["t1/p1.nii", "flair/p1.nii"]},
    ),
    "two folders": (["old/p1.png", "new/p1.png", "masks/p1.png"], {"masks/p1.png": "E_LABEL_AMBIGUOUS"}),
    "two names": (["img/img1.nii", "img/scan1.nii", "label/label1.nii"], {"label/label1.nii": "E_LABEL_AMBIGUOUS"}),
    "exact before a word": (
        ["images/1.nii", "images/img1.nii", "labels/1.nii"], {"labels/1.nii": ["images/1.nii"]},
    ),
    "nothing": (["data/p1.nii", "gt/p2.nii"], {"gt/p2.nii": []}),
    "of another patient": (["p1/vol/x.nii", "p2/seg/x.nii"], {"p2/seg/x.nii": []}),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS.values(), ids=list(PAIRS))
def test_folders_of_labels_find_their_images(case):
    names, expected = case

    assert found(*names) == expected


def partners(*names: str) -> dict[str, list[str]]:
    arrangement = arrange([ROOT / name for name in names], roots=[ROOT])
    return {
        str(image.source.relative_to(ROOT)): sorted(str(one.relative_to(ROOT)) for one in image.partners)
        for image in arrangement.images
        if image.partners
    }


PARTNERS = {
    "folders side by side": (["Bilder/a.nii", "Masken/a.nii"], {
        "Bilder/a.nii": ["Masken/a.nii"], "Masken/a.nii": ["Bilder/a.nii"],
    }),
    "a word more": (["p1.nii", "p1_lesion.nii"], {"p1_lesion.nii": ["p1.nii"]}),
    "a word instead of another": (["p1_ct.nii", "p1_lesion.nii"], {"p1_lesion.nii": ["p1_ct.nii"]}),
    "a word in front": (["lesion_7.nii", "7.nii"], {"lesion_7.nii": ["7.nii"]}),
    "words only": (["p1/ct.nii", "p1/lesion.nii"], {"p1/lesion.nii": ["p1/ct.nii"]}),
    "patients": ([f"p{n}/ct.nii" for n in range(30)], {}),
    "patients by their names": ([f"{name}/ct.nii" for name in ("ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal",
                                                              "ida")], {}),
    "training and test": (["train/1.png", "test/1.png"], {}),
    "numbers": (["case_1.nii", "case_2.nii"], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTNERS.values(), ids=list(PARTNERS))
def test_files_that_may_be_label_maps_of_others(case):
    names, expected = case

    assert partners(*names) == expected


def test_many_files_have_their_partners_in_time_in_proportion():
    names = [f"{folder}/{number}.png" for number in range(20_000) for folder in ("Bilder", "Masken")]

    assert len(partners(*names)) == 40_000


ROWS = {
    "slices": (["0000", "0001", "0002", "0003", "0004", "0005", "0006", "0007"], 8),
    "with a gap": ([f"IM{number}" for number in (1, 2, 3, 4, 6, 7, 8, 9)], 8),
    "too few": (["1", "2", "3"], 0),
    "far apart": ([str(number) for number in range(0, 800, 100)], 0),
    "several numbers": ([f"p{number}_0" for number in range(20)], 0),
}


@pytest.mark.parametrize(("stems", "number"), ROWS.values(), ids=list(ROWS))
def test_files_that_are_numbered_as_slices(stems, number):
    assert len(numbered((ROOT / stem, ("folder",), stem) for stem in stems)) == number
