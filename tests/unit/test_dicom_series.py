"""Grouping: copies, conflicts, what is set aside, and how one series becomes several images."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.formats.acquisition import Acquisition
from medssl_cli.formats.dicom import group_headers
from medssl_cli.formats.policy import Policy
from tests.dicom_factory import ct_series, edit, fake_header, group, load, refusal_code


def test_a_changed_copy_of_one_slice_refuses_the_series(tmp_path):
    series = ct_series(tmp_path)
    copy = tmp_path / "copy.dcm"
    content = bytearray(series[0].read_bytes())
    content[-1] ^= 1  # one pixel
    copy.write_bytes(content)

    assert refusal_code([*series, copy]) == "E_DUP_SOP_CONFLICT"


def test_every_copy_of_the_same_bytes_is_counted(tmp_path):
    series = ct_series(tmp_path / "a")
    copies = [tmp_path / f"copy{number}.dcm" for number in range(3)]
    for copy in copies:
        copy.write_bytes(series[1].read_bytes())

    parts, (refusal,) = group([*series, *copies])

    assert len(parts) == 1
    assert (refusal.code, len(refusal.files)) == ("DUPLICATE", 3)


@pytest.mark.parametrize(
    ("numbers", "warns"),
    [([1, 2, 3, 4], False), ([0, 1, 2, 3], False), ([2, 3, 4, 5], True), ([1, 2, 4, 5], True), ([7, 7, 7, 7], False)],
    ids=["from-1", "from-0", "first-missing", "one-missing", "unnumbered"],
)
def test_gaps_in_the_instance_numbers_are_noted(numbers, warns):
    headers = [fake_header(k, InstanceNumber=number) for k, number in enumerate(numbers)]

    (part,), _ = group_headers(headers)

    assert ("W_INSTANCE_GAP" in part.warnings) == warns


def test_numbers_of_pictures_that_were_set_aside_are_no_gap():
    headers = [fake_header(k, InstanceNumber=k + 1) for k in range(6)]
    headers[0] = replace(headers[0], ImageType=("ORIGINAL", "PRIMARY", "LOCALIZER"))

    (part,), (refusal,) = group_headers(headers)

    assert refusal.code == "S_LOCALIZER"
    assert part.warnings == ()


SPLITTERS = {
    "AcquisitionNumber": (1, 2, 3),
    "TemporalPositionIdentifier": (10, 9, 8),
    "AcquisitionTime": ("101010", "101020", "101030"),
    "EchoTime": (2.0, 4.0, 6.0),
    "EchoNumbers": ("1", "2", "3"),
    "DiffusionBValue": (0.0, 500.0, 1000.0),
    "TriggerTime": (0.0, 30.0, 60.0),
    "ImageType": (("ORIGINAL", "PRIMARY", "M"), ("ORIGINAL", "PRIMARY", "P"), ("ORIGINAL", "PRIMARY", "R")),
    "ConvolutionKernel": (("B30F",), ("B60F",), ("B80F",)),
    "DiffusionGradientOrientation": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), None),
    "NominalPercentageOfCardiacPhase": (0.0, 33.0, 66.0),
    "FrameReferenceTime": (0.0, 1500.0, 3000.0),
    "acquisition": tuple(Acquisition(flip_angle_deg=angle) for angle in (5, 10, 15)),
    "StackID": ("1", "2", "3"),
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_three_images_at_one_place_are_told_apart_by_one_element(name):
    headers = _phases(name, SPLITTERS[name], shuffled=True)

    parts, refusals = group_headers(headers)

    assert refusals == []
    assert [part.identity.series for part in parts] == ["1.3#p0", "1.3#p1", "1.3#p2"]
    assert sorted(str({getattr(header, name) for header in part.headers}) for part in parts) == sorted(
        str({value}) for value in SPLITTERS[name]
    )


@pytest.mark.parametrize("name", ["inversion_time_ms", "flip_angle_deg"])
def test_images_of_several_inversion_times_or_flip_angles_are_told_apart(name):
    values = tuple(Acquisition(**{name: number}) for number in (10.0, 20.0, 40.0))

    parts, _ = group_headers(_phases("acquisition", values, shuffled=True))

    assert {getattr(part.headers[0].acquisition, name) for part in parts} == {10.0, 20.0, 40.0}


DIMENSIONS = [
    lambda t, k: (t, k),
    lambda t, k: (k, t),
    lambda t, k: (1, k, t),
    lambda t, k: (k, k, t, 7),
    lambda t, k: (t % 2, t // 2, k),
]


@pytest.mark.parametrize("indices", DIMENSIONS)
def test_dimensions_that_vary_at_one_position_tell_volumes_apart(indices):
    """PS3.3 C.7.6.17, whatever the order of the dimensions and without knowing what they are."""
    headers = [
        replace(header, DimensionIndexValues=indices(number // 5, number % 5))
        for number, header in enumerate(_phases("AcquisitionNumber", (1, 1, 1, 1), shuffled=True))
    ]

    parts, refusals = group_headers(headers)

    assert refusals == []
    assert [len(part.headers) for part in parts] == [5, 5, 5, 5]
    for part in parts:
        assert len({int(header.digest, 16) // 5 for header in part.headers}) == 1
        assert "W_SPLIT_BY_ORDER" not in part.warnings


def test_dimensions_that_do_not_make_whole_volumes_are_no_help():
    headers = _phases("AcquisitionNumber", (1, 1, 1), shuffled=True)
    headers = [replace(header, DimensionIndexValues=(number % 7,)) for number, header in enumerate(headers)]

    assert group_headers(headers)[1][0].code == "E_DUP_POSITION"


CLOCKS = {
    "TriggerTime": lambda slice_, phase: phase * (40 + 1.5 * slice_),
    "FrameReferenceTime": lambda slice_, phase: 1000.0 * phase + 30 * slice_,
    "AcquisitionTime": lambda slice_, phase: f"1030{2 * phase:02d}.{slice_:02d}",
}


@pytest.mark.parametrize("name", CLOCKS)
def test_the_nth_time_at_each_slice_is_phase_n(name):
    headers = _clocked(name, CLOCKS[name])

    parts, refusals = group_headers(headers)

    assert refusals == []
    for phase, part in enumerate(sorted(parts, key=lambda part: getattr(part.headers[0], name))):
        assert [int(header.digest, 16) // 5 for header in part.headers] == [phase] * 5
        assert "W_SPLIT_BY_ORDER" in part.warnings


def test_times_order_phases_within_each_kind_of_picture():
    magnitude = _clocked("TriggerTime", CLOCKS["TriggerTime"], ImageType=("ORIGINAL", "PRIMARY", "M"))
    phase = _clocked("TriggerTime", CLOCKS["TriggerTime"], first=100, ImageType=("ORIGINAL", "PRIMARY", "P"))

    parts, refusals = group_headers([*magnitude, *phase])

    assert refusals == []
    assert len(parts) == 6
    assert all(len({header.ImageType for header in part.headers}) == 1 for part in parts)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda headers: headers[:-1],
        lambda headers: [*headers[:-1], replace(headers[-1], TriggerTime=None)],
        lambda headers: [*headers[:-1], replace(headers[-1], TriggerTime=headers[4].TriggerTime)],
    ],
    ids=["one-missing", "one-without", "two-equal"],
)
def test_phases_that_are_not_whole_at_every_slice_are_refused(spoil):
    headers = _clocked("TriggerTime", CLOCKS["TriggerTime"])

    assert [refusal.code for refusal in group_headers(spoil(headers))[1]] == ["E_DUP_POSITION"]


def test_times_of_the_day_that_pass_midnight_order_nothing():
    times = ("235958", "235959", "000001")
    headers = _clocked("AcquisitionTime", lambda slice_, phase: f"{times[phase]}.{slice_:02d}")

    assert [refusal.code for refusal in group_headers(headers)[1]] == ["E_DUP_POSITION"]


def test_two_elements_together_may_tell_images_apart():
    headers = [
        fake_header(
            number,
            ImagePositionPatient=(0.0, 0.0, 5.0 * (number % 4)),
            EchoTime=(2.0, 4.0)[number // 4 % 2],
            TriggerTime=(0.0, 30.0)[number // 8],
            InstanceNumber=None,
        )
        for number in range(16)
    ]

    parts, refusals = group_headers(headers)

    assert refusals == []
    assert len({(part.headers[0].EchoTime, part.headers[0].TriggerTime) for part in parts}) == 4


@pytest.mark.parametrize("name", SPLITTERS)
def test_images_of_unequal_length_are_refused_as_a_whole(name):
    headers = _phases(name, SPLITTERS[name], shuffled=True)

    (refusal,) = group_headers(headers[:-1])[1]

    assert (refusal.code, len(refusal.files)) == ("E_DUP_POSITION", 14)


def test_images_that_only_instance_numbers_tell_apart_are_split_with_a_warning():
    headers = _phases("AcquisitionNumber", (1, 1, 1), shuffled=False)

    parts, refusals = group_headers(headers[::-1])

    assert refusals == []
    assert [[header.InstanceNumber for header in part.headers] for part in parts] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11, 12, 13, 14],
    ]
    assert all("W_SPLIT_BY_INSTANCE" in part.warnings for part in parts)


def test_images_that_are_numbered_slice_by_slice_are_split_with_a_warning():
    """Number 3 k + n is image n at slice k, as cines are numbered."""
    headers = _phases("AcquisitionNumber", (1, 1, 1), shuffled=False)
    headers = [
        replace(header, InstanceNumber=3 * (number % 5) + number // 5 + 1) for number, header in enumerate(headers)
    ]

    parts, refusals = group_headers(headers[::-1])

    assert refusals == []
    assert [[int(header.digest, 16) for header in part.headers] for part in parts] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11, 12, 13, 14],
    ]
    assert all("W_SPLIT_BY_INSTANCE" in part.warnings for part in parts)
    headers[0], headers[6] = (
        replace(headers[a], InstanceNumber=headers[b].InstanceNumber) for a, b in ((0, 6), (6, 0))
    )
    assert group_headers(headers)[1][0].code == "E_DUP_POSITION"


def test_instance_numbers_in_no_order_do_not_split():
    headers = _phases("AcquisitionNumber", (1, 1, 1), shuffled=False)
    headers[0], headers[6] = (replace(headers[a], InstanceNumber=b) for a, b in ((0, 6), (6, 0)))

    assert group_headers(headers)[1][0].code == "E_DUP_POSITION"


def test_stacks_at_different_places_are_images_of_their_own():
    heights = {"1": (0, 5, 10, 15), "2": (100, 103, 106, 109, 112)}
    headers = [
        fake_header(number, ImagePositionPatient=(0.0, 0.0, float(height)), StackID=stack)
        for number, (stack, height) in enumerate((stack, z) for stack, all_z in heights.items() for z in all_z)
    ]

    parts, refusals = group_headers(headers)

    assert refusals == []
    assert [len(part.headers) for part in parts] == [4, 5]
    assert [part.affine[2, 2] for part in parts] == pytest.approx([5, 3])


def test_frames_of_one_file_may_belong_to_several_images():
    source = Path("enhanced.dcm")
    headers = [
        fake_header(
            number,
            source=source,
            SOPInstanceUID="1.2.9",
            frame=number,
            NumberOfFrames=10,
            InstanceNumber=1,
            TemporalPositionIdentifier=number % 2,
            ImagePositionPatient=(0.0, 0.0, 2.0 * (number // 2)),
        )
        for number in range(10)
    ]

    parts, refusals = group_headers(headers)

    assert refusals == []
    assert [[header.frame for header in part.headers] for part in parts] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        (("DERIVED", "SECONDARY", "MIP"), "S_DERIVED"),
        (("DERIVED", "SECONDARY", "SUBTRACTION"), "S_DERIVED"),
        (("DERIVED", "PRIMARY", "PROJECTION IMAGE"), "S_DERIVED"),
        (("ORIGINAL", "PRIMARY", "LOCALIZER"), "S_LOCALIZER"),
        (("DERIVED", "SECONDARY", "SCREEN SAVE"), "S_SECONDARY_CAPTURE"),
    ],
)
def test_pictures_that_show_no_slice_are_skipped_by_name(kinds, code):
    parts, (refusal,) = group_headers([fake_header(k, ImageType=kinds) for k in range(5)])

    assert (parts, refusal.code) == ([], code)


def test_a_reformatted_series_is_accepted_with_a_note():
    (part,), _ = group_headers([fake_header(k, ImageType=("DERIVED", "SECONDARY", "REFORMATTED")) for k in range(5)])

    assert part.warnings == ("W_DERIVED",)


def test_a_preamble_that_is_not_empty_is_noted():
    (part,), _ = group_headers([fake_header(k, has_preamble=k == 2) for k in range(5)])

    assert part.warnings == ("W_PREAMBLE_NONZERO",)


def test_a_modality_without_a_place_in_the_patient_is_named():
    headers = [fake_header(k, Modality="NM", ImagePositionPatient=None) for k in range(5)]

    assert group_headers(headers)[1][0].code == "E_NO_PATIENT_GEOMETRY"
    assert group_headers([replace(header, Modality="CT") for header in headers])[1][0].code == "E_GEOM_MISSING"


def test_fewer_slices_are_a_volume_where_the_site_says_so(tmp_path):
    series = ct_series(tmp_path, positions_mm=[0, 5])

    assert refusal_code(series) == "E_TOO_FEW_SLICES"
    assert load(series, Policy(min_slices=2)).volume.shape == (6, 5, 2)


def test_a_single_slice_is_as_thick_as_it_says(tmp_path):
    series = ct_series(tmp_path, positions_mm=[7])
    edit(series[0], SliceThickness="2.5")

    volume = load(series, Policy(min_slices=1)).volume

    assert volume.shape == (6, 5, 1)
    np.testing.assert_allclose(volume.affine[:3, 2:], [[0, 40], [0, 30], [2.5, 7]])
    edit(series[0], SliceThickness=None)
    assert refusal_code(series, Policy(min_slices=1)) == "E_GEOM_MISSING"


def test_positions_alone_give_the_distance_of_slices(tmp_path):
    series = ct_series(tmp_path, positions_mm=(0, 5, 10, 15, 20))
    for path in series:
        edit(path, SliceThickness="2.5", SpacingBetweenSlices="-7")

    assert load(series).volume.spacing_mm[2] == pytest.approx(5)


def test_as_many_orientations_as_slices_are_refused_without_comparing_all_pairs():
    angles = np.linspace(0, np.pi, 2000)
    headers = [
        fake_header(k, ImageOrientationPatient=(float(np.cos(a)), float(np.sin(a)), 0.0, 0.0, 0.0, 1.0))
        for k, a in enumerate(angles)
    ]

    assert group_headers(headers)[1][0].code == "E_ORIENTATION_VARIES"


@pytest.mark.parametrize("per_series", [20, 4000], ids=["many-series", "one-series"])
def test_work_grows_with_the_number_of_headers_and_not_faster(per_series):
    """Function calls, which do not depend on the machine: four times the headers, about four times the calls."""

    def calls(count):
        headers = [
            fake_header(k, SeriesInstanceUID=f"1.3.{k // per_series}", source=Path(f"{k}")) for k in range(count)
        ]
        counted = [0]

        def count_call(frame, event, argument):
            counted[0] += event in ("call", "c_call")

        sys.setprofile(count_call)
        try:
            parts, refusals = group_headers(headers)
        finally:
            sys.setprofile(None)
        assert (len(parts), len(refusals)) == (max(1, count // per_series), 0)
        return counted[0]

    assert calls(4000) <= 4.5 * calls(1000)


def test_copies_are_compared_only_where_they_claim_to_be_the_same(tmp_path, monkeypatch):
    """Reading every file a second time would double the cost of an ingest."""
    series = ct_series(tmp_path)
    monkeypatch.setattr("medssl_cli.formats.dicom.series.content_digest", lambda source: pytest.fail("read again"))

    assert len(group(series)[0]) == 1


def _clocked(name, time, *, first=0, **values):
    """Three phases of five slices; `time` gives the clock of each. Instance numbers say nothing."""
    headers = _phases("EchoNumbers", ("1", "1", "1"), shuffled=True)
    return [
        replace(
            header,
            **values,
            **{name: time(number % 5, number // 5)},
            source=Path(f"{first + number}"),
            SOPInstanceUID=f"1.2.{first + number}",
            InstanceNumber=first + (header.InstanceNumber or 0),
        )
        for number, header in enumerate(headers)
    ]


def _phases(name, values, *, shuffled):
    """Five slices at the same places for each value; shuffled, their instance numbers say nothing."""
    order = np.random.default_rng(0).permutation(5 * len(values)) if shuffled else np.arange(5 * len(values))
    return [
        fake_header(
            number,
            ImagePositionPatient=(0.0, 0.0, 5.0 * (number % 5)),
            InstanceNumber=int(order[number]),
            **{name: values[number // 5]},
        )
        for number in range(5 * len(values))
    ]
