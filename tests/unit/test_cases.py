"""Which images are channels of one case, and which case that is: by names and folders alone."""

import itertools
import json
import random
from pathlib import Path

import pytest

from medssl_cli.formats.layouts import Arrangement, arrange, read_dataset_json
from medssl_cli.formats.name_words import CHANNELS, channel_word, is_channel_word, is_listed_channel, same_channel

ROOT = Path("/home/me/data")
WORDS = ("flair", "t1", "t1ce", "t2")


def arranged(*names: str, datasets=()) -> Arrangement:
    return arrange([ROOT / name for name in names], datasets, roots=[ROOT])


def cases(arrangement: Arrangement) -> dict[str | None, set[str | None]]:
    """Channels of each case that has several."""
    found: dict[str | None, set[str | None]] = {}
    for image in arrangement.images:
        found.setdefault(image.example, set()).add(image.channel)
    return found


@pytest.mark.parametrize(
    ("name", "channel"),
    [
        ("T1w", "t1"), ("t1gd", "t1ce"), ("T1 weighted", "t1"), ("FLAIR", "flair"), ("t2f", "flair"), ("PT", "pet"),
        ("Tmax", "tmax"), ("rCBV", "cbv"), ("noNormalization", None), ("", None), ("Miller", None),
        ("T2 FLAIR", None), ("T1 post-contrast", None), ("T1-Gd", None), ("T2*", None), ("T1 map", None),
        ("T1 MRI", "t1"), ("FLAIR (fluid)", "flair"), ("ADC map", "adc"),
    ],
)  # fmt: skip
def test_a_free_text_has_a_channel_of_the_list_or_none(name, channel):
    assert channel_word(name) == channel


@pytest.mark.parametrize("word", ["flair", "c0", "c12", "elastogram", "b1map"])
def test_words_that_may_be_recorded(word):
    assert is_channel_word(word)
    assert is_listed_channel(word) == (word not in ("elastogram", "b1map"))


@pytest.mark.parametrize("word", ["", "T1", "c12345", "p12345", "jane_doe", "1980", "x" * 17, "a1b2c3", "é", "a\n"])
def test_words_that_may_not(word):
    assert not is_channel_word(word)


def test_the_list_is_closed_under_its_own_synonyms():
    assert len(CHANNELS) > 15
    assert {same_channel(word) for word in CHANNELS} == CHANNELS


@pytest.mark.parametrize(
    ("names", "expected"),
    {
        "BraTS 2021": (
            [f"B21/BraTS2021_00001/BraTS2021_00001_{word}.nii.gz" for word in (*WORDS, "seg")],
            {"B21/BraTS2021_00001/BraTS2021_00001": {*WORDS}},
        ),
        "BraTS 2023": (
            [f"BraTS-GLI-00001-000/BraTS-GLI-00001-000-{word}.nii.gz" for word in ("t1n", "t1c", "t2w", "t2f", "seg")],
            {"data/BraTS-GLI-00001-000/BraTS-GLI-00001-000": {*WORDS}},
        ),
        "without a label": (
            ["val/p1_flair.nii", "val/p1_t1.nii", "val/p2_flair.nii", "val/p2_t1.nii"],
            {"data/val/p1": {"flair", "t1"}, "data/val/p2": {"flair", "t1"}},
        ),
        "named after channels alone": (
            ["P1/FLAIR.nii", "P1/T1.nii", "P2/FLAIR.nii", "P2/T1.nii"],
            {"data/P1/": {"flair", "t1"}, "data/P2/": {"flair", "t1"}},
        ),
        "folders of channels": (
            ["set/t1/p1.nii", "set/flair/p1.nii", "set/labels/p1.nii"],
            {"data/set/p1": {"flair", "t1"}},
        ),
        "ISLES 2015": (
            [f"train/7/VSD.Brain.XX.O.MR_{word}.70{n}/VSD.Brain.XX.O.MR_{word}.70{n}.nii"
             for n, word in enumerate(("Flair", "DWI", "T1", "T2"))],
            {"train/7/": {"flair", "dwi", "t1", "t2"}},
        ),
        "ISLES 2022": (
            ["sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_dwi.nii.gz",
             "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_adc.nii.gz",
             "sub-strokecase0001/ses-0001/anat/sub-strokecase0001_ses-0001_FLAIR.nii.gz"],
            {"data/sub-strokecase0001/ses-0001": {"dwi", "adc", "flair"}},
        ),
        "ISLES 2022 without folders of data types": (
            [f"sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_{word}.nii.gz" for word in ("dwi", "adc")],
            {"sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001": {"dwi", "adc"}},
        ),
        "BIDS with contrast": (
            ["d/sub-1/anat/sub-1_T1w.nii.gz", "d/sub-1/anat/sub-1_ce-GAD_T1w.nii.gz", "d/sub-2/anat/sub-2_T1w.nii.gz"],
            {"d/sub-1": {"t1", "t1ce"}, "d/sub-2": {"t1"}},
        ),
        "visits": (["p1_t1.nii", "p1_t2.nii"], {None: {None}}),
        "a channel without another": (["p1_t1.nii", "p2_t1.nii"], {None: {None}}),
        "other folders": (["a/p1_t1.nii", "b/p1_flair.nii"], {None: {None}}),
        "numbers without a word": (["imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii"], {
            "data/imagesTr/a": {"c0", "c1"}
        }),
    }.values(),
)  # fmt: skip
def test_channels_and_cases_of_layouts(names, expected):
    assert cases(arranged(*names)) == expected


