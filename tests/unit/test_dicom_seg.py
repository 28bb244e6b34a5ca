"""A DICOM SEG says where every marked voxel is, in the patient, and says it the same way every time."""

import io
import shutil
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medssl_cli.base.errors import GateError, InputError
from medssl_cli.formats.anatomy_codes import ANATOMICAL_STRUCTURE, StructureCode
from medssl_cli.formats.dicom import Header, group_headers, read_headers, read_series, write_ct_series
from medssl_cli.formats.dicom_seg import SegmentationObject, write_segmentation
from medssl_cli.formats.seg_frames import read_masks, read_segmentation
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import edit

SHAPE = (24, 20, 14)
CLASSES = {1: "LV", 2: "something else"}
LONG_NAMES = {1: "右" * 60 + "1", 2: "右" * 60 + "2"}


def oblique_affine(seed: int = 0) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * (0.9, 0.7, 2.5)
    affine[:3, 3] = (-100.5, 20.25, 33)
    return affine


def series(folder: Path, affine: NDArray[np.float64]) -> tuple[list[Path], Volume]:
    """A CT series as our own reader orders it: its files by slice and its volume."""
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(1, *SHAPE) % 1000
    write_ct_series(
        folder,
        Volume(values, affine, "CT", "HU"),
        patient_id="P1",
        patient_name="Nobody^None",
        study_uid="1.2.3",
        series_uid="1.2.3.4",
        frame_of_reference_uid="1.2.3.5",
        series_description="phantom",
    )
    (part,), refusals = group_headers([header for path in sorted(folder.iterdir()) for header in read_headers(path)])
    assert not refusals
    return [header.source for header in part.headers], read_series(part).volume


