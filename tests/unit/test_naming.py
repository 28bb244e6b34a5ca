"""Names of outputs: by the scan alone, never twice, safe and bounded."""

import itertools
import os

import pytest

from medssl_cli.deploy.naming import DIGEST_LENGTH, file_name, region_words, series_name

LONGEST_TASK = 64
HOSTILE = [
    ("a.nii.gz",), ("a.nii",), ("a.nrrd",), ("a.mha",), ("a",), ("a.nii.nii.gz",), ("a.NII.GZ",), ("a.nii.gz.nii.gz",),
    ("p1", "a.nii.gz"), ("p1_a.nii.gz",), ("p1", "p2", "a.nii.gz"), ("p1_p2", "a.nii.gz"), ("p1", "p2_a.nii.gz"),
    ("a (1).nii.gz",), ("a 1.nii.gz",), ("a1.nii.gz",), ("A.nii.gz",), (" a.nii.gz",), ("a .nii.gz",), (".a.nii.gz",),
    ("é.nii.gz",), ("e\u0301.nii.gz",), ("右肺.nii.gz",), ("左肺.nii.gz",), ("x" * 250 + ".nii.gz",),
    ("x" * 251 + ".nii.gz",), ("右" * 80 + ".nii.gz",), ("\udcff.nii.gz",), ("\udcfe.nii.gz",), ("a\n.nii.gz",),
    (f"a-{'0' * DIGEST_LENGTH}.nii.gz",), ("a#0.nii.gz",), ("a_0.nii.gz",), ("-.nii.gz",), ("..nii.gz",),
]  # fmt: skip


def test_no_two_files_share_a_name() -> None:
    names = [file_name(parts) for parts in HOSTILE] + [file_name(("a.nii.gz",), image=image) for image in range(3)]

    assert len(set(names)) == len(HOSTILE) + 3


def test_a_name_made_with_a_digest_is_no_files_own_name() -> None:
    made = [file_name(parts) for parts in HOSTILE]

    again = [file_name((f"{name}.nii.gz",)) for name in made]

    assert not [name for name, parts in zip(made, HOSTILE, strict=True) if name in again and len(parts) > 1]


@pytest.mark.parametrize("parts", HOSTILE, ids=ascii)
def test_names_are_safe_and_short_enough_for_any_file_system(parts: tuple[str, ...]) -> None:
    name = file_name(parts)

    assert len(os.fsencode(f"{name}_{'t' * LONGEST_TASK}.nii.gz")) <= 255
    assert name.isprintable()
    assert not name.startswith((".", "/"))
    assert not set('/\\:*?"<>|#') & set(name)


def test_what_lies_directly_in_the_input_keeps_its_name_in_every_script() -> None:
    for name in ("case01", "右肺", "Größe", "scan 1"):
        assert file_name((f"{name}.nii.gz",)) == name
    assert file_name(("case01.nrrd",)) == "case01.nrrd"


def test_the_end_of_a_long_path_stays() -> None:
    name = file_name(("derivatives" * 9, "sub-01", "anat", "sub-01_T1w.nii.gz"))

    assert name[: -DIGEST_LENGTH - 1].endswith("sub-01_anat_sub-01_T1w")


def test_series_and_their_parts_have_names_of_their_own() -> None:
    uids = [("1.2", "3.4"), ("1.23", ".4"), ("1.2", "3.4", "part"), ("3.4", "1.2")]

    names = [series_name("CT", *these) for these in uids]

    assert len(set(names)) == len(uids)
    assert all(name.startswith("CT-") for name in names)
    assert series_name("", "1").startswith("series-")
    for first, second in itertools.pairwise(names):
        assert first != second


def test_regions_of_names_that_disks_take_for_one_bear_their_numbers() -> None:
    assert region_words(["whole tumour", "core", "ET+/-"]) == ["whole_tumour", "core", "ET+_-"]
    assert region_words(["Core", "core"]) == ["1-Core", "2-core"]
    assert region_words(["a/b", "a b"]) == ["1-a_b", "2-a_b"]
    assert region_words(["a\x1b[2J", "CON:1", "b*?"]) == ["1-a2J", "2-CON1", "3-b"]
    long = region_words(["右" * 60 + "1", "右" * 60 + "2"])
    assert len(set(long)) == 2
    assert max(len(word.encode()) for word in long) <= 44
