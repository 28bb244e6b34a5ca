"""Whose image a file is: by layout, by names, by folders, inside archives as outside."""

from pathlib import Path, PurePosixPath

import pytest

from medssl_cli.errors import UsageError
from medssl_cli.formats.layouts import ImageFile, arrange
from medssl_cli.formats.patients import patients_of
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
