"""A DICOM SEG lands on the image voxel by voxel, by the place of its frames."""

import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from scipy.spatial.transform import Rotation

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import read_headers
from medssl_cli.formats.dicom_seg import write_segmentation
from medssl_cli.formats.labels import LABEL_MAP_SEGMENTATION, SEGMENTATION, Instance, MaskLabel
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
    sources: Sequence[Sequence[Instance]] | None = None,
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
    dataset.NumberOfFrames, dataset.PixelRepresentation = len(frames), 0
    if sources is not None:
        attributes["PerFrameFunctionalGroupsSequence"] = [
            _drawn_on(_groups(number, affine), drawn_on)
            for (number, _, affine), drawn_on in zip(frames, sources, strict=True)
        ]
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


def _drawn_on(groups: Dataset, instances: Sequence[Instance]) -> Dataset:
    """Functional groups of a frame that names its source images."""
    derivation = Dataset()
    derivation.SourceImageSequence = []
    for uid, frame in instances:
        image = Dataset()
        image.ReferencedSOPInstanceUID = uid
        if frame is not None:
            image.ReferencedFrameNumber = frame
        derivation.SourceImageSequence.append(image)
    groups.DerivationImageSequence = [derivation] if instances else []
    return groups


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
    slices = [header for path in sources for header in read_headers(path)]
    made = write_segmentation(
        blocks(), slices, {1: "LV", 2: "RV"}, affine=affine, model_sha256="a" * 64, algorithm_name="medssl test"
    )
    (tmp_path / "seg.dcm").write_bytes(made.data)

    mask = read_seg(tmp_path / "seg.dcm")

    assert np.array_equal(mask.to_grid(SHAPE, affine), blocks())
    assert mask.classes == {1: "LV", 2: "RV"}
    assert mask.reference.series_uid == SERIES_UID
    assert mask.reference.sop_uids <= uids
    assert {instance.sop_uid for source in mask.sources for instance in source} <= mask.reference.sop_uids
    assert frozenset() not in mask.sources


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

    chosen = read_seg(path, structures=["Left lung"])
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


@pytest.mark.parametrize(("fraction", "smallest"), [(0.07, 14), (0.55, 110), (0.56, 112), (0.503, 101), (1.0, 200)])
def test_a_pixel_of_exactly_the_fraction_is_marked(tmp_path: Path, fraction: float, smallest: int) -> None:
    """0.07 * 200 is a little more than 14 in binary."""
    affine = oblique()
    frame = np.zeros(SHAPE[:2], np.uint8)
    frame[:2, 3] = smallest - 1, smallest
    path = seg(tmp_path / "seg.dcm", [(1, frame, affine)], kind="FRACTIONAL")

    assert np.argwhere(read_seg(path, fraction=fraction).to_grid(SHAPE, affine)).tolist() == [[1, 3, 0]]


def label_map(path: Path, labels: NDArray[Any], numbers: Sequence[int], affine: Affine, **attributes: Any) -> Path:
    """A LABELMAP of one frame per slice, of as many bits as its values need."""
    frames = [(0, labels[:, :, index], affine @ _moved(z=index)) for index in range(labels.shape[2])]
    wide = b"".join(pixels.T.astype("<u2").tobytes() for _, pixels, _ in frames)
    attributes = {"SegmentSequence": [_segment(number, f"organ {number}") for number in numbers], **attributes}
    if labels.max() > 255:
        attributes |= {"BitsAllocated": 16, "PixelData": wide}
    return seg(path, frames, kind="LABELMAP", **attributes)


def test_a_label_map_of_16_bits_and_of_palette_colours_is_read(tmp_path: Path) -> None:
    affine = oblique()
    labels = np.choose(blocks(), [0, 700, 65_535]).astype(np.uint16)
    path = label_map(tmp_path / "seg.dcm", labels, [65_535, 700], affine, PhotometricInterpretation="PALETTE COLOR")

    mask = read_seg(path)

    assert mask.classes == {700: "organ 700", 65_535: "organ 65535"}
    assert np.array_equal(mask.to_grid(SHAPE, affine), labels)


