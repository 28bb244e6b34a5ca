"""Whose image a file is: by layout, by names, by folders, inside archives as outside."""

from pathlib import Path, PurePath, PurePosixPath

import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.formats.layouts import ImageFile, arrange
from medssl_cli.formats.patients import (
    one_by_number,
    patient_from_name,
    patient_of_study,
    patients_from_places,
    patients_of,
)
from medssl_cli.formats.source import Member, Source

ROOT = Path("/data/trial7")


def patients(*sources: Source, roots=(ROOT,), pattern=None) -> list[str | None]:
    images = arrange(sources, roots=roots).images
    found = patients_of(images, roots, pattern)
    return [found[image.source] for image in images]


def members(archive: str, *names: str) -> list[Member]:
    return [Member(ROOT / archive, index, PurePosixPath(name)) for index, name in enumerate(names)]


def test_the_layout_goes_before_names_and_a_pattern_before_the_layout():
    place = ROOT / "sub-01" / "anat" / "sub-01_T1w.nii.gz"

    assert patients(place) == ["01"]
    assert patients(place, pattern="sub-[0-9]") == ["sub-0"]


def test_names_decide_inside_an_archive_as_in_a_folder():
    names = ("imagesTr/hippocampus_001.nii.gz", "imagesTr/hippocampus_002.nii.gz")

    assert patients(*members("Task04.zip", *names)) == ["hippocampus_001", "hippocampus_002"]
    assert patients(*[ROOT / name for name in names]) == ["hippocampus_001", "hippocampus_002"]


def test_folders_decide_inside_an_archive_where_names_repeat():
    archive = ROOT / "v201.zip"
    sources = members("v201.zip", "s0001/ct.nii.gz", "s0002/ct.nii.gz")

    assert patients(*sources, roots=[archive]) == ["s0001", "s0002"]


def test_one_archive_per_patient():
    sources = [*members("p1.zip", "ct.nii", "pet.nii"), *members("p2.zip", "ct.nii", "pet.nii")]

    assert patients(*sources) == ["p1", "p1", "p2", "p2"]


def test_the_folders_above_the_input_say_nothing():
    assert patients(ROOT / "ct.nii") == [None]
    assert patients(ROOT / "ct.nii", roots=[ROOT / "ct.nii"]) == [None]


def test_two_members_of_one_name_are_two_images_of_one_patient():
    assert patients(*members("a.zip", "p7.nii", "p7.nii"), ROOT / "p8.nii") == ["p7", "p7", "p8"]


def test_a_pattern_that_is_none_is_refused():
    image = ImageFile(ROOT / "a.nii", "a")

    with pytest.raises(UsageError, match="E_USAGE"):
        patients_of([image], [ROOT], "(")


NAMES = {
    # the number of a sequence, a scanner, a visit, a side, a date or a part is nobody's
    "T1_001": "001", "001_T1": "001", "T2_flair_001": "001", "CT_001": "001", "MR001": "001", "3T_sub01": "sub01",
    "7T_sub01": "sub01", "1.5T_007": "007", "scan1_patient07": "patient07", "scan1_07": "07", "visit2_pat1": "pat1",
    "pat1_visit2": "pat1", "visit_1_patient_2": "patient_2", "20210304_001": "001", "2021-03-04_p01": "p01",
    "left_007": "007", "pre_001": "001", "001_lesion_2": "001", "T1_lung_003": "lung_003", "run-1_sub-02": "sub-02",
    # nothing but such a number
    "T1": None, "visit1": None, "frame_01": None, "IM-0001": None, "IM-0001-0002": None, "20210304": None,
    "1.2.840.113619.2": None, "view1_frontal": None,
    # as ever
    "sub-01": "sub-01", "case_0001_0000": "case_0001", "s0001": "s0001", "patient001a": "patient001",
    "hippocampus_001": "hippocampus_001", "00000001_000": "00000001", "LIDC-IDRI-0001": "LIDC-IDRI-0001",
    "site1_patient07": "site1_patient07", "患者07_T1": "患者07", "T1_患者07": "患者07",
    # names that count files, where nothing better is there
    "img0001": "img0001", "img0001_0000": "img0001", "volume-3": "volume-3", "scan_8": "scan_8", "scan001_p07": "p07",
    # of public data sets
    "BraTS2021_00000_flair": "BraTS2021_00000", "Brats18_CBICA_AAB_1_t1ce": "Brats18_CBICA_AAB",
    "BraTS-GLI-00001-000-t1n": "BraTS-GLI-00001", "mr_train_1001_image": "mr_train_1001", "amos_0507": "amos_0507",
    "FLARE22_Tr_0001": "FLARE22_Tr_0001", "TCGA-02-0003-01A": "TCGA-02-0003",
    "004f33259ee4aef671c2b95d54e4be68": "004f33259ee4aef671c2b95d54e4be68",
}  # fmt: skip


