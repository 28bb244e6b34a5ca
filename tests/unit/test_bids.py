"""BIDS: what a place says, and which label maps belong to which raw image."""

from pathlib import Path, PurePath

import pytest

from medssl_cli.formats.bids import parse_place, read_value_names
from medssl_cli.formats.layouts import arrange
from medssl_cli.formats.table import stem_of

ROOT = Path("/home/derivatives/ds")


def arranged(*names: str):
    return arrange([ROOT / name for name in names], roots=[ROOT])


def parse(place: str):
    return parse_place(PurePath(place), stem_of(PurePath(place).name))


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("sub-01/anat/sub-01_T1w.nii.gz", "MR"),
        ("sub-01/ses-pre/anat/sub-01_ses-pre_acq-mprage_run-2_T2w.nii", "MR"),
        ("sub-01/anat/sub-01_FLAIR.nii.gz", "MR"),
        ("sub-01/func/sub-01_task-rest_bold.nii.gz", "MR"),
        ("sub-01/dwi/sub-01_dwi.nii.gz", "MR"),
        ("sub-01/pet/sub-01_trc-FDG_pet.nii.gz", "PT"),
        ("sub-01/ct/sub-01_ct.nii.gz", "CT"),
        ("sub-01/anat/sub-01_unheardof.nii.gz", None),
    ],
)
def test_suffix_and_data_type_say_the_modality_and_the_entity_says_the_patient(name, modality):
    arrangement = arranged(name)

    assert [(image.modality, image.patient) for image in arrangement.images] == [(modality, "01")]


@pytest.mark.parametrize(
    "place",
    [
        "sub-01/anat/sub-02_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/other/sub-01_T1w.nii.gz",
        "anat/sub-01_T1w.nii.gz",
        "sub-01_T1w.nii.gz",
        "sub-01/anat/T1w.nii.gz",
        "sub-01/anat/sub-01_no entity_T1w.nii.gz",
        "sub-01/anat/sub-01_run-1_run-2_T1w.nii.gz",
        "sub-01/anat/acq-1_sub-01_T1w.nii.gz",
    ],
)
def test_what_does_not_follow_the_rules_is_not_bids(place):
    assert parse(place) is None


def test_labels_in_derivatives_belong_to_the_raw_image_of_the_same_entities():
    raw = "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    other = "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"
    folder = "derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1"
    belonging = [f"{folder}_dseg.nii.gz", f"{folder}_desc-lesion_mask.nii.gz", f"{folder}_space-orig_label-L_mask.nii"]
    foreign = [f"{folder}_space-MNI152NLin2009cAsym_dseg.nii.gz", f"{folder}_run-2_dseg.nii.gz"]
    arrangement = arranged(raw, other, *belonging, *foreign)

    assert [image.source for image in arrangement.images] == [ROOT / raw, ROOT / other]
    assert [label.images for label in arrangement.labels] == [(ROOT / raw,)] * 3 + [()] * 2


def test_a_label_that_does_not_name_its_contrast_may_belong_to_each():
    raws = ["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_FLAIR.nii.gz"]
    arrangement = arranged(*raws, "sub-01/pet/sub-01_pet.nii.gz", "derivatives/x/sub-01/anat/sub-01_dseg.nii.gz")

    assert [label.images for label in arrangement.labels] == [tuple(ROOT / raw for raw in raws)]


def test_images_made_from_others_are_no_images_of_their_own():
    derived = [
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "derivatives/fmriprep/sub-01/anat/sub-01_label-GM_probseg.nii.gz",
        "sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz",
    ]
    arrangement = arranged("sub-01/anat/sub-01_T1w.nii.gz", *derived)

    assert arrangement.skipped == [(ROOT / name, "S_DERIVED") for name in derived]
    assert len(arrangement.images) == 1


def test_two_data_sets_do_not_share_labels():
    arrangement = arranged(
        "a/sub-01/anat/sub-01_T1w.nii.gz",
        "b/sub-01/anat/sub-01_T1w.nii.gz",
        "b/derivatives/x/sub-01/anat/sub-01_mask.nii.gz",
    )

    assert [label.images for label in arrangement.labels] == [(ROOT / "b/sub-01/anat/sub-01_T1w.nii.gz",)]


def test_folders_of_images_and_labels_go_before_bids():
    arrangement = arranged("images/sub-01/anat/sub-01_T1w.nii.gz", "labels/sub-01/anat/sub-01_T1w.nii.gz")

    assert [len(label.images) for label in arrangement.labels] == [1]
    assert len(arrangement.images) == 1


def labels(*names: str) -> dict[str, tuple[str, str | None]]:
    arrangement = arranged("sub-01/anat/sub-01_T1w.nii.gz", *names)
    return {label.source.parts[-1]: (label.set_name, label.class_name) for label in arrangement.labels}