def test_values_of_a_label_map_that_no_segment_declares_are_refused(tmp_path: Path) -> None:
    path = label_map(tmp_path / "seg.dcm", blocks(), [1], oblique())

    with pytest.raises(InputError, match="E_LABEL_VALUES: pixels of 1 segments that the object does not declare"):
        read_seg(path)
    assert refused(lambda: read_seg(path, structures=["organ 1"])) == "E_LABEL_VALUES"


BACKGROUND = [(0, "Background"), (1, "a"), (2, "b")]


@pytest.mark.parametrize(
    ("numbers", "attributes", "classes"),
    [
        ([1, 2], {}, {1: "organ 1", 2: "organ 2"}),
        ([0, 1, 2], {"PixelPaddingValue": 0}, {1: "organ 1", 2: "organ 2"}),
        ([0, 1, 2], {"SegmentSequence": [_segment(*one) for one in BACKGROUND]}, {1: "a", 2: "b"}),
        ([0, 1], {"PixelPaddingValue": 2}, {1: "organ 0", 2: "organ 1"}),
        ([0, 1, 2], {}, {1: "organ 0", 2: "organ 1", 3: "organ 2"}),
    ],
    ids=["undeclared", "padding", "by-name", "other-padding", "none"],
)  # fmt: skip
def test_the_background_of_a_label_map_is_its_padding_value(
    tmp_path: Path, numbers: list[int], attributes: dict[str, Any], classes: dict[int, str]
) -> None:
    """A segment 0 that is no background is a segment like others."""
    affine = oblique()
    mask = read_seg(label_map(tmp_path / "seg.dcm", blocks(), numbers, affine, **attributes))

    assert mask.classes == classes
    expected = np.zeros(SHAPE, np.uint8)
    for value in classes:
        expected[blocks() == (value - 1 if classes[1] == "organ 0" else value)] = value
    assert np.array_equal(mask.to_grid(SHAPE, affine), expected)


def compressed(path: Path, syntax: str) -> Path:
    """The same object in another transfer syntax."""
    dataset = pydicom.dcmread(path)
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PixelRepresentation = "MONOCHROME2", 1, 0
    dataset.BitsStored = dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    return path


def wide_blocks() -> NDArray[np.uint8]:
    """Blocks of five times as many columns and rows: an encoder of wavelets takes no smaller ones."""
    return np.kron(blocks(), np.ones((5, 5, 1), np.uint8))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=["rle", "j2k"])
@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP", "LABELMAP16"])
def test_compressed_segmentations_are_read(tmp_path: Path, syntax: str, kind: str) -> None:
    affine, labels = oblique(), wide_blocks()
    if kind == "FRACTIONAL":
        frames = [(number, pixels * 200, place) for number, pixels, place in slices_of(labels, affine)]
        path = seg(tmp_path / "seg.dcm", frames, kind=kind)
    else:
        factor = 300 if kind == "LABELMAP16" else 1
        path = label_map(tmp_path / "seg.dcm", labels.astype(np.uint16) * factor, [factor, 2 * factor], affine)
    compressed(path, syntax)

    found = read_seg(path, fraction=0.5).to_grid(labels.shape, affine)
    assert np.array_equal(found, labels.astype(np.uint16) * (300 if kind == "LABELMAP16" else 1))


@pytest.mark.parametrize(
    ("syntax", "attributes", "code"),
    [
        (JPEG2000Lossless, {"Rows": 34}, "E_CODESTREAM_MISMATCH"),
        (JPEG2000Lossless, {"Columns": 44}, "E_CODESTREAM_MISMATCH"),
        (JPEG2000Lossless, {"BitsStored": 9}, "E_CODESTREAM_MISMATCH"),
        (RLELossless, {"Rows": 34}, "E_CODESTREAM_MISMATCH"),
        (RLELossless, {"Columns": 44}, "E_CODESTREAM_MISMATCH"),
        (RLELossless, {"NumberOfFrames": 4}, "E_PIXEL_LENGTH"),
        (RLELossless, {"NumberOfFrames": 6}, "E_TRUNCATED"),
    ],
    ids=["rows", "columns", "bits", "rle-rows", "rle-columns", "fewer-frames", "more-frames"],
)
def test_a_compressed_segmentation_whose_header_lies_is_refused(
    tmp_path: Path, syntax: str, attributes: dict[str, int], code: str
) -> None:
    path = label_map(tmp_path / "seg.dcm", wide_blocks().astype(np.uint16) * 300, [300, 600], oblique())
    dataset = pydicom.dcmread(compressed(path, syntax))
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.save_as(path)

    assert refused(lambda: read_seg(path)) == code