def test_any_order_of_files_gives_the_same_cases():
    names = [f"B/c{case}/c{case}_{word}.nii" for case in (1, 2) for word in (*WORDS, "seg")]
    names += [f"P{case}/{word}.nii" for case in (1, 2) for word in ("CT", "PET")]
    expected = cases(arranged(*names))

    for seed in range(10):
        random.Random(seed).shuffle(names)
        assert cases(arranged(*names)) == expected
    assert len(expected) == 4


def described(tmp_path: Path, document: dict[str, object], names: list[str]) -> Arrangement:
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    dataset = read_dataset_json(tmp_path / "dataset.json")
    assert dataset is not None
    return arrange([tmp_path / name for name in names], [dataset], roots=[tmp_path])


def test_a_description_says_which_number_is_which_channel(tmp_path):
    document = {"channel_names": {"0": "T1", "1": "T1Gd", "2": "T2", "3": "FLAIR"}, "labels": {"background": 0, "a": 1}}
    names = [f"imagesTs/X_{number:04d}.nii.gz" for number in range(4)]

    arrangement = described(tmp_path, document, names)

    assert [image.channel for image in arrangement.images] == ["t1", "t1ce", "t2", "flair"]
    assert len({image.example for image in arrangement.images}) == 1
    assert all(image.has_siblings for image in arrangement.images)


def test_two_channels_of_one_word_are_numbers(tmp_path):
    document = {"channel_names": {"0": "T1 in phase", "1": "T1 out of phase", "2": "T2"}, "labels": {"background": 0}}

    arrangement = described(tmp_path, document, [f"imagesTr/X_{number:04d}.nii.gz" for number in range(3)])

    assert [image.channel for image in arrangement.images] == ["c0", "c1", "t2"]


def test_channels_that_a_list_puts_together_lie_anywhere(tmp_path):
    document = {
        "modality": {"0": "CT", "1": "PET"}, "labels": {"0": "background"},
        "training": [{"image": ["ct/a.nii", "pet/b.nii"]}, {"image": ["ct/c.nii", "pet/d.nii"]}],
    }  # fmt: skip
    names = ["ct/a.nii", "pet/b.nii", "ct/c.nii", "pet/d.nii"]

    found = [cases(described(tmp_path, document, [*order])) for order in itertools.permutations(names)]

    assert list(found[0].values()) == [{"ct", "pet"}] * 2
    assert all(one == found[0] for one in found)


def test_parts_of_a_4d_file_are_channels_of_its_case(tmp_path):
    document = {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "labels": {"0": "background"}}

    (image,) = described(tmp_path, document, ["imagesTr/BRATS_001.nii.gz"]).images

    assert image.parts == (("MR", "flair"), ("MR", "t1"), ("MR", "t1ce"), ("MR", "t2"))
    assert image.example is not None
    assert image.example.endswith("imagesTr/BRATS_001")