def blocks() -> NDArray[np.uint8]:
    """Two blocks and one lone voxel, without any symmetry; some slices are empty."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 2:5, 1:6] = 1
    labels[10:20, 8:17, 3:12] = 2
    labels[0, 19, 13] = 2
    return labels


def made(labels: NDArray[np.uint8], paths: list[Path], volume: Volume, model: str = "a" * 64) -> SegmentationObject:
    return write_segmentation(
        labels,
        [header for path in paths for header in read_headers(path)],
        CLASSES,
        affine=volume.affine,
        model_sha256=model,
        algorithm_name="medssl test",
    )


def write(labels: NDArray[np.uint8], paths: list[Path], volume: Volume, model: str = "a" * 64) -> bytes:
    return made(labels, paths, volume, model).data


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_highdicom_finds_every_voxel_at_its_place_in_the_patient(tmp_path: Path, seed: int) -> None:
    paths, volume = series(tmp_path, oblique_affine(seed))
    labels = blocks()

    found = hd.seg.segread(io.BytesIO(write(labels, paths, volume))).get_volume(combine_segments=True)

    marked = np.argwhere(found.array)
    in_patient = (found.affine @ np.c_[marked, np.ones(len(marked))].T)[:3] * [[-1], [-1], [1]]
    indices = (np.linalg.inv(volume.affine) @ np.r_[in_patient, np.ones((1, len(marked)))])[:3]
    assert np.abs(indices - np.rint(indices)).max() < 1e-4
    again = np.zeros(SHAPE, np.uint8)
    again[tuple(np.rint(indices).astype(int))] = found.array[tuple(marked.T)]
    np.testing.assert_array_equal(again, labels)


def test_patient_study_and_references_are_those_of_the_series(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    sources = [pydicom.dcmread(path) for path in paths]

    found = pydicom.dcmread(io.BytesIO(write(blocks(), paths, volume)))

    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert found[keyword].value == sources[0][keyword].value
    referenced = found.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == "1.2.3.4"
    named = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert named == {source.SOPInstanceUID for source in sources}
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == ["LV", "something else"]
    # Slices 1-5 hold the first block, 3-11 the second and 13 the lone voxel: 5 + 9 + 1 frames, empty ones left out.
    assert found.NumberOfFrames == 15


def overlapping() -> NDArray[np.uint8]:
    """A region inside another, and a third that was not found."""
    masks = np.zeros((3, *SHAPE), np.uint8)
    masks[0, 3:15, 2:15, 1:8] = 1
    masks[1, 10:20, 8:17, 3:12] = 1
    return masks


def test_masks_that_overlap_are_a_segment_each(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    masks, classes = overlapping(), {1: "whole tumour", 2: "tumour core", 3: "enhancing"}

    data = write_segmentation(
        masks,
        [header for path in paths for header in read_headers(path)],
        classes,
        affine=volume.affine,
        model_sha256="a" * 64,
        algorithm_name="medssl test",
    ).data

    found = hd.seg.segread(io.BytesIO(data))
    assert (found.SegmentsOverlap, found.NumberOfFrames) == ("YES", 7 + 9)  # slices of the first and of the second
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == ["whole tumour", "tumour core"]
    np.testing.assert_array_equal(read_masks(data, volume.affine, masks.shape), masks)
    with pytest.raises(GateError, match="E_OUTPUT_CHECK"):
        read_segmentation(data, volume.affine, SHAPE)
    with pytest.raises(GateError, match="E_OUTPUT_CHECK"):
        read_masks(data, volume.affine, (1, *SHAPE))
    assert faults_by_dciodvfy(data, tmp_path) == []


def test_the_same_series_model_and_voxels_give_the_same_bytes(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    first = write(blocks(), paths, volume)
    other_voxels = blocks()
    other_voxels[0, 0, 0] = 1

    assert write(blocks(), paths, volume) == first
    uids = [
        pydicom.dcmread(io.BytesIO(data))
        for data in (first, write(other_voxels, paths, volume), write(blocks(), paths, volume, model="b" * 64))
    ]
    assert len({found.SOPInstanceUID for found in uids}) == 3
    assert uids[0].SeriesInstanceUID == uids[1].SeriesInstanceUID != uids[2].SeriesInstanceUID
    assert all(found.SOPInstanceUID.startswith("2.25.") and len(found.SOPInstanceUID) <= 64 for found in uids)


def test_a_copy_of_the_series_under_other_names_gives_the_same_bytes(tmp_path: Path) -> None:
    """The queue of a service calls files after digests, a folder as the scanner did."""
    paths, volume = series(tmp_path / "first", oblique_affine())
    for number, path in enumerate(paths):
        edit(path, ContentDate="20260101", ContentTime=f"10{number:02d}00")
    copies = [shutil.copy(path, tmp_path / f"{100 - number}.dcm") for number, path in enumerate(paths)]

    assert write(blocks(), [Path(copy) for copy in copies], volume) == write(blocks(), paths, volume)


def test_an_empty_mask_is_a_valid_object_of_zeros(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())

    data = write(np.zeros(SHAPE, np.uint8), paths, volume)

    assert not hd.seg.segread(io.BytesIO(data)).pixel_array.any()
    assert not read_segmentation(data, volume.affine, SHAPE).any()


@pytest.mark.parametrize("mistake", ["mirrored", "shifted", "slices reversed"])
def test_the_check_catches_a_mask_at_the_wrong_place(tmp_path: Path, mistake: str) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    data = write(blocks(), paths, volume)
    wrong = volume.affine.copy()
    if mistake == "shifted":
        wrong[:3, 3] += 0.5 * wrong[:3, 0]
    else:
        axis = 0 if mistake == "mirrored" else 2
        wrong[:3, 3] += wrong[:3, axis] * (SHAPE[axis] - 1)
        wrong[:3, axis] *= -1

    if mistake == "shifted":
        with pytest.raises(GateError, match="E_OUTPUT_CHECK"):
            read_segmentation(data, wrong, SHAPE)
    else:
        assert not np.array_equal(read_segmentation(data, wrong, SHAPE), blocks())


def test_slices_that_jitter_within_tolerance_keep_their_voxels_and_references(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    for number, path in enumerate(paths[1:-1]):
        source = pydicom.dcmread(path)
        position = np.array(source.ImagePositionPatient, dtype=float) + 0.02 * (-1) ** number
        source.ImagePositionPatient = [f"{value:.6f}" for value in position]
        source.save_as(path)

    data = write(blocks(), paths, volume)

    np.testing.assert_array_equal(read_segmentation(data, volume.affine, SHAPE), blocks())
    groups = pydicom.dcmread(io.BytesIO(data)).PerFrameFunctionalGroupsSequence
    assert all("DerivationImageSequence" in group for group in groups)


def test_sources_of_two_patients_are_refused(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    other = pydicom.dcmread(paths[3])
    other.PatientID = "P2"
    other.save_as(paths[3])

    with pytest.raises(InputError, match="E_PATIENT_MIX"):
        write(blocks(), paths, volume)


def test_sources_without_optional_headers_are_enough(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    for path in paths:
        source = pydicom.dcmread(path)
        for keyword in (
            "PatientName",
            "AccessionNumber",
            "StudyDate",
            "ReferringPhysicianName",
            "StudyID",
            "SliceThickness",
        ):
            if keyword in source:
                del source[keyword]
        source.save_as(path)

    np.testing.assert_array_equal(read_segmentation(write(blocks(), paths, volume), volume.affine, SHAPE), blocks())


def slices_of(paths: list[Path]) -> list[Header]:
    return [header for path in paths for header in read_headers(path)]


def changed_files(paths: list[Path], change: Callable[[pydicom.Dataset, int], None]) -> None:
    """Change the data set of each file."""
    for number, path in enumerate(paths):
        source = pydicom.dcmread(path)
        change(source, number)
        source.save_as(path)


def faults_by_dciodvfy(data: bytes, folder: Path) -> list[str]:
    """What a validator that is not ours finds against the standard."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    path = folder / "checked.dcm"
    path.write_bytes(data)
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace")
    said = (done.stdout + done.stderr).splitlines()
    assert any("Segmentation" in line for line in said)
    return [line for line in said if line.startswith("Error")]


