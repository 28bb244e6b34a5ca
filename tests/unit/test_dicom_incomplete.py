"""A file that was refused takes its series with it, wherever in the stack it lay."""

from pathlib import Path

import pytest

from medssl_cli.formats.dicom import RefusedFile, group_headers, incomplete_series, refused_file
from medssl_cli.formats.policy import Policy
from tests.dicom_factory import ct_series, edit_raw, fake_header

INTERPOLATE = Policy(gaps="interpolate")


def headers(folder="a", series="1.3", count=6, **values):
    names = {"SeriesInstanceUID": series, **values}
    return [
        fake_header(k, source=Path(folder) / f"{k}.dcm", SOPInstanceUID=f"{series}.{k}", **names) for k in range(count)
    ]


def outcome(slices, *refused, policy=None):
    """By series the code of its refusal, or the warnings of its image."""
    series_of = {header.source: header.SeriesInstanceUID for header in slices}
    incomplete = incomplete_series(slices, refused)
    parts, refusals = group_headers(slices, policy or Policy(), incomplete=incomplete)
    return {series_of[refusal.files[0]]: refusal.code for refusal in refusals} | {
        part.identity.series: part.warnings for part in parts
    }


def test_a_refused_slice_at_the_end_takes_its_series_with_it():
    lost = RefusedFile(Path("elsewhere/x"), "E_TRUNCATED", SeriesInstanceUID="1.3", SOPInstanceUID="1.3.6")

    assert outcome(headers(), lost) == {"1.3": "E_INCOMPLETE_SERIES"}
    assert outcome(headers(series="1.4"), lost) == {"1.4": ()}


def test_what_is_left_may_be_taken_and_says_so():
    lost = RefusedFile(Path("a/x.dcm"), "E_TRUNCATED", SeriesInstanceUID="1.3")

    assert outcome(headers(), lost, policy=INTERPOLATE) == {"1.3": ("W_INCOMPLETE_SERIES",)}


def test_a_damaged_copy_of_a_slice_that_is_there_costs_nothing():
    copy = RefusedFile(Path("a/x.dcm"), "E_TRUNCATED", SeriesInstanceUID="1.3", SOPInstanceUID="1.3.2")

    assert outcome(headers(), copy) == {"1.3": ()}


def test_a_file_that_does_not_say_whose_it_is_counts_against_the_only_series_beside_it():
    lost = RefusedFile(Path("a/6.dcm"), "E_PERMISSION")

    assert outcome(headers() + headers("b", "1.4"), lost) == {"1.3": "E_INCOMPLETE_SERIES", "1.4": ()}


def test_of_several_series_beside_it_each_is_in_doubt():
    lost = RefusedFile(Path("a/6.dcm"), "E_PERMISSION")
    slices = headers() + headers("a", "1.4") + headers("a", "1.5", Modality="MR")

    assert set(outcome(slices, lost).values()) == {("W_INCOMPLETE_SERIES",)}


@pytest.mark.parametrize(
    "file",
    [
        RefusedFile(Path("a/notes.txt"), "E_PERMISSION"),
        RefusedFile(Path("a/notes"), "E_PERMISSION"),
        RefusedFile(Path("a/._6.dcm"), "S_NOT_AN_IMAGE"),
        RefusedFile(Path("b/6.dcm"), "E_PERMISSION"),
        RefusedFile(Path("a/6.dcm"), "E_TRUNCATED", StudyInstanceUID="9.9"),
        RefusedFile(Path("a/6.dcm"), "E_TRUNCATED", Modality="MR"),
        RefusedFile(Path("a/6.dcm"), "E_TRUNCATED", SOPInstanceUID="1.3.2"),
        RefusedFile(Path("a/6.dcm"), "E_DICOM_PARSE", SeriesInstanceUID="1.3", SOPClassUID="1.3.12.2.1107.5.9.1"),
    ],
    ids=["text", "no-suffix", "hidden", "elsewhere", "other-study", "other-modality", "copy", "raw-data"],
)
def test_files_that_cannot_be_slices_of_a_series_do_not_count(file):
    assert outcome(headers(), file) == {"1.3": ()}


def test_what_may_be_no_image_at_all_only_raises_a_doubt():
    empty = RefusedFile(Path("a/6.dcm"), "S_NOT_AN_IMAGE")

    assert outcome(headers(), empty) == {"1.3": ("W_INCOMPLETE_SERIES",)}


def test_names_that_are_uids_have_no_suffix():
    slices = [fake_header(k, source=Path(f"a/1.2.840.{k}")) for k in range(5)]

    assert outcome(slices, RefusedFile(Path("a/1.2.840.77"), "E_PERMISSION")) == {"1.3": "E_INCOMPLETE_SERIES"}
    assert outcome(slices, RefusedFile(Path("a/README"), "S_NOT_AN_IMAGE")) == {"1.3": ()}


def test_projections_miss_nothing_when_another_one_is_refused():
    slices = headers(Modality="DX", ImagePositionPatient=None, ImageOrientationPatient=None)
    named = RefusedFile(Path("a/6.dcm"), "E_TRUNCATED", SeriesInstanceUID="1.3")

    assert set(outcome(slices, named, RefusedFile(Path("a/7.dcm"), "E_IO")).values()) == {()}


def test_a_picture_of_an_unknown_kind_within_a_series_is_a_doubt():
    """The kind may be what is damaged."""
    odd = RefusedFile(Path("b/1"), "S_UNSUPPORTED_MODALITY", SeriesInstanceUID="1.3", SOPClassUID="1.2.841")

    assert outcome(headers(), odd) == {"1.3": ("W_INCOMPLETE_SERIES",)}


@pytest.mark.parametrize("place", [0, 3, 5])
def test_a_slice_that_is_set_aside_with_an_error_takes_the_rest_with_it(place):
    slices = headers()
    slices[place] = fake_header(
        place, source=Path(f"a/{place}.dcm"), SOPInstanceUID=f"1.3.{place}", BurnedInAnnotation="YES"
    )

    parts, refusals = group_headers(slices)

    assert parts == []
    assert {refusal.code: len(refusal.files) for refusal in refusals} == {"E_BURNED_IN": 1, "E_INCOMPLETE_SERIES": 5}


def test_a_damaged_file_still_says_whose_it_is(tmp_path):
    path = ct_series(tmp_path)[0]
    edit_raw(path, "PixelSpacing", "0,7\\0,9")
    whole = path.read_bytes()
    where = whole.index(b"\x20\x00\x0e\x00UI")

    named = refused_file(path, "E_VALUE_INVALID")
    path.write_bytes(whole[: where + 60])
    cut = refused_file(path, "E_TRUNCATED")
    path.write_bytes(whole[: where - 20])
    cut_before = refused_file(path, "E_TRUNCATED")

    assert (named.SeriesInstanceUID, named.Modality) == ("1.2.826.0.1.3680043.8.498.1", "CT")
    assert named.SOPInstanceUID == cut_before.SOPInstanceUID == "1.2.826.0.1.3680043.8.498.1.1"
    assert cut.SeriesInstanceUID == named.SeriesInstanceUID
    assert cut_before.SeriesInstanceUID == ""
    path.write_bytes(b"")
    assert refused_file(path, "E_TRUNCATED") == RefusedFile(path, "E_TRUNCATED")
    path.unlink()
    assert refused_file(path, "E_IO") == RefusedFile(path, "E_IO")
