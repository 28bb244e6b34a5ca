"""Which file is an image, which is a label, and which belong together."""

import json
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from medssl_cli.formats.discover import discover
from medssl_cli.formats.layouts import Arrangement, DatasetJson, arrange, read_dataset_json
from medssl_cli.formats.name_words import are_channels, known_modality, modality_of_stem
from medssl_cli.formats.patients import patients_of
from medssl_cli.formats.source import Member, Source
from tests.zip_factory import Raw, zip_bytes

ROOT = Path("/home/labels/data")


def pairs(arrangement: Arrangement) -> dict[str, list[str]]:
    return {
        str(label.source.relative_to(ROOT)): [str(image.relative_to(ROOT)) for image in label.images]
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
        (REGIONS, {1: "class_1", 2: "core"}, {0: "MR"}, True),
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


def test_the_files_of_a_data_set_inside_an_archive_are_arranged_as_in_a_folder(tmp_path):
    names = ["imagesTr/case_7_0000.nii.gz", "labelsTr/case_7.nii.gz", "dataset.json"]
    contents = [b"", b"", json.dumps(NNUNET_2).encode()]
    archive = tmp_path / "Dataset001.zip"
    archive.write_bytes(zip_bytes(*map(Raw, [b"d/" + name.encode() for name in names], contents)))
    sources = [found.source for found in discover([archive])]
    dataset = read_dataset_json(sources[2])
    assert dataset is not None

    arrangement = arrange(sources[:2], [dataset], roots=[archive])

    assert [(image.source, image.stem, image.modality) for image in arrangement.images] == [
        (sources[0], "case_7", "CT")
    ]
    assert [(label.source, label.images, label.classes) for label in arrangement.labels] == [
        (sources[1], (sources[0],), {1: "kidney"})
    ]


def test_members_of_one_name_are_all_arranged():
    sources = [Member(ROOT / "a.zip", index, PurePosixPath("images/a.nii")) for index in range(3)]

    assert [image.source for image in arrange(sources, roots=[ROOT]).images] == sources


@pytest.mark.parametrize("folder", ["masks", "Masks", "segmentations", "segmentation", "label"])
def test_other_words_for_a_folder_of_labels(folder):
    assert pairs(arranged("images/a.png", f"{folder}/a.png")) == {f"{folder}/a.png": ["images/a.png"]}


def test_image_and_label_may_differ_in_format():
    arrangement = arranged("images/a.nii.gz", "images/b.nrrd", "labels/a.nrrd", "labels/b.seg.nrrd")

    assert pairs(arrangement) == {"labels/a.nrrd": ["images/a.nii.gz"], "labels/b.seg.nrrd": ["images/b.nrrd"]}


BESIDE = {
    "suffix": (["p1/a.nii", "p1/a_mask.nii"], {"p1/a_mask.nii": ["p1/a.nii"]}),
    "minus": (["p1/a.nrrd", "p1/a-label.nrrd"], {"p1/a-label.nrrd": ["p1/a.nrrd"]}),
    "image-suffix": (["a_image.nrrd", "a_label.nrrd"], {"a_label.nrrd": ["a_image.nrrd"]}),
    "gt": (["f01.nii.gz", "f01_gt.nii.gz"], {"f01_gt.nii.gz": ["f01.nii.gz"]}),
    "two-pairs": (
        ["PET_image.nii", "PET_mask.nii", "MR_T1_image.nii", "MR_T1_mask.nii"],
        {"PET_mask.nii": ["PET_image.nii"], "MR_T1_mask.nii": ["MR_T1_image.nii"]},
    ),
    "channels": (
        ["b1_t1.nii", "b1_t1ce.nii", "b1_flair.nii", "b1_seg.nii"],
        {"b1_seg.nii": ["b1_t1.nii", "b1_t1ce.nii", "b1_flair.nii"]},
    ),
    "named-for-itself": (["case1/imaging.nii.gz", "case1/segmentation.nii.gz"], {
        "case1/segmentation.nii.gz": ["case1/imaging.nii.gz"]
    }),
    "first-word": (["volume-7.nii", "segmentation-7.nii"], {"segmentation-7.nii": ["volume-7.nii"]}),
    "inner-word": (["x_seg_ct.nii", "x_ct.nii", "y_ct.nii"], {"x_seg_ct.nii": ["x_ct.nii"]}),
    "inner-word-fewer": (["x_seg_mr.nii", "x_mr_small.nii"], {"x_seg_mr.nii": ["x_mr_small.nii"]}),
    "inner-word-two": (["x_seg_mr.nii", "x_mr_1.nii", "x_mr_2.nii"], {}),
    "slicer": (["a.nrrd", "a.seg.nrrd"], {"a.seg.nrrd": ["a.nrrd"]}),
    "other-case": (["A.nii", "a_Mask.nii"], {"a_Mask.nii": ["A.nii"]}),
    "no-image": (["p1/b.nii", "p1/a_seg.nii"], {"p1/a_seg.nii": []}),
    "several-images": (["p1/b.nii", "p1/a.nii", "p1/mask.nii"], {"p1/mask.nii": []}),
    "other-folder": (["p1/a.nii", "p2/a_mask.nii"], {"p2/a_mask.nii": []}),
    "in-images": (["images/a.nii", "images/a_mask.nii"], {"images/a_mask.nii": ["images/a.nii"]}),
    "not-a-mask": (["a.nii", "a_masked.nii", "unmasked.nii", "a_gt7.nii", "b_gt.nii"], {}),
    "label-of-label": (["a.nii", "a_mask.nii", "a_mask_seg.nii"], {"a_mask.nii": ["a.nii"], "a_mask_seg.nii": []}),
}  # fmt: skip


@pytest.mark.parametrize("case", BESIDE)
def test_label_maps_beside_their_image(case):
    names, expected = BESIDE[case]
    arrangement = arranged(*names)
    found = {label: sorted(images) for label, images in pairs(arrangement).items()}

    assert found == {label: sorted(images) for label, images in expected.items()}
    assert len(arrangement.images) + len(arrangement.labels) == len(names)


def test_an_image_folder_with_labels_elsewhere_keeps_names_that_look_like_masks():
    arrangement = arranged("images/a_mask.nii", "labels/a_mask.nii")

    assert pairs(arrangement) == {"labels/a_mask.nii": ["images/a_mask.nii"]}


def test_one_file_per_organ():
    organs = ["s1/segmentations/liver.nii.gz", "s1/segmentations/kidney_left.nii.gz"]
    arrangement = arranged(
        "s1/ct.nii.gz", *organs, "s2/mri.nii.gz", "s2/notes.nii.gz", "s2/segmentations/spleen.nii.gz"
    )

    assert [(label.images, label.class_name) for label in arrangement.labels] == [
        ((ROOT / "s1/ct.nii.gz",), "liver"),
        ((ROOT / "s1/ct.nii.gz",), "kidney_left"),
        ((ROOT / "s2/mri.nii.gz",), "spleen"),
    ]
    assert [image.modality for image in arrangement.images] == ["CT", "MR", None]


def test_organs_without_an_image_or_of_several_have_none():
    arrangement = arranged("s1/segmentations/liver.nii", "s2/a.nii", "s2/b.nii", "s2/segmentations/liver.nii")

    assert [(label.images, label.class_name) for label in arrangement.labels] == [((), None), ((), None)]


@pytest.mark.parametrize(
    ("stem", "modality"),
    [("ct", "CT"), ("PET_image", "PT"), ("MR_T1_image", "MR"), ("t2-flair", "MR"), ("pet_ct", None), ("ct_1", None),
     ("image", None), ("", None)],
)  # fmt: skip
def test_a_name_states_a_modality_only_if_it_states_nothing_else(stem, modality):
    assert modality_of_stem(stem) == modality


def test_many_files_in_one_folder_take_time_in_proportion(monkeypatch):
    """Names are looked up; a search per mask would compare 10^8 pairs here."""
    names = [f"{index}{suffix}.png" for index in range(10_000) for suffix in ("", "_mask")]

    arrangement = arranged(*names)

    assert len(arrangement.images) == len(arrangement.labels) == 10_000
    assert all(len(label.images) == 1 for label in arrangement.labels)


def test_every_file_ends_in_one_place_whatever_the_names_are():
    """Folders and names of all layouts at once, mixed at random, in folders and archives."""
    rng = np.random.default_rng(0)
    folders = [
        "images",
        "labelsTr",
        "imagesTr",
        "masks",
        "segmentations",
        "sub-1",
        "ses-1",
        "anat",
        "derivatives",
        "p1",
    ]
    words = [
        "a",
        "mask",
        "seg",
        "gt",
        "t1",
        "ct",
        "sub-1",
        "ses-1",
        "T1w",
        "dseg",
        "probseg",
        "0000",
        "",
        "image",
        "\udcff",
    ]
    suffixes = [".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".png", ""]
    sources: list[Source] = []
    for index in range(3000):
        name = "_".join(rng.choice(words, rng.integers(1, 4))) + str(rng.choice(suffixes)) or "x"
        place = PurePosixPath(*rng.choice(folders, rng.integers(0, 5)), name)
        if index % 10 == 0:
            place = PurePosixPath(rng.choice(["derivatives/x", "ds", ""]), "sub-1/anat", f"sub-1_{name}")
        sources.append(ROOT / place if rng.random() < 0.7 else Member(ROOT / "a.zip", index, place))
    sources = list(dict.fromkeys(sources))
    dataset = DatasetJson(ROOT, {1: "a"}, {0: "CT"}, has_channels=True)
    arrangement = arrange(sources, [dataset], roots=[ROOT, ROOT / "p1"])

    images = [image.source for image in arrangement.images]
    placed = [*images, *(label.source for label in arrangement.labels), *(source for source, _ in arrangement.skipped)]
    assert Counter(placed) == Counter(sources)
    assert all(set(label.images) <= set(images) for label in arrangement.labels)
    assert min(len(images), len(arrangement.labels), len(arrangement.skipped)) > 10


def test_many_inputs_take_time_in_proportion():
    names = [ROOT / f"{index}.nii" for index in range(10_000)]

    arrangement = arrange(names, roots=names)

    assert len(patients_of(arrangement.images, names)) == 10_000


REAL = {
    "sts_seg": (20, 20, {"PT": 17, "MR": 3}),
    "totalsegmentator": (1, 1, {None: 1}),
    "pyradiomics": (1, 1, {None: 1}),
    "hippocampus": (180, 180, {None: 180}),
    "acdc": (144, 144, {None: 144}),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_real_folders(shared_data, name):
    num_images, num_labels, modalities = REAL[name]
    root = shared_data / name
    found = list(discover([root]))
    sources = [entry.source for entry in found if entry.kind in ("nifti", "nrrd")]
    arrangement = arrange(sources, roots=[root])

    assert (len(arrangement.images), len(arrangement.labels)) == (num_images, num_labels)
    assert Counter(image.modality for image in arrangement.images) == modalities
    assert all(len(label.images) == 1 for label in arrangement.labels)
    assert len({label.images for label in arrangement.labels}) == num_labels


def test_a_truth_without_an_image_may_be_one_and_beside_an_image_labels_it(tmp_path: Path) -> None:
    alone = arrange([tmp_path / "001_ground_truth.nii.gz", tmp_path / "001_reoriented_gt.nii.gz"], roots=[tmp_path])
    paired = arrange([tmp_path / "002.nii.gz", tmp_path / "002_ground_truth.nii.gz"], roots=[tmp_path])
    names = ("003_ground_truth_reoriented", "003_implicit_ground_truth", "003_implicit_ground_truth_reoriented")
    results = arrange([tmp_path / f"{name}.nii.gz" for name in names], roots=[tmp_path])

    assert (len(results.images), len(results.labels)) == (3, 0)
    assert (len(alone.images), len(alone.labels)) == (2, 0)
    assert [label.images for label in paired.labels] == [(tmp_path / "002.nii.gz",)]


def test_images_named_after_their_case_and_channel_share_the_label_of_the_case():
    arrangement = arranged("imagesTr/CHUM-001__CT.nii.gz", "imagesTr/CHUM-001__PT.nii.gz", "labelsTr/CHUM-001.nii.gz")

    assert pairs(arrangement) == {
        "labelsTr/CHUM-001.nii.gz": ["imagesTr/CHUM-001__CT.nii.gz", "imagesTr/CHUM-001__PT.nii.gz"]
    }
    assert [(image.stem, image.modality, image.channel) for image in arrangement.images] == [
        ("CHUM-001", "CT", "ct"),
        ("CHUM-001", "PT", "pet"),
    ]


def test_an_image_whose_last_word_is_a_channel_keeps_a_label_of_its_whole_name():
    arrangement = arranged("images/p1_t1.nii.gz", "labels/p1_t1.nii.gz", "labels/p1.nii.gz")

    assert pairs(arrangement) == {"labels/p1_t1.nii.gz": ["images/p1_t1.nii.gz"], "labels/p1.nii.gz": []}


@pytest.mark.parametrize("name", ["GT", "truth", "p1_msk"])
def test_short_words_for_a_label_beside_its_image(name):
    assert pairs(arranged("p1/p1.nii.gz", f"p1/{name}.nii.gz")) == {f"p1/{name}.nii.gz": ["p1/p1.nii.gz"]}


@pytest.mark.parametrize(
    ("stems", "expected"),
    [
        (("T1", "FLAIR"), True),
        (("CHGJ007_ct", "chgj007_pt"), True),
        (("p1_t1", "p2_t1"), False),
        (("t1", "scan"), False),
    ],
)
def test_channels_of_one_case(stems, expected):
    assert are_channels(stems) is expected