@pytest.mark.parametrize(("name", "patient"), NAMES.items(), ids=list(NAMES))
def test_the_number_that_says_whose_image_it_is(name, patient):
    assert patient_from_name(name) == patient


CROWDS = {
    "words and numbers behind": (
        [f"covid-19-pneumonia-{number}-day4" for number in (20, 35, 38, 41)] + ["covid-19-evolution-1"], True),
    "words before a word that says nothing": (
        [f"{word}-left-pneumonia-1" for word in ("viral", "bacterial", "lobar", "fungal", "atypical")], True),
    "numbers of letters and digits": ([f"1{letter}43e48d_jumbo" for letter in "abcdef"], True),
    "slices and sides of one patient": ([f"12_left_slice{number}" for number in range(9)], False),
    "numbers behind the patient's": ([f"000012-{number:03d}" for number in range(9)], False),
    "channels of one patient": ([f"case7_{word}" for word in ("flair", "t1", "t2", "dwi", "adc")], False),
    "a word for persons": ([f"patient3_{word}" for word in ("liver", "spleen", "heart", "lung", "brain")], False),
    "few": (["covid-19-a1", "covid-19-b2", "covid-19-c3", "covid-19-d4"], False),
}  # fmt: skip


@pytest.mark.parametrize(("names", "is_said"), CROWDS.values(), ids=list(CROWDS))
def test_files_of_otherwise_different_names_with_one_number_are_told(names, is_said):
    images = [ImageFile(Path(f"/in/{name}.png"), name) for name in [*names, "x99_alone"]]

    patients = patients_of(images, [Path("/in")])

    assert len({patients[image.source] for image in images[:-1]}) == 1
    assert one_by_number(images, patients) == ({image.source for image in images[:-1]} if is_said else set())


def test_a_pattern_gives_a_study_of_nobody_its_patient_and_parts_none():
    files = [Path("/in/site/p07_1.dcm"), Path("/in/site/p07_2.dcm")]

    assert patient_of_study(files, [Path("/in")], r"(p\d+)_") == "p07"
    assert patient_of_study(files, [Path("/in")], r"site") == "site"
    assert patient_of_study(files, [Path("/in")], r"_(\d)") is None
    assert patient_of_study(files, [Path("/in")], r"case") is None


FOLDERS = {
    "numbers of files in a database": (
        ["1/VSD.Brain.XX.O.MR_T1.70616", "1/VSD.Brain.XX.O.MR_DWI.70613", "2/VSD.Brain.XX.O.MR_T1.70626"],
        ["1", "1", "2"],
    ),
    "sequences": (["T1/sub01", "T2/sub01", "T1/sub02", "T2/sub02"], ["sub01", "sub01", "sub02", "sub02"]),
    "many sequences": (["T1/001", "T2/001", "flair/001"], [None, None, None]),
    "visits": (["visit1/p1", "visit2/p1", "visit1/p2"], ["p1", "p1", "p2"]),
    "persons without numbers": (["alice/T1", "alice/T2", "bob/T1", "bob/T2"], ["alice", "alice", "bob", "bob"]),
    "a person's folder": (["patient07/lung_001", "patient07/lung_002", "patient08/lung_003"],
                          ["patient07", "patient07", "patient08"]),
    "folders that count": (["Training Batch 1/volume-0", "Training Batch 2/volume-28"], ["volume-0", "volume-28"]),
    "one name for all": (["p1/case_1", "p2/case_1", "p3/case_1"], ["p1", "p2", "p3"]),
    "numbered folders of files": (["images_001/00000001_000", "images_002/00000002_000"], ["00000001", "00000002"]),
    "one person": (["patient001_frame01", "patient001_frame12"], ["patient001", "patient001"]),
    "one number for all": (["lung1_a", "lung1_b"], [None, None]),
}  # fmt: skip


@pytest.mark.parametrize(("places", "expected"), FOLDERS.values(), ids=list(FOLDERS))
def test_folders_of_sequences_and_visits_are_no_patients(places, expected):
    assert list(patients_from_places(map(PurePath, places)).values()) == expected
