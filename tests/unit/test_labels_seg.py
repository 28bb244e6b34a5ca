"""A DICOM SEG lands on the image voxel by voxel, by the place of its frames."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from scipy.spatial.transform import Rotation

from medssl_cli.errors import InputError
from medssl_cli.formats.dicom_seg import write_segmentation
from medssl_cli.formats.labels import LABEL_MAP_SEGMENTATION, SEGMENTATION, MaskLabel
from medssl_cli.formats.labels.seg import read_seg
from medssl_cli.imaging.geometry import Affine
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import SERIES_UID, write_volume

SHAPE = (9, 7, 5)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique(seed: int = 0) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * (0.9, 0.7, 2.5)
    affine[:3, 3] = (-100.5, 20.25, 33)
    return affine


def blocks() -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 2:5, 1:3] = 1
    labels[5:8, 0:4, 2:5] = 2
    labels[0, 6, 4] = 2
    return labels


def seg(
    path: Path,
    frames: list[tuple[int, NDArray[np.uint8], Affine]],
    *,
    names: tuple[str, ...] = ("LV", "Left lung"),
    kind: str = "BINARY",
    **attributes: Any,
) -> Path:
    """A SEG built element by element: (segment, pixels [columns, rows], affine of the frame to RAS) for each frame."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = LABEL_MAP_SEGMENTATION if kind == "LABELMAP" else SEGMENTATION
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.SegmentationType, dataset.MaximumFractionalValue = kind, 200
    dataset.BitsAllocated = 1 if kind == "BINARY" else 8
    dataset.Columns, dataset.Rows = frames[0][1].shape
    dataset.NumberOfFrames = len(frames)
    dataset.SegmentSequence = [_segment(number, name) for number, name in enumerate(names, start=1)]
    dataset.PerFrameFunctionalGroupsSequence = [_groups(number, affine) for number, _, affine in frames]
    dataset.SharedFunctionalGroupsSequence = [Dataset()]
    flat = np.concatenate([pixels.T.ravel() for _, pixels, _ in frames])
    data = np.packbits(flat, bitorder="little") if kind == "BINARY" else flat.astype(np.uint8)
    dataset.PixelData = data.tobytes() + b"\0" * (len(data) % 2)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _segment(number: int, name: str) -> Dataset:
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = number, name
    return segment


def _groups(number: int, affine: Affine) -> Dataset:
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :2], axis=0)
    groups, identification, measures, orientation, position = (Dataset() for _ in range(5))
    identification.ReferencedSegmentNumber = number
    measures.PixelSpacing = [float(spacing[1]), float(spacing[0])]
    orientation.ImageOrientationPatient = [round(v, 12) for v in (lps[:3, :2] / spacing).T.ravel().tolist()]
    position.ImagePositionPatient = [round(v, 6) for v in lps[:3, 3].tolist()]
    groups.SegmentIdentificationSequence = [identification]
    groups.PixelMeasuresSequence = [measures]
    groups.PlaneOrientationSequence = [orientation]
    groups.PlanePositionSequence = [position]
    return groups


def slices_of(labels: NDArray[np.uint8], affine: Affine) -> list[tuple[int, NDArray[np.uint8], Affine]]:
    """One frame for each class and slice that is not empty."""
    frames = []
    for value in (1, 2):
        for index in range(labels.shape[2]):
            pixels = (labels[:, :, index] == value).astype(np.uint8)
            if pixels.any():
                frames.append((value, pixels, affine @ _moved(z=index)))
    return frames


def _moved(x: float = 0, y: float = 0, z: float = 0) -> Affine:
    shift = np.eye(4)
    shift[:3, 3] = (x, y, z)
    return shift


def refused(read: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    return caught.value.code


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_this_project_writes_it_reads_back_exactly(tmp_path: Path, seed: int) -> None:
    affine = oblique(seed)
    sources = write_volume(tmp_path / "ct", Volume(np.zeros((1, *SHAPE), np.int16), affine, "CT", "HU"))
    uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in sources}
    data = write_segmentation(
        blocks(), sources, {1: "LV", 2: "RV"}, affine=affine, model_sha256="a" * 64, algorithm_name="medssl test"
    )
    (tmp_path / "seg.dcm").write_bytes(data)

    mask = read_seg(tmp_path / "seg.dcm")

    assert np.array_equal(mask.to_grid(SHAPE, affine), blocks())
    assert mask.classes == {1: "LV", 2: "RV"}
    assert mask.reference.series_uid == SERIES_UID
    assert mask.reference.sop_uids <= uids
    assert mask.reference.sop_uids


