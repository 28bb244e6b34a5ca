"""What a description of a data set declares: which files belong together, and what values mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.formats.dataset_json import DatasetJson, is_description, read_dataset_json
from medssl_cli.formats.layouts import Arrangement, LabelFile, arrange

ROOT = Path("/data/in")
MSD = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}
V2 = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}


def described(tmp_path: Path, document: dict[str, Any], name: str = "dataset.json") -> DatasetJson:
    (tmp_path / name).write_text(json.dumps(document))
    dataset = read_dataset_json(tmp_path / name)
    assert dataset is not None
    return dataset


def arranged(tmp_path: Path, document: dict[str, Any], *names: str) -> Arrangement:
    return arrange([tmp_path / name for name in names], [described(tmp_path, document)], roots=[tmp_path])


def pairs(arrangement: Arrangement, root: Path) -> dict[str, list[str]]:
    return {
        str(label.source.relative_to(root)): [str(image.relative_to(root)) for image in label.images]
        for label in arrangement.labels
    }


WRITTEN = {
    "relative": ("vol/a.nii.gz", "ann/a.nii.gz"),
    "with a dot": ("./vol/a.nii.gz", "./ann/a.nii.gz"),
    "from Windows": (".\\vol\\a.nii.gz", "ann\\a.nii.gz"),
    "of another machine": ("/home/me/vol/a.nii.gz", "D:\\sets\\ann\\a.nii.gz"),
    "without the suffix": ("vol/a", "ann/a"),
    "with another suffix": ("vol/a.nii", "ann/a.nrrd"),
    "with the folder's own name": ("set/vol/a.nii.gz", "set/ann/a.nii.gz"),
    "as lists": (["vol/a.nii.gz"], ["ann/a.nii.gz"]),
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=list(WRITTEN))
def test_a_listed_pair_counts_whatever_its_folders_are_called(tmp_path, written):
    image, label = written
    arrangement = arranged(
        tmp_path, {**MSD, "training": [{"image": image, "label": label}]}, "vol/a.nii.gz", "ann/a.nii.gz"
    )

    assert pairs(arrangement, tmp_path) == {"ann/a.nii.gz": ["vol/a.nii.gz"]}
    assert [(one.modality, one.partners) for one in arrangement.images] == [("CT", ())]
    assert arrangement.labels[0].classes == {1: "liver"}


LISTS = {
    "validation": {**MSD, "validation": [{"image": "v/a.nii", "label": "w/b.nii"}]},
    "nnU-Net 2": {**V2, "dataset": {"case": {"images": ["./v/a.nii"], "label": "./w/b.nii"}}},
    "no classes": {"training": [{"image": "v/a.nii", "label": "w/b.nii"}]},
    "folds, twice the same": {**MSD, "training": [{"fold": n, "image": "v/a.nii", "label": "w/b.nii"} for n in (0, 1)]},
    "an entry that is not there": {
        **MSD,
        "training": [{"image": "v/x.nii", "label": "w/x.nii"}, {"image": "v/a.nii", "label": "w/b.nii"}],
    },
    "other entries": {**MSD, "training": [{"image": "v/a.nii", "label": "w/b.nii"}, 7, None, {"a": 1}], "test": "no"},
}


@pytest.mark.parametrize("document", LISTS.values(), ids=list(LISTS))
def test_every_list_of_a_description_is_read(tmp_path, document):
    arrangement = arranged(tmp_path, document, "v/a.nii", "w/b.nii")

    assert pairs(arrangement, tmp_path) == {"w/b.nii": ["v/a.nii"]}


def test_images_of_the_test_set_are_images_whatever_their_folder_is_called(tmp_path):
    arrangement = arranged(tmp_path, {**MSD, "test": ["./masks/t.nii"]}, "masks/t.nii")

    assert [image.source.name for image in arrangement.images] == ["t.nii"]
    assert arrangement.labels == []


def test_a_case_of_several_channels_is_listed_as_one_image_or_as_each(tmp_path):
    document = {**V2, "channel_names": {"0": "FLAIR", "1": "T1w"}}
    one = {**document, "dataset": {"c": {"images": ["v/c.nii"], "label": "w/c.nii"}}}
    each = {**document, "dataset": {"c": {"images": ["v/c_0000.nii", "v/c_0001.nii"], "label": "w/c.nii"}}}
    files = ("v/c_0000.nii", "v/c_0001.nii", "w/c.nii")

    for listed in (one, each):
        arrangement = arranged(tmp_path, listed, *files)

        assert pairs(arrangement, tmp_path) == {"w/c.nii": ["v/c_0000.nii", "v/c_0001.nii"]}
        assert [(image.modality, image.channel, image.has_siblings) for image in arrangement.images] == [
            ("MR", "flair", True),
            ("MR", "t1", True),
        ]


def test_channels_that_are_listed_under_names_of_their_own_get_their_modality_by_place(tmp_path):
    document = {"modality": {"0": "CT", "1": "PET"}, "training": [{"image": ["a.nii", "b.nii"], "label": "c.nii"}]}

    arrangement = arranged(tmp_path, document, "a.nii", "b.nii", "c.nii")

    assert [(image.modality, image.channel) for image in arrangement.images] == [("CT", "ct"), ("PT", "pet")]


def refused(tmp_path: Path, *entries: dict[str, str]) -> list[LabelFile]:
    return arranged(tmp_path, {**MSD, "training": list(entries)}, "a.nii", "b.nii", "c.nii").labels


def test_a_label_of_two_images_or_that_is_an_image_too_is_refused(tmp_path):
    two = refused(tmp_path, {"image": "a.nii", "label": "c.nii"}, {"image": "b.nii", "label": "c.nii"})
    both = refused(tmp_path, {"image": "a.nii", "label": "b.nii"}, {"image": "b.nii", "label": "c.nii"})

    assert {label.source.name: label.fault for label in two} == {"c.nii": "E_LABEL_AMBIGUOUS"}
    assert {label.source.name: label.fault for label in both} == {"b.nii": "E_LABEL_AMBIGUOUS", "c.nii": ""}


def test_an_image_that_is_listed_as_its_own_label_has_none(tmp_path):
    assert refused(tmp_path, {"image": "a.nii", "label": "a.nii"}) == []


REGIONS = {
    "lists of values": ({"background": 0, "whole": [1, 2, 3], "core": [3, 2]}, {"whole": (1, 2, 3), "core": (2, 3)}),
    "with background": ({"background": 0, "whole": [0, 2, 1]}, {"whole": (1, 2)}),
    "one value is a class": ({"background": 0, "whole": [1, 2], "core": [2]}, {"whole": (1, 2)}),
    "a name for the value too": ({"core": 2, "whole": [1, 2], "same": [2]}, {"whole": (1, 2)}),
    "names of other signs": ({"whole*": [1, 2]}, {"whole": (1, 2)}),
    "none": ({"0": "background", "1": "liver"}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "regions"), REGIONS.values(), ids=list(REGIONS))
def test_regions_keep_their_names_and_values(tmp_path, labels, regions):
    document = {**V2, "labels": labels, "regions_class_order": [1, 2, 3]}

    arrangement = arranged(tmp_path, document, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")

    assert described(tmp_path, document).regions == regions
    assert arrangement.labels[0].regions == regions


def test_a_region_that_cannot_be_told_from_a_class_refuses_the_labels(tmp_path):
    assert described(tmp_path, {**V2, "labels": {"tumour*": 1, "tumour?": [1, 2]}}).fault == "E_NAME_COLLISION"


def test_more_regions_than_a_network_has_outputs_are_no_description(tmp_path):
    (tmp_path / "dataset.json").write_text(
        json.dumps({**V2, "labels": {f"r{number}": [1, 2 + number] for number in range(255)}})
    )

    assert read_dataset_json(tmp_path / "dataset.json") is None


CLASSES = {
    "ignore of nnU-Net 2": ({"background": 0, "liver": 1, "ignore": 2}, {1: "liver"}, 2),
    "ignore by value": ({"0": "background", "1": "liver", "9": "Ignore"}, {1: "liver"}, 9),
    "regions": (
        {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
        {1: "class_1", 2: "class_2", 3: "enhancing"},
        None,
    ),
    "a region of one value": ({"background": 0, "all": [1, 4], "enhancing": [4]}, {1: "class_1", 4: "enhancing"}, None),
    "with gaps": ({"0": "background", "205": "myocardium", "850": "artery"}, {205: "myocardium", 850: "artery"}, None),
    "no background": ({"1": "右肺"}, {1: "右肺"}, None),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "classes", "ignore"), CLASSES.values(), ids=list(CLASSES))
def test_what_values_mean(tmp_path, labels, classes, ignore):
    dataset = described(tmp_path, {"modality": {"0": "CT"}, "labels": labels})

    assert (dataset.classes, dataset.ignore, dataset.fault) == (classes, ignore, "")


def test_names_that_become_equal_refuse_the_labels_and_not_the_images(tmp_path):
    document = {**MSD, "labels": {"0": "background", "1": "left*", "2": "left?"}}

    arrangement = arranged(tmp_path, document, "images/a.nii", "labels/a.nii")

    assert [image.modality for image in arrangement.images] == ["CT"]
    assert [label.fault for label in arrangement.labels] == ["E_NAME_COLLISION"]


@pytest.mark.parametrize("key", ["", "CT", "00"])
def test_the_key_of_the_only_modality_may_be_anything(tmp_path, key):
    assert described(tmp_path, {**MSD, "modality": {key: "CT"}}).modalities == {0: "CT"}


def test_channels_that_are_counted_from_1_say_nothing_about_files_that_are_counted_from_0(tmp_path):
    document = {**V2, "channel_names": {"1": "FLAIR", "2": "T1w"}}

    images = arranged(tmp_path, document, "imagesTr/a_0000.nii", "imagesTr/a_0001.nii").images

    assert [image.channel for image in images] == ["c0", "c1"]


def test_amos_declares_ct_and_holds_mr_from_number_501_on(tmp_path):
    files = [f"imagesTr/amos_{number}.nii.gz" for number in ("0001", "0500", "0507")]

    arrangement = arranged(tmp_path, {**MSD, "name": "AMOS"}, *files)

    assert [image.modality for image in arrangement.images] == ["CT", "CT", "MR"]


def test_a_4d_file_has_the_channels_that_are_declared(tmp_path):
    four = {**MSD, "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}

    [image] = arranged(tmp_path, four, "imagesTr/BRATS_001.nii.gz").images
    [single] = arranged(tmp_path, MSD, "imagesTr/spleen_2.nii.gz").images

    assert image.parts == (("MR", "flair"), ("MR", "t1"), ("MR", "t1ce"), ("MR", "t2"))
    assert single.parts == ()


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("dataset.json", True), ("dataset_0.json", True), ("Dataset-fold1.json", True), ("datalist.json", True),
     ("dataset_description.json", True), ("mydataset.json", False), ("dataset.csv", False), ("data.json", False)],
)  # fmt: skip
def test_names_of_descriptions(name, is_one):
    assert is_description(name) is is_one


def test_of_two_descriptions_in_a_folder_both_lists_count_and_classes_of_the_one_that_has_any(tmp_path):
    first = described(tmp_path, {"training": [{"image": "a.nii", "label": "b.nii"}]}, "dataset.json")
    second = described(tmp_path, {**MSD, "training": [{"image": "c.nii", "label": "d.nii"}]}, "dataset_1.json")

    arrangement = arrange([tmp_path / f"{name}.nii" for name in "abcd"], [first, second], roots=[tmp_path])

    assert pairs(arrangement, tmp_path) == {"b.nii": ["a.nii"], "d.nii": ["c.nii"]}
    assert [image.modality for image in arrangement.images] == ["CT", "CT"]


def test_nnunet_1_has_channels_where_there_is_a_file_for_each(tmp_path):
    two = {**MSD, "modality": {"0": "T1", "1": "T2"}}

    channels = arranged(tmp_path, two, "imagesTs/a_0000.nii", "imagesTs/a_0001.nii").images
    numbers = arranged(tmp_path, two, "imagesTs/a_0001.nii", "imagesTs/a_0002.nii").images

    assert [(image.stem, image.channel, image.has_siblings) for image in channels] == [
        ("a", "t1", True),
        ("a", "t2", True),
    ]
    assert [(image.stem, image.channel) for image in numbers] == [("a_0001", None), ("a_0002", None)]
