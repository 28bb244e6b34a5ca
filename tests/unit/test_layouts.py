"""Which file is an image, which is a label, and which belong together."""

import json
from pathlib import Path

import pytest

from medssl_cli.formats.layouts import Arrangement, arrange, known_modality, read_dataset_json

ROOT = Path("/home/labels/data")


def pairs(arrangement: Arrangement) -> dict[str, list[str]]:
    return {
        str(label.path.relative_to(ROOT)): [str(image.relative_to(ROOT)) for image in label.images]
        for label in arrangement.labels
    }


def arranged(*names: str, datasets=()) -> Arrangement:
    return arrange([ROOT / name for name in names], datasets, roots=[ROOT])


def test_a_label_belongs_to_the_image_of_the_same_name():
    arrangement = arranged("images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz", "labels/c.nii.gz")

    assert pairs(arrangement) == {"labels/a.nii.gz": ["images/a.nii.gz"], "labels/c.nii.gz": []}
    assert [image.stem for image in arrangement.images] == ["a", "b"]


def test_subsets_subfolders_and_compression_are_matched():
    arrangement = arranged(
        "imagesTr/site1/a.nii.gz", "imagesTs/site1/a.nii.gz", "labelsTr/site1/a.nii", "imagesTr/site2/a.nii.gz"
    )

    assert pairs(arrangement) == {"labelsTr/site1/a.nii": ["imagesTr/site1/a.nii.gz"]}


def test_folders_above_the_input_do_not_count():
    assert arranged("a.nii.gz").labels == []
    assert len(arranged("a.nii.gz").images) == 1


def test_two_inputs_called_images_and_labels_are_a_pair():
    image, label = ROOT / "images/a.nii", ROOT / "labels/a.nii"

    by_folder = arrange([image, label], roots=[image.parent, label.parent])
    by_file = arrange([image, label], roots=[image, label])

    assert pairs(by_folder) == pairs(by_file) == {"labels/a.nii": ["images/a.nii"]}


def test_a_name_that_ends_in_four_digits_is_a_channel_only_if_a_label_or_a_declaration_says_so():
    plain = arranged("images/liver_0001.nii", "images/liver_0002.nii", "labels/liver_0001.nii", "labels/liver_0002.nii")
    channels = arranged("imagesTr/p1_0000.nii", "imagesTr/p1_0001.nii", "labelsTr/p1.nii")

    assert [image.stem for image in plain.images] == ["liver_0001", "liver_0002"]
    assert pairs(plain)["labels/liver_0002.nii"] == ["images/liver_0002.nii"]
    assert [image.stem for image in channels.images] == ["p1", "p1"]
    assert pairs(channels) == {"labelsTr/p1.nii": ["imagesTr/p1_0000.nii", "imagesTr/p1_0001.nii"]}


MSD = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}, "training": []}
NNUNET_1 = {"modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "edema"}}
NNUNET_2 = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "kidney": 1}, "file_ending": ".nii.gz"}
REGIONS = {"channel_names": {"0": "T2"}, "labels": {"background": 0, "whole": [1, 2], "core": 2}}


@pytest.mark.parametrize(
    ("document", "classes", "modalities", "has_channels"),
    [
        (MSD, {1: "Anterior", 2: "Posterior"}, {0: "MR"}, False),
        (NNUNET_1, {1: "edema"}, {0: "MR", 1: "MR"}, False),
        (NNUNET_2, {1: "kidney"}, {0: "CT"}, True),
        (REGIONS, {2: "core"}, {0: "MR"}, True),
    ],
)
def test_dataset_json_of_each_kind(tmp_path, document, classes, modalities, has_channels):
    (tmp_path / "dataset.json").write_text(json.dumps(document))

    dataset = read_dataset_json(tmp_path / "dataset.json")

    assert dataset is not None
    assert (dataset.classes, dataset.modalities, dataset.has_channels) == (classes, modalities, has_channels)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"labels": []}', '{"labels": {"a": "b"}}', "[" * 100_000])
def test_a_json_that_describes_no_data_set_is_none(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)

    assert read_dataset_json(tmp_path / "dataset.json") is None


def test_the_nearest_dataset_json_names_classes_and_modality(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps(NNUNET_2))
    dataset = read_dataset_json(tmp_path / "dataset.json")
    assert dataset is not None
    names = ["imagesTr/case_7_0000.nii.gz", "imagesTs/case_9_0000.nii.gz", "labelsTr/case_7.nii.gz"]

    arrangement = arrange([tmp_path / name for name in names], [dataset], roots=[tmp_path])

    assert [(image.stem, image.modality) for image in arrangement.images] == [("case_7", "CT"), ("case_9", "CT")]
    assert [(label.images, label.classes) for label in arrangement.labels] == [((tmp_path / names[0],), {1: "kidney"})]


def test_a_class_name_cannot_smuggle_anything(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "bg", "1": "left\natrium<script>" + "x" * 99}}))

    dataset = read_dataset_json(tmp_path / "dataset.json")

    assert dataset is not None
    assert dataset.classes[1].startswith("leftatriumscriptxxx")
    assert len(dataset.classes[1]) == 64


@pytest.mark.parametrize(
    ("name", "modality"),
    [("CT", "CT"), ("MRI", "MR"), ("cineMRI", "MR"), ("T1-weighted", "MR"), ("PET", "PT"), ("noNormalization", "")],
)
def test_modality_words(name, modality):
    assert known_modality(name) == modality