def test_sparse_frames_in_any_order_land_where_they_were_drawn(tmp_path: Path) -> None:
    affine = oblique()
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), affine)[::-1])

    assert np.array_equal(read_seg(path).to_grid(SHAPE, affine), blocks())


def test_frames_that_are_mirrored_and_transposed_land_where_they_were_drawn(tmp_path: Path) -> None:
    affine = oblique()
    turned = np.eye(4)[:, [1, 0, 2, 3]]  # column index of the frame runs along y of the image, and backwards
    turned[:3, 0] *= -1
    turned[1, 3] = SHAPE[1] - 1
    frames = []
    for value, pixels, place in slices_of(blocks(), affine):
        frames.append((value, pixels.T[::-1, :].copy(), place @ turned))
    path = seg(tmp_path / "seg.dcm", frames)

    assert np.array_equal(read_seg(path).to_grid(SHAPE, affine), blocks())


def test_frames_larger_than_the_image_may_mark_only_inside_of_it(tmp_path: Path) -> None:
    affine = oblique()
    frame = np.zeros((SHAPE[0] + 4, SHAPE[1] + 4), np.uint8)
    frame[2:5, 3:6] = 1
    path = seg(tmp_path / "seg.dcm", [(1, frame, affine @ _moved(-2, -2, 1))])

    expected = np.zeros(SHAPE, np.uint8)
    expected[0:3, 1:4, 1] = 1
    assert np.array_equal(read_seg(path).to_grid(SHAPE, affine), expected)

    frame[0, 0] = 1
    path = seg(tmp_path / "seg.dcm", [(1, frame, affine @ _moved(-2, -2, 1))])
    assert refused(lambda: read_seg(path).to_grid(SHAPE, affine)) == "E_LABEL_GRID_MISMATCH"


@pytest.mark.parametrize(
    ("shift", "code"),
    [((0.01, 0, 0), ""), ((0.2, 0, 0), "E_LABEL_GRID_MISMATCH"), ((0, 0, 0.4), "E_LABEL_GRID_MISMATCH")],
    ids=["0.009mm", "0.18mm", "1mm-through"],
)
def test_a_frame_between_voxels_is_refused(tmp_path: Path, shift: tuple[float, float, float], code: str) -> None:
    affine = oblique()
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), affine @ _moved(*shift)))

    if code:
        assert refused(lambda: read_seg(path).to_grid(SHAPE, affine)) == code
    else:
        assert np.array_equal(read_seg(path).to_grid(SHAPE, affine), blocks())


@pytest.mark.parametrize("factor", [0.5, 1.02, 2], ids=str)
def test_frames_of_another_pixel_size_are_refused(tmp_path: Path, factor: float) -> None:
    affine = oblique()
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), affine @ np.diag([factor, factor, 1, 1])))

    assert refused(lambda: read_seg(path).to_grid(SHAPE, affine)) == "E_LABEL_GRID_MISMATCH"


def test_segments_that_overlap_are_refused_unless_one_of_them_is_chosen(tmp_path: Path) -> None:
    affine = oblique()
    ones = np.ones(SHAPE[:2], np.uint8)
    path = seg(tmp_path / "seg.dcm", [(1, blocks()[:, :, 2].clip(0, 1), affine), (2, ones, affine)])

    assert refused(lambda: read_seg(path).to_grid(SHAPE, affine)) == "E_SEGMENT_OVERLAP"

    chosen = read_seg(path, structures=["left lung"])
    assert chosen.classes == {1: "Left lung"}
    assert chosen.to_grid(SHAPE, affine).sum() == ones.sum()