@pytest.mark.parametrize("is_damaged", [False, True])
def test_frames_of_single_bits_may_be_deflated_one_by_one(tmp_path: Path, is_damaged: bool) -> None:
    affine = oblique()
    frames = slices_of(blocks(), affine)
    dataset = pydicom.dcmread(seg(tmp_path / "seg.dcm", frames))
    packed = []
    for _, pixels, _ in frames:
        stream = zlib.compressobj(wbits=-15)
        bits = np.packbits(pixels.T.ravel(), bitorder="little").tobytes()[: -1 if is_damaged else None]
        packed.append(stream.compress(bits) + stream.flush())
    dataset.PixelData = encapsulate(packed)
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.8.1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the syntax is younger than the writer
        dataset.save_as(tmp_path / "seg.dcm", implicit_vr=False, little_endian=True, force_encoding=True)

    if is_damaged:
        assert refused(lambda: read_seg(tmp_path / "seg.dcm")) == "E_CODESTREAM_MISMATCH"
    else:
        assert np.array_equal(read_seg(tmp_path / "seg.dcm").to_grid(SHAPE, affine), blocks())


def test_all_segments_of_one_name_are_taken_and_kept_apart_without_a_choice(tmp_path: Path) -> None:
    affine = oblique()
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), affine), names=("Lesion", "Lesion"))

    chosen = read_seg(path, structures=["Lesion"])
    assert chosen.classes == {1: "Lesion"}
    assert np.array_equal(chosen.to_grid(SHAPE, affine), blocks() > 0)
    assert read_seg(path).classes == {1: "Lesion", 2: "Lesion_2"}


def test_segments_keep_numbers_above_255(tmp_path: Path) -> None:
    affine = oblique()
    frames = [(300 * number, pixels, place) for number, pixels, place in slices_of(blocks(), affine)]
    path = seg(tmp_path / "seg.dcm", frames, SegmentSequence=[_segment(600, "b"), _segment(300, "a")])

    assert read_seg(path).classes == {300: "a", 600: "b"}
    assert np.array_equal(read_seg(path).to_grid(SHAPE, affine), blocks().astype(np.uint16) * 300)


def test_a_segment_beside_the_grid_costs_no_other(tmp_path: Path) -> None:
    affine = oblique()
    frames = [(n, pixels, place @ _moved(0.3) if n == 2 else place) for n, pixels, place in slices_of(blocks(), affine)]
    painting = read_seg(seg(tmp_path / "seg.dcm", frames)).on_grid(SHAPE, affine)

    assert painting.classes == {1: "LV"}
    assert np.array_equal(painting.labels, blocks() * (blocks() == 1))
    assert [(flaw.code, flaw.numbers) for flaw in painting.flaws] == [("E_LABEL_GRID_MISMATCH", (2,))]


def test_slices_between_that_are_not_marked_are_noted(tmp_path: Path) -> None:
    affine = oblique()
    frames = [frame for number, frame in enumerate(slices_of(blocks(), affine)) if number != 3]
    assert {frame[0] for frame in frames} == {1, 2}  # segment 2 lacks the middle of its three slices
    painting = read_seg(seg(tmp_path / "seg.dcm", frames)).on_grid(SHAPE, affine)

    assert [(flaw.code, flaw.numbers) for flaw in painting.flaws] == [("W_LABEL_GAPS", (2,))]