def hostile_attributes(source: pydicom.Dataset) -> None:
    """Every attribute of patient and study that archives were seen to break, broken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in {
            "PatientAge": "0Y",
            "PatientSex": "unknown",
            "PatientBirthDate": "19000000",
            "PatientID": "P" * 80,
            "PatientName": "A" * 90 + "^B^C^D^E^F=x=y=z",
            "PatientWeight": 75,
            "StudyID": "12345678901234567890",
            "StudyDate": "yesterday",
            "StudyTime": "9:99",
            "AccessionNumber": "A" * 30,
            "ReferringPhysicianName": "D" * 100,
            "StudyDescription": "S" * 100,
            "PatientIdentityRemoved": "YES",
            "EthnicGroup": "E" * 40,
            "ClinicalTrialProtocolName": "N" * 80,
            "PatientComments": "\x07",
            "SeriesNumber": None,
            "SpecificCharacterSet": "ISO_IR 100",
        }.items():
            setattr(source, keyword, value)
        source.add_new(0x00091001, "UN", b"private \xff\0")


def test_whatever_the_series_says_the_object_is_valid_and_tells_what_it_left_out(tmp_path: Path) -> None:
    paths, volume = series(tmp_path / "in", oblique_affine())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed_files(paths, lambda source, _: hostile_attributes(source))

        found = made(blocks(), paths, volume)

    assert faults_by_dciodvfy(found.data, tmp_path) == []
    assert {"PatientAge", "PatientSex", "PatientID", "StudyID", "AccessionNumber", "StudyDate"} <= set(found.changed)
    assert "PatientAge" in found.note
    assert "0Y" not in found.note


def test_an_object_of_a_valid_series_is_valid_and_has_nothing_to_tell(tmp_path: Path) -> None:
    paths, volume = series(tmp_path / "in", oblique_affine())

    found = made(blocks(), paths, volume)

    assert faults_by_dciodvfy(found.data, tmp_path) == []
    assert found.note == ""


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_an_invalid_uid_of_the_series_is_named_as_it_is_and_told(tmp_path: Path, keyword: str) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    is_per_slice = keyword == "SOPInstanceUID"
    slices = [
        replace(header, **{keyword: f"9999.{number if is_per_slice else 0}"})
        for number, header in enumerate(slices_of(paths))
    ]

    found = write_segmentation(
        blocks(), slices, CLASSES, affine=volume.affine, model_sha256="a" * 64, algorithm_name="medssl test"
    )

    assert found.invalid == (keyword,)
    assert keyword in found.note


@pytest.mark.parametrize("uid", ["", "x", "1." + "2" * 70])
def test_a_series_that_has_no_uid_to_name_has_no_object_and_the_reason(tmp_path: Path, uid: str) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    slices = [replace(header, SOPInstanceUID=uid) for header in slices_of(paths)]

    with pytest.raises(InputError, match=r"E_SEG_SOURCE.*SOPInstanceUID"):
        write_segmentation(
            blocks(), slices, CLASSES, affine=volume.affine, model_sha256="a" * 64, algorithm_name="medssl test"
        )


def test_every_frame_names_the_slice_that_lies_where_it_lies(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    places = {
        str(source.SOPInstanceUID): np.array(source.ImagePositionPatient, float)
        for source in map(pydicom.dcmread, paths)
    }

    found = pydicom.dcmread(io.BytesIO(write(blocks(), paths[::-1], volume)))

    for groups in found.PerFrameFunctionalGroupsSequence:
        (reference,) = groups.DerivationImageSequence[0].SourceImageSequence
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_allclose(place, places[reference.ReferencedSOPInstanceUID], atol=1e-3)
        assert "ReferencedFrameNumber" not in reference


def test_frames_of_a_multi_frame_object_are_named_by_their_numbers(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    in_order = slices_of(paths)
    numbers = [7, 3, 11, 1, 14, 2, 13, 4, 12, 5, 10, 6, 9, 8]  # of the frames in order of their places
    slices = [
        replace(header, SOPInstanceUID="1.2.9", NumberOfFrames=14, frame=number - 1)
        for header, number in zip(in_order, numbers, strict=True)
    ]

    found = pydicom.dcmread(
        io.BytesIO(
            write_segmentation(
                blocks(), slices, CLASSES, affine=volume.affine, model_sha256="a" * 64, algorithm_name="medssl test"
            ).data
        )
    )

    by_place = {header.ImagePositionPatient: number for header, number in zip(in_order, numbers, strict=True)}
    for groups in found.PerFrameFunctionalGroupsSequence:
        (reference,) = groups.DerivationImageSequence[0].SourceImageSequence
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        nearest = min(by_place, key=lambda point: float(np.abs(np.array(point) - place).max()))
        assert reference.ReferencedFrameNumber == by_place[nearest]
    (instance,) = found.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == "1.2.9"


def test_segment_numbers_are_the_values_of_the_mask_and_none_is_listed_in_vain_behind_the_last(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    classes = {1: "liver", 2: "spleen", 3: "left_kidney", 4: "right_kidney"}
    for present, listed in (({1}, 1), ({3}, 3), ({1, 4}, 4), (set(), 4)):
        labels = np.zeros(SHAPE, np.uint8)
        for value in present:
            labels[value : value + 2, 3:5, 2:4] = value

        found = pydicom.dcmread(
            io.BytesIO(
                write_segmentation(
                    labels,
                    slices_of(paths),
                    classes,
                    affine=volume.affine,
                    model_sha256="a" * 64,
                    algorithm_name="medssl test",
                ).data
            )
        )

        names = {int(segment.SegmentNumber): segment.SegmentLabel for segment in found.SegmentSequence}
        assert names == {value: classes[value] for value in range(1, listed + 1)}


def test_series_numbers_follow_the_series_and_differ_by_model(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    changed_files(paths, lambda source, _: setattr(source, "SeriesNumber", 4))

    numbers = [
        pydicom.dcmread(io.BytesIO(write(blocks(), paths, volume, model=digit * 64))).SeriesNumber for digit in "ab"
    ]

    assert all(4900 <= number < 5000 for number in numbers)
    assert numbers[0] != numbers[1]


@pytest.mark.parametrize("digits", [2, 3, 4, 5, 6])
def test_direction_cosines_that_are_rounded_differently_per_slice_lose_no_object(tmp_path: Path, digits: int) -> None:
    paths, volume = series(tmp_path, oblique_affine(4))
    slices = [
        replace(header, ImageOrientationPatient=tuple(round(c, digits + n % 2) for c in header.ImageOrientationPatient))
        for n, header in enumerate(slices_of(paths))
    ]

    found = write_segmentation(
        blocks(), slices, CLASSES, affine=volume.affine, model_sha256="a" * 64, algorithm_name="medssl test"
    )

    np.testing.assert_array_equal(read_segmentation(found.data, volume.affine, SHAPE), blocks())


def test_a_sheared_stack_within_the_limits_of_the_gate_has_an_object(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    sheared = volume.affine.copy()
    sheared[:3, 2] += 0.1 / SHAPE[2] * volume.affine[:3, 0]  # the last slice lies a tenth of a voxel beside its place

    found = write_segmentation(
        blocks(), slices_of(paths), CLASSES, affine=sheared, model_sha256="a" * 64, algorithm_name="medssl test"
    )

    np.testing.assert_array_equal(read_segmentation(found.data, sheared, SHAPE), blocks())
    assert faults_by_dciodvfy(found.data, tmp_path) == []


def test_a_mended_stack_names_the_slices_that_there_are(tmp_path: Path) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    slices = [header for number, header in enumerate(slices_of(paths)) if number != 3]

    found = write_segmentation(
        blocks(), slices, CLASSES, affine=volume.affine, model_sha256="a" * 64, algorithm_name="medssl test"
    )

    groups = pydicom.dcmread(io.BytesIO(found.data)).PerFrameFunctionalGroupsSequence
    # Slice 3 holds both blocks: two of the 15 frames have no slice of the series to name.
    assert sum(not group.get("DerivationImageSequence") for group in groups) == 2
    assert faults_by_dciodvfy(found.data, tmp_path) == []


def test_codes_and_colours_that_are_given_are_used(tmp_path: Path) -> None:
    paths, volume = series(tmp_path / "in", oblique_affine())
    given = StructureCode(ANATOMICAL_STRUCTURE, ("44714003", "SCT", "Upper lobe of left lung"), colour=(255, 0, 0))

    found = write_segmentation(
        blocks(),
        slices_of(paths),
        CLASSES,
        affine=volume.affine,
        model_sha256="a" * 64,
        algorithm_name="medssl test",
        codes={"something else": given},
    )

    first, second = pydicom.dcmread(io.BytesIO(found.data)).SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "87878005"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeValue == "44714003"
    assert "RecommendedDisplayCIELabValue" in second
    assert faults_by_dciodvfy(found.data, tmp_path) == []


def test_long_names_of_classes_are_valid_and_stay_different(tmp_path: Path) -> None:
    paths, volume = series(tmp_path / "in", oblique_affine())

    found = write_segmentation(
        blocks(), slices_of(paths), LONG_NAMES, affine=volume.affine, model_sha256="a" * 64, algorithm_name="T" * 90
    )

    labels = [segment.SegmentLabel for segment in pydicom.dcmread(io.BytesIO(found.data)).SegmentSequence]
    assert len(set(labels)) == 2
    assert faults_by_dciodvfy(found.data, tmp_path) == []


def test_two_images_of_one_series_have_objects_of_different_names_though_their_masks_are_the_same(
    tmp_path: Path,
) -> None:
    paths, volume = series(tmp_path, oblique_affine())
    phases = [
        [
            replace(header, SOPInstanceUID="1.2.9", NumberOfFrames=28, frame=header_number + shift)
            for header_number, header in enumerate(slices_of(paths))
        ]
        for shift in (0, 14)
    ]

    found = [
        pydicom.dcmread(
            io.BytesIO(
                write_segmentation(
                    blocks(), phase, CLASSES, affine=volume.affine, model_sha256="a" * 64, algorithm_name="medssl test"
                ).data
            )
        )
        for phase in phases
    ]

    assert found[0].SOPInstanceUID != found[1].SOPInstanceUID
    assert found[0].SeriesInstanceUID == found[1].SeriesInstanceUID