def test_chosen_structures_have_the_same_values_in_every_file(tmp_path: Path) -> None:
    affine = oblique()
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), affine))

    mask = read_seg(path, structures=["spleen", "Left lung", "LV"])

    assert mask.classes == {2: "Left lung", 3: "LV"}
    assert np.array_equal(mask.to_grid(SHAPE, affine), np.choose(blocks(), [0, 3, 2]))
    assert refused(lambda: read_seg(path, structures=["spleen"])) == "E_LABEL_VALUES"


def test_names_are_reduced_to_the_safe_alphabet(tmp_path: Path) -> None:
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), oblique()), names=("Doe^John <b>", "\xc4"))

    assert read_seg(path).classes == {1: "DoeJohn b", 2: "\xc4"}


def test_a_label_map_segmentation_is_read(tmp_path: Path) -> None:
    affine = oblique()
    frames = [(0, blocks()[:, :, index], affine @ _moved(z=index)) for index in range(SHAPE[2])]
    path = seg(tmp_path / "seg.dcm", frames, kind="LABELMAP")

    assert np.array_equal(read_seg(path).to_grid(SHAPE, affine), blocks())


def test_fractions_are_refused_until_somebody_says_where_to_cut(tmp_path: Path) -> None:
    affine = oblique()
    frame = np.full(SHAPE[:2], 99, np.uint8)
    frame[2, 3] = 100  # half of MaximumFractionalValue = 200
    path = seg(tmp_path / "seg.dcm", [(1, frame, affine)], kind="FRACTIONAL")

    assert refused(lambda: read_seg(path)) == "E_LABEL_FORMAT"
    assert np.argwhere(read_seg(path, fraction=0.5).to_grid(SHAPE, affine)).tolist() == [[2, 3, 0]]


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"Rows": 8}, "E_PIXEL_LENGTH"),
        ({"NumberOfFrames": 3}, "E_PIXEL_LENGTH"),
        ({"NumberOfFrames": 10**6}, "E_VALUE_INVALID"),
        ({"Rows": 0}, "E_VALUE_INVALID"),
        ({"PerFrameFunctionalGroupsSequence": []}, "E_LABEL_FORMAT"),
        ({"SegmentSequence": []}, "E_LABEL_VALUES"),
        ({"SegmentSequence": [_segment(1, "a"), _segment(1, "b")]}, "E_LABEL_FORMAT"),
        ({"SegmentSequence": [_segment(300, "a"), _segment(1, "b"), _segment(2, "c")]}, "E_LABEL_VALUES"),
        ({"SegmentationType": "OTHER"}, "E_LABEL_FORMAT"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "E_LABEL_FORMAT"),
    ],
    ids=[
        "rows", "frames", "a-million-frames", "no-rows", "no-groups", "no-segments", "segment-twice", "segment-300",
        "type", "class",
    ],
)  # fmt: skip
def test_a_malformed_object_is_refused(tmp_path: Path, attributes: dict[str, Any], code: str) -> None:
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), oblique()), **attributes)

    assert refused(lambda: read_seg(path)) == code


@pytest.mark.parametrize("missing", ["PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence"])
def test_a_frame_without_a_place_is_refused(tmp_path: Path, missing: str) -> None:
    groups = [_groups(1, oblique())]
    del groups[0][missing]
    frames = [(1, np.ones(SHAPE[:2], np.uint8), oblique())]
    path = seg(tmp_path / "seg.dcm", frames, PerFrameFunctionalGroupsSequence=groups)

    assert refused(lambda: read_seg(path)) == "E_GEOM_MISSING"


def test_damaged_objects_never_escape_as_other_errors(tmp_path: Path) -> None:
    data = seg(tmp_path / "seg.dcm", slices_of(blocks(), oblique())).read_bytes()
    rng = np.random.default_rng(0)
    num_refused = 0
    for _ in range(150):
        damaged = bytearray(data[: rng.integers(132, len(data))] if rng.random() < 0.3 else data)
        for position in rng.integers(132, len(damaged), 4):
            damaged[position] = rng.integers(256)
        (tmp_path / "damaged.dcm").write_bytes(damaged)
        try:
            mask = read_seg(tmp_path / "damaged.dcm")
            assert isinstance(mask, MaskLabel)
            mask.to_grid(SHAPE, oblique())
        except InputError:
            num_refused += 1
    assert num_refused > 50
