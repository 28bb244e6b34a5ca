"""Label maps that are files: names of their values, their grid, what organs do that share voxels."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medssl_cli.base.errors import InputError
from medssl_cli.cache.store import Cache
from medssl_cli.formats.layouts import LabelFile
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.formats.policy import Policy
from medssl_cli.imaging.geometry import turned_onto
from medssl_cli.ingest.failures import Failure
from medssl_cli.ingest.label_maps import PackedMasks, merge, store_labels
from medssl_cli.ingest.tasks import ImageTask, LabelTask, StoredLabel, store_images

SHAPE = (6, 5, 4)
AFFINE = np.array([[0, -2.0, 0, 7], [1.5, 0, 0, -3], [0, 0, 3, 11], [0, 0, 0, 1]])
BLOCK = np.zeros(SHAPE, np.uint8)
BLOCK[1:3, 1:4, 2:4] = 1  # 2 * 3 * 2 = 12 voxels


class Case:
    """A cache with one image, and labels for it."""

    def __init__(self, folder: Path, shape: tuple[int, int, int] = SHAPE) -> None:
        self.folder = folder
        self.cache = Cache.open_or_create(folder / "cache")
        voxels = np.random.default_rng(0).integers(0, 900, shape).astype(np.int16)
        write_nifti(folder / "image.nii.gz", voxels, AFFINE)
        with self.cache.writing():
            stored = store_images(ImageTask(folder / "image.nii.gz", "nifti", self.cache.root, modality="MR"))
        assert isinstance(stored, tuple)
        [self.image] = stored

    def picture(self, mode: str) -> None:
        """Replace the image by a picture of 8 columns and 6 rows."""
        pixels = np.random.default_rng(1).integers(0, 255, (6, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(self.folder / f"{mode}.png")
        task = ImageTask(self.folder / f"{mode}.png", "picture", self.cache.root, Policy(burned_in="accept"), "DX")
        with self.cache.writing():
            stored = store_images(task)
        assert isinstance(stored, tuple)
        [self.image] = stored

    def label(self, name: str, voxels: np.ndarray, affine: np.ndarray = AFFINE, **words: Any) -> LabelFile:
        path = self.folder / f"{name}.nii.gz"
        write_nifti(path, voxels, affine)
        return LabelFile(path, (self.folder / "image.nii.gz",), **words)

    def store(self, *labels: LabelFile, kind: str = "nifti", **options: Any) -> list[StoredLabel | Failure]:
        task = LabelTask(tuple((label, kind) for label in labels), self.image, self.cache.root, "seg", **options)
        with self.cache.writing():
            return store_labels(task)

    def held(self) -> dict[str, dict[str, int]]:
        """Voxels of each class of each set."""
        record = self.cache.record(self.image.item_id)
        return {
            name: {label.classes[value]: number for value, number in label.voxels_per_class.items()}
            for name, label in record.labels.items()
        }


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def codes(answers: list[StoredLabel | Failure]) -> list[Any]:
    return [answer.code if isinstance(answer, Failure) else answer.warnings for answer in answers]


# Grids


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_a_label_on_the_same_voxels_in_any_order_and_direction_is_turned(order, signs):
    label = np.arange(np.prod(SHAPE)).reshape(1, *SHAPE)
    moved = label.transpose(0, *(axis + 1 for axis in order))[(slice(None), *(slice(None, None, s) for s in signs))]
    index = np.zeros((4, 4))
    index[3, 3] = 1
    for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
        index[source, axis], index[source, 3] = sign, (SHAPE[source] - 1) * (sign < 0)

    turned = turned_onto(moved, AFFINE @ index, AFFINE, SHAPE)

    assert turned is not None
    assert np.array_equal(turned, label)


def test_a_turned_label_is_stored_as_the_image_lies(case):
    flipped = AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])

    assert codes(case.store(case.label("a", BLOCK[::-1], flipped))) == [()]

    record = case.cache.record(case.image.item_id)
    assert np.array_equal(case.cache.read_label(record, "seg").voxels[0], BLOCK)


OTHERS = {
    "moved by a voxel": (BLOCK, AFFINE @ np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
    "another spacing": (BLOCK, AFFINE @ np.diag([1.0, 1.0, 2.0, 1.0])),
    "flipped and moved": (BLOCK, AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0])),
    "other sizes, the same place": (BLOCK.transpose(1, 0, 2), AFFINE),
    "cut": (BLOCK[:5], AFFINE),
}


@pytest.mark.parametrize(("voxels", "affine"), OTHERS.values(), ids=list(OTHERS))
def test_any_other_grid_is_refused(case, voxels, affine):
    assert codes(case.store(case.label("a", voxels, affine))) == ["E_LABEL_GRID_MISMATCH"]


# Values


def test_ignore_is_no_class_and_undeclared_values_are_refused(case):
    voxels = BLOCK.copy()
    voxels[0, 0, :] = 2

    ignoring = case.store(case.label("a", voxels, classes={1: "liver"}, ignore=2))
    undeclared = case.store(case.label("b", voxels, classes={1: "liver"}))

    assert codes(ignoring) == [("W_LABEL_IGNORE",)]
    assert codes(undeclared) == ["E_LABEL_VALUES"]
    record = case.cache.record(case.image.item_id).labels["seg"]
    assert (record.classes, record.voxels_per_class, record.ignore) == ({1: "liver"}, {1: 12}, 2)


@pytest.mark.parametrize(
    ("white", "words", "expected"),
    [
        (255, {}, {"class_1": 12}),
        (255, {"classes": {1: "heart"}}, {"heart": 12}),
        (255, {"classes": {7: "heart"}}, {"heart": 12}),
        (254, {}, {"class_254": 12}),
    ],
)
def test_a_mask_of_0_and_255_is_one_class(case, white, words, expected):
    assert codes(case.store(case.label("a", BLOCK * np.uint8(white), **words))) == [()]
    assert case.held() == {"seg": expected}


def test_255_among_other_values_or_as_ignore_is_255(case):
    voxels = BLOCK.copy()
    voxels[0, 0, 0] = 255

    assert codes(case.store(case.label("a", voxels, classes={1: "heart"}))) == ["E_LABEL_VALUES"]
    assert codes(case.store(case.label("b", voxels, classes={1: "heart"}, ignore=255))) == [("W_LABEL_IGNORE",)]


PICTURES = {
    "8 bits": ("png", lambda mask: Image.fromarray(mask * np.uint8(255)), [()]),
    "1 bit": ("png", lambda mask: Image.fromarray(mask * np.uint8(255)).convert("1"), [()]),
    "16 bits": ("png", lambda mask: Image.fromarray(mask.astype(np.uint16) * 65535), [()]),
    "grey as RGB": ("png", lambda mask: Image.fromarray(mask * np.uint8(255)).convert("RGB"), [()]),
    "TIFF": ("tif", lambda mask: Image.fromarray(mask * np.uint8(255)), [()]),
    "palette": ("png", lambda mask: Image.fromarray(mask).convert("P"), ["E_PHOTOMETRIC"]),
    "colours": ("png", lambda mask: Image.merge("RGB", [Image.fromarray(mask * np.uint8(c)) for c in (255, 0, 9)]),
                ["E_PHOTOMETRIC"]),
    "JPEG": ("jpg", lambda mask: Image.fromarray(mask * np.uint8(255)), ["E_LABEL_LOSSY"]),
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "made", "expected"), PICTURES.values(), ids=list(PICTURES))
def test_a_mask_that_is_a_picture(case, suffix, made, expected):
    case.picture("image")
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:7] = 1  # 2 rows of 5 pixels
    path = case.folder / f"mask.{suffix}"
    made(mask).save(path)

    answers = case.store(LabelFile(path, ()), kind="picture")

    assert codes(answers) == expected
    assert case.held() == ({"seg": {"class_1": 10}} if expected == [()] else {})


# Structures in files of their own


def masks(*boxes: tuple[int, int]) -> PackedMasks:
    found = PackedMasks((10, 3, 1))
    for first, last in boxes:
        mask = np.zeros((10, 3, 1), bool)
        mask[first:last] = True
        found.append(mask)
    return found


RULES = {
    # 0..5, 4..8 and 5..10 in rows of three: row 4 is of 1 and 2, rows 5 to 7 of 2 and 3
    "settle": None,
    "first": [1, 1, 1, 1, 1, 2, 2, 2, 3, 3],
    "last": [1, 1, 1, 1, 2, 3, 3, 3, 3, 3],
    "smallest": [1, 1, 1, 1, 2, 2, 2, 2, 3, 3],
    "refuse": None,
}


@pytest.mark.parametrize(("rule", "expected"), RULES.items())
def test_who_has_what_structures_share(rule, expected):
    overlapping = masks((0, 5), (4, 8), (5, 10))
    if expected is None:
        with pytest.raises(InputError, match="E_SEGMENT_OVERLAP"):
            merge(overlapping, rule)
        return

    found = merge(overlapping, rule)

    assert [part[:, 0, 0].tolist() for part in found.parts] == [expected]
    assert found.num_shared == 4 * 3


def test_all_parts_are_kept_in_as_many_maps_as_are_needed():
    found = merge(masks((0, 5), (4, 8), (5, 10)), "parts")

    assert [part[:, 0, 0].tolist() for part in found.parts] == [
        [1, 1, 1, 1, 1, 3, 3, 3, 3, 3],
        [0, 0, 0, 0, 2, 2, 2, 2, 0, 0],
    ]


def test_few_shared_voxels_are_the_later_one_s_and_more_than_half_of_a_structure_is_refused():
    few = merge(masks((0, 4), (2, 10)), "settle")

    assert few.parts[0][:, 0, 0].tolist() == [1, 1, 2, 2, 2, 2, 2, 2, 2, 2]
    with pytest.raises(InputError, match="E_SEGMENT_OVERLAP: structure 1 of 2 would keep 3 of 12 voxels"):
        merge(masks((0, 4), (1, 10)), "settle")


@pytest.mark.parametrize("rule", ["settle", "parts", "refuse", "smallest"])
def test_structures_that_share_nothing_are_the_same_by_every_rule(rule):
    found = merge(masks((0, 4), (4, 10)), rule)

    assert (len(found.parts), found.num_shared) == (1, 0)


def organs(case: Case) -> list[LabelFile]:
    wide, tip = BLOCK.copy(), np.zeros(SHAPE, np.uint8)
    tip[2:4, 1:4, 2:4] = 1  # shares 6 of its 12 voxels
    return [case.label("liver", wide, class_name="liver"), case.label("spleen", tip, class_name="spleen")]


def test_organs_that_overlap_are_stored_with_a_note_that_counts(case):
    [first, second] = case.store(*organs(case))

    assert isinstance(first, StoredLabel)
    assert first == second
    assert (first.warnings, first.message) == (("W_LABEL_OVERLAP",), "W_LABEL_OVERLAP: 6 voxels, rule settle")
    assert case.held() == {"seg": {"liver": 6, "spleen": 12}}


def test_overlapping_organs_are_all_kept_in_parts_on_request(case):
    case.store(*organs(case), overlap="parts")

    assert case.held() == {"seg": {"liver": 12}, "seg-2": {"spleen": 12}}


def test_files_of_one_structure_are_one_and_names_that_become_equal_are_refused(case):
    left, right = np.roll(BLOCK, -1, axis=0), np.roll(BLOCK, 2, axis=0)
    same = [case.label("l", left, class_name="lung"), case.label("r", right, class_name="lung")]
    other = [case.label("l", left, class_name="lung*"), case.label("r", right, class_name="lung?")]

    assert codes(case.store(*other)) == ["E_NAME_COLLISION"] * 2
    assert codes(case.store(*same)) == [()] * 2
    assert case.held() == {"seg": {"lung": 12 + 12}}


def test_sets_of_one_image_are_kept_apart_by_their_names(case):
    brain = case.label("brain", np.ones(SHAPE, np.uint8), class_name="brain", set_name="brain")
    lesion = case.label("lesion", BLOCK, class_name="lesion")

    assert codes(case.store(brain, lesion)) == [(), ()]
    assert case.held() == {"seg-brain": {"brain": 6 * 5 * 4}, "seg": {"lesion": 12}}


# 3D Slicer

LINES = ("Segment0_Name:=Ductus cysticus", "Segment0_LabelValue:=1", "Segment1_Name:=右肺", "Segment1_LabelValue:=2")


def slicer(path: Path, voxels: np.ndarray, *lines: str, affine: np.ndarray = AFFINE, kinds: int = 3) -> LabelFile:
    vectors = " ".join(f"({x},{y},{z})" for x, y, z in affine[:3, :3].T)
    origin = ",".join(map(str, affine[:3, 3]))
    head = [
        "NRRD0004", "type: unsigned char", "dimension: 3", "space: right-anterior-superior", "encoding: raw",
        f"sizes: {' '.join(map(str, voxels.shape))}", f"space directions: {vectors}", f"space origin: ({origin})",
        *lines,
    ]  # fmt: skip
    path.write_bytes(("\n".join(head) + "\n\n").encode() + voxels.tobytes(order="F"))
    return LabelFile(path, ())


def test_a_segmentation_of_3d_slicer_keeps_the_names_of_its_segments(case):
    voxels = BLOCK.copy()
    voxels[5, 0, :] = 2

    assert codes(case.store(slicer(case.folder / "a.seg.nrrd", voxels, *LINES), kind="nrrd")) == [()]
    assert case.held() == {"seg": {"Ductus cysticus": 12, "右肺": 4}}


def test_a_segmentation_that_slicer_cropped_is_put_where_it_lies(case):
    place = np.eye(4)
    place[:3, 3] = 1, 1, 2
    cropped = slicer(case.folder / "a.seg.nrrd", BLOCK[1:3, 1:4, 2:4], *LINES, affine=AFFINE @ place)

    assert codes(case.store(cropped, kind="nrrd")) == [()]

    record = case.cache.record(case.image.item_id)
    assert np.array_equal(case.cache.read_label(record, "seg").voxels[0], BLOCK)


SEGMENTS = {
    "a value without a segment": (LINES[2:], "E_LABEL_VALUES"),
    "a value twice": ((*LINES[:2], "Segment1_Name:=b", "Segment1_LabelValue:=1"), "E_NRRD_HEADER"),
    "a value that is none": (("Segment0_Name:=a", "Segment0_LabelValue:=x"), "E_NRRD_HEADER"),
    "names that become equal": (("Segment0_Name:=a*", "Segment0_LabelValue:=1", "Segment1_Name:=a?",
                                 "Segment1_LabelValue:=2"), "E_NAME_COLLISION"),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "code"), SEGMENTS.values(), ids=list(SEGMENTS))
def test_segments_that_cannot_be_told_apart_are_refused(case, lines, code):
    assert codes(case.store(slicer(case.folder / "a.seg.nrrd", BLOCK, *lines), kind="nrrd")) == [code]


def test_segments_in_layers_are_refused_by_name(case):
    layers = np.zeros((2, *SHAPE), np.uint8)
    label = slicer(case.folder / "a.seg.nrrd", layers, *LINES)
    text = label.source.read_bytes().replace(b"dimension: 3", b"dimension: 4\nkinds: list domain domain domain")
    label.source.write_bytes(text.replace(b"space directions: ", b"space directions: none "))

    assert codes(case.store(label, kind="nrrd")) == ["E_SEGMENT_OVERLAP"]


def test_one_segment_without_a_value_has_the_value_1(case):
    case.store(slicer(case.folder / "a.seg.nrrd", BLOCK, "Segment0_Name:=liver"), kind="nrrd")

    assert case.held() == {"seg": {"liver": 12}}