def derivative(name: str, pipeline: str = "pipe") -> str:
    return f"derivatives/{pipeline}/sub-01/anat/sub-01_{name}.nii.gz"


def test_masks_of_one_image_are_kept_apart_by_their_names():
    found = labels(derivative("desc-brain_mask"), derivative("label-lesion_mask"), derivative("desc-aparc_dseg"))

    assert found == {
        "sub-01_desc-brain_mask.nii.gz": ("brain", "brain"),
        "sub-01_label-lesion_mask.nii.gz": ("", "lesion"),
        "sub-01_desc-aparc_dseg.nii.gz": ("aparc", None),
    }


def test_masks_that_only_their_label_tells_apart_are_classes_of_one_set():
    found = labels(derivative("label-L_mask"), derivative("label-R_mask"))

    assert found == {"sub-01_label-L_mask.nii.gz": ("", "L"), "sub-01_label-R_mask.nii.gz": ("", "R")}


def test_the_only_mask_is_the_main_set_and_bears_its_name():
    assert labels(derivative("desc-lesion_mask")) == {"sub-01_desc-lesion_mask.nii.gz": ("", "lesion")}


def test_equal_words_are_told_apart_by_suffix_and_by_pipeline():
    both = [derivative("desc-a_mask"), derivative("desc-a_dseg")]
    pipelines = arranged(
        "sub-01/anat/sub-01_T1w.nii.gz", *(derivative("desc-brain_mask", name) for name in ("fast", "manual_2"))
    )

    assert {name for name, _ in labels(*both).values()} == {"a-mask", "a-dseg"}
    assert [label.set_name for label in pipelines.labels] == ["fast-brain-mask", "manual2-brain-mask"]


def test_the_name_of_a_set_is_of_the_data_set_and_not_of_one_image():
    found = arranged(
        *(f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz" for subject in ("01", "02")),
        derivative("desc-brain_mask"), derivative("label-lesion_mask"),
        "derivatives/pipe/sub-02/anat/sub-02_desc-brain_mask.nii.gz",
    )  # fmt: skip

    assert [label.set_name for label in found.labels] == ["brain", "", "brain"]


TABLES = {
    "beside": ("sub-01/anat/sub-01_desc-a_dseg.tsv", {1: "grey matter", 2: "blanche"}),
    "inherited": ("desc-a_dseg.tsv", {1: "grey matter", 2: "blanche"}),
    "inherited by all": ("dseg.tsv", {1: "grey matter", 2: "blanche"}),
    "of another": ("desc-b_dseg.tsv", {}),
    "above the data set": ("../dseg.tsv", {}),
}


@pytest.mark.parametrize(("place", "expected"), TABLES.values(), ids=list(TABLES))
def test_a_table_names_the_values_of_a_segmentation(tmp_path, place, expected):
    top = tmp_path / "derivatives/pipe"
    segmentation = top / "sub-01/anat/sub-01_desc-a_dseg.nii.gz"
    segmentation.parent.mkdir(parents=True)
    (top / place).write_text("index\tname\tcolor\n0\tbackground\t#000\n1\tgrey matter\t#fff\n2\tblanche\t#f00\n")
    name = parse_place(segmentation, stem_of(segmentation.name))
    assert name is not None

    assert read_value_names(segmentation, name.top) == expected


@pytest.mark.parametrize("text", ["", "a\tb\n1\tc\n", "index\tname\nx\ty\n1\n"])
def test_a_table_of_something_else_names_nothing(tmp_path, text):
    (tmp_path / "dseg.tsv").write_text(text)

    assert read_value_names(tmp_path / "sub-01_dseg.nii", tmp_path) == {}


def test_a_label_in_a_space_belongs_to_images_in_that_space_or_of_that_suffix():
    root = Path("/data")
    raw, derived = root / "sub-1/anat", root / "derivatives/p/sub-1/anat"
    t1, flair, mni = (raw / f"sub-1_{name}.nii" for name in ("T1w", "FLAIR", "space-MNI_T1w"))
    belongs = {
        raw / "sub-1_space-MNI_label-L_desc-T1lesion_mask.nii": {mni},
        derived / "sub-1_space-FLAIR_dseg.nii": {flair},
        derived / "sub-1_space-T1w_label-WM_mask.nii": {t1},
        derived / "sub-1_space-other_dseg.nii": set(),
        derived / "sub-1_dseg.nii": {t1, flair, mni},
    }

    arrangement = arrange([t1, flair, mni, *belongs], roots=[root])

    assert {label.source: set(label.images) for label in arrangement.labels} == belongs