def test_frames_say_what_they_were_drawn_on_and_may_be_painted_apart(tmp_path: Path) -> None:
    affine = oblique()
    ones, left = np.ones(SHAPE[:2], np.uint8), np.zeros(SHAPE[:2], np.uint8)
    left[:3] = 1
    drawn_on = [[Instance("1.1", 4)], [Instance("1.1", 9)], [Instance("1.1", 9), Instance("1.1", 10)]]
    path = seg(tmp_path / "seg.dcm", [(1, ones, affine), (1, left, affine), (2, ones - left, affine)], sources=drawn_on)

    mask = read_seg(path)

    assert mask.sources == tuple(map(frozenset, drawn_on))
    first, second = mask.on_grid(SHAPE, affine, {0}), mask.on_grid(SHAPE, affine, {1, 2})
    assert (first.classes, first.labels.sum()) == ({1: "LV"}, ones.sum())
    assert second.classes == {1: "LV", 2: "Left lung"}
    assert np.array_equal(second.labels[:, :, 0], 2 * ones - left)


def test_source_images_may_be_stated_once_for_all_frames(tmp_path: Path) -> None:
    shared = _drawn_on(Dataset(), [Instance("1.1"), Instance("1.2")])
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), oblique()), SharedFunctionalGroupsSequence=[shared])

    assert read_seg(path).sources == (frozenset({Instance("1.1"), Instance("1.2")}),)


def test_two_frames_of_a_segment_at_one_place_are_two_time_points_and_refused(tmp_path: Path) -> None:
    affine = oblique()
    ones, left = np.ones(SHAPE[:2], np.uint8), np.zeros(SHAPE[:2], np.uint8)
    left[:3] = 1

    path = seg(tmp_path / "seg.dcm", [(1, ones, affine), (1, left, affine)])
    assert refused(lambda: read_seg(path).to_grid(SHAPE, affine)) == "E_LABEL_FORMAT"
    path = seg(tmp_path / "seg.dcm", [(1, ones, affine), (1, ones, affine)])
    assert read_seg(path).to_grid(SHAPE, affine).sum() == ones.sum()


def test_labels_in_other_letters_keep_them(tmp_path: Path) -> None:
    affine = oblique()
    names = ("Печень", "Селезёнка")
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), affine), names=names, SpecificCharacterSet="ISO_IR 144")

    assert read_seg(path).classes == {1: "Печень", 2: "Селезёнка"}
    assert read_seg(path, structures=["Селезёнка"]).to_grid(SHAPE, affine).sum() == (blocks() == 2).sum()

    data = path.read_bytes().replace(b"ISO_IR 144", b"ISO_IR 192")
    path.write_bytes(data)  # what is Cyrillic in one byte per letter is no UTF-8
    assert refused(lambda: read_seg(path)) == "E_NAME_ENCODING"


def test_segments_without_a_label_are_called_by_their_code_or_their_number(tmp_path: Path) -> None:
    kind, liver, other = Dataset(), _segment(1, ""), _segment(2, "")
    kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = "10200004", "SCT", "Liver"
    liver.SegmentedPropertyTypeCodeSequence = [kind]
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), oblique()), SegmentSequence=[liver, other])

    assert read_seg(path).classes == {1: "Liver", 2: "segment 2"}


def test_a_picture_that_does_not_say_how_many_frames_it_has_is_one(tmp_path: Path) -> None:
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), oblique())[:1])
    dataset = pydicom.dcmread(path)
    del dataset.NumberOfFrames
    dataset.save_as(path)

    assert read_seg(path).to_grid(SHAPE, oblique()).sum() == 9


def test_two_items_in_a_functional_group_of_a_frame_are_refused(tmp_path: Path) -> None:
    groups = [_groups(number, place) for number, _, place in slices_of(blocks(), oblique())]
    groups[0].PlanePositionSequence.append(groups[1].PlanePositionSequence[0])
    path = seg(tmp_path / "seg.dcm", slices_of(blocks(), oblique()), PerFrameFunctionalGroupsSequence=groups)

    assert refused(lambda: read_seg(path)) == "E_LABEL_FORMAT"


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
        ({"BitsStored": 2}, "E_VALUE_INVALID"),
        ({"PixelRepresentation": 1}, "E_VALUE_INVALID"),
        ({"SamplesPerPixel": 3}, "E_VALUE_INVALID"),
        ({"SegmentationType": "OTHER"}, "E_LABEL_FORMAT"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "E_LABEL_FORMAT"),
    ],
    ids=[
        "rows", "frames", "a-million-frames", "no-rows", "no-groups", "no-segments", "segment-twice",
        "bits-stored", "signed", "colour", "type", "class",
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
